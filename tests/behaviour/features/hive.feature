Feature: The hive and the life of its workers
  systemd runs the workers, the hive sees and says what happens to each, and nothing that it does costs a worker.

  @HIVE-01
  Scenario: The hive stays up and hears without asking
    Given a ready worker "calm"
    When nothing happens for a while and every call to systemd over the bus is recorded
    Then nobody asked systemd anything meanwhile, though health checks and heartbeats went on
    And the hive is the same process, and its API answers at its socket and over TCP
    And a worker that is started now is heard of, and the hive's call to start it is in the record

  @HIVE-02
  Scenario: A worker that hangs is restarted by systemd's watchdog and reported
    Given a ready worker "hung" whose unit has "WatchdogSec=2"
    When its process is stopped by SIGSTOP
    Then the queen hears that it failed with the reason "watchdog"
    And it becomes ready again as a new life with a restart counted

  @HIVE-02 @HIVE-12
  Scenario: A worker whose unit runs and whose HTTP is dead is unhealthy after 3 failed checks, not routed, restarted
    Given a ready worker "mute"
    When its process is stopped by SIGSTOP
    Then the queen hears that it is unhealthy since its HTTP does not answer
    And a request for its model is answered by its next life
    And the hive's log counts 3 failures before it restarted the worker

  @HIVE-02 @HIVE-03 @HIVE-07
  Scenario: Idle workers are stopped at their own limit or the hive's; health checks are no activity
    Given a hive whose idle limit is 3 s and which checks health twice a second
    And a ready worker "own" with an idle limit of 1 s
    And a ready worker "plain" without an idle limit of its own
    And a ready worker "never" with an idle limit of 0 s
    Then "own" and "plain" are stopped with the reason "idle", each past its limit
    And their processes are gone and their units hold no memory
    And "never" is still ready, and the hive is the same process
    And each stop is one line of the hive's log, with the worker, its idle time and its limit
    And a hive that is told nothing has an idle limit of 300 s

  @HIVE-04
  Scenario: A hive that goes and comes leaves the workers running
    Given a ready worker "first"
    And a ready worker "second"
    When the hive is restarted
    Then both workers are ready in the queen's list, with the process and the life that they had
    And the hive did not wait for anybody

  @HIVE-04 @HIVE-14 @HIVE-15 @HIVE-16 @HIVE-20
  Scenario: Stopping the target stops everything together, laggards are killed at the cap
    Given 5 ready workers whose units have "TimeoutStopSec=4"
    And 3 of them hang
    When rbee.target is stopped
    Then everything is down before two of the hung ones could have been killed one after the other
    And the 3 that hung were killed together at the cap, the other 2 ended by themselves
    And the hive ended cleanly after the last worker
    And the hive's log says "shutting down 5", counts them from 1/5 to 5/5, and ends with "all workers are shut down"
    And the definitions, the models and the queen's database are still on disk
    And without that line of the test a worker has 30 s, and the hive stays for as long

  @HIVE-05 @HIVE-10 @HIVE-11 @HIVE-21
  Scenario: A worker that ignores its stop is killed at the limit, and the record says everything
    Given a ready worker "stubborn" whose unit has "TimeoutStopSec=2"
    And its process hangs
    When it is stopped through the queen
    Then the queen hears that it is draining, then that it failed with the reason "force-killed"
    And systemd had sent it SIGKILL after its limit, not before
    And the hive's record "worker force-killed" has the worker, its PID, the reason, signal 9 and a time
    And "rbee worker list" shows it as failed and force-killed

  @HIVE-06
  Scenario: A stop during a request drains the worker
    Given a ready worker "drained" with a request that its client does not read on
    When it is stopped with systemctl
    Then the queen and the hive say that it is draining
    And a new request to it gets 503 WORKER_DRAINING
    When the client reads on
    Then its answer is whole
    And the worker ended by itself with exit code 0 and is stopped

  @HIVE-08
  Scenario: The main process of each worker is shown
    Given a ready worker "shown"
    Then the hive's list, the queen's list and "rbee worker list" show systemd's MainPID

  @HIVE-09
  Scenario: One life from loading to ready, another one after a restart
    Given a worker "slow" that takes seconds to load
    When it is started and the queen is watched
    Then it was loading, then idle, with one MainPID and one InvocationID, which are systemd's
    When it is restarted with systemctl
    Then it is ready again with another InvocationID and another time of its start

  @HIVE-12
  Scenario: Something that answers on the address of a worker that is gone is not ours
    Given a ready worker "gone" whose unit is stopped then
    When a stranger's HTTP server takes its address
    Then the hive says in its log that this is not ours
    And the worker has no address in the hive's list and in the queen's
    And a request for its model is answered by its next life at another address, and none reached the stranger

  @HIVE-13
  Scenario Outline: A load without progress is ended and its last progress is shown
    Given a worker "late" that takes seconds to load, <how>
    When it is started without waiting
    Then it fails with the reason "LOADING_TIMEOUT" and its last progress "<progress>"

    Examples:
      | how                                                            | progress             |
      | and that gives up after 1.5 s without progress                 | creating the session |
      | that is stopped by SIGSTOP while it loads, for systemd's limit | creating the session |

  @HIVE-14 @HIVE-22
  Scenario: Five workers that answer are stopped in parallel, quickly, and none is killed
    Given 5 ready workers whose units have "TimeoutStopSec=30"
    When all are stopped through the hive at once
    Then all are stopped within 5 s of the last order
    And each ended by itself with exit code 0, and the hive's log says "worker stopped" for each and never "killed"

  @HIVE-17
  Scenario: The hive signals no process by its PID
    Given a ready worker "left" whose unit has "TimeoutStopSec=1"
    And every system call of the hive that sends a signal is recorded
    When it is stopped while it hangs, started, killed from outside, restarted and stopped through the hive
    Then the hive sent no signal to any process
    And a stopped worker has no PID in the hive's list

  @HIVE-18 @HIVE-19
  Scenario: A worker killed from outside is reported crashed, reaped, and forgotten with its definition
    Given a ready worker "victim" whose unit has "RestartSec=60"
    When its process is killed by SIGKILL
    Then within 2 s the queen hears that it failed: crashed by SIGKILL, with its PID, result and signal
    And there is no zombie on the machine
    And the hive's log has the crash with the PID
    When its unit is stopped and its definition removed
    Then hive and queen do not list it any more
