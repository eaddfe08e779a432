Feature: A worker's life
  It listens, loads, warms up, and only then says that it is ready; whatever goes wrong on the way is told.

  # on plain processes

  @WORKER-02
  Scenario: A worker that nobody supervises tells its hive that it is ready
    Given a queen and a hive
    And a worker that was started by hand
    When it is told to the hive with POST /v1/workers/ready
    Then the hive has checked and taken it, and the queen lists it as idle and not managed
    And a client of the queen gets its answer
    When an address where nothing answers is told to the hive as a worker's
    Then it is refused and in nobody's list

  @WORKER-04
  Scenario: A port that is taken
    Given a queen and a hive
    And another program listens on the first port of a worker's range
    When the worker is started
    Then it listens on the next port and serves there

  @WORKER-07 @WORKER-09
  Scenario: A worker tells whether it is ready
    Given a queen and a hive
    When the worker of a slow model is started
    Then its /v1/ready says not ready, loading, and where progress is told
    And an inference is refused with 503 MODEL_LOADING
    When its progress is followed to the end
    Then its /v1/ready says ready, idle and model loaded

  @WORKER-08
  Scenario: The person who starts a worker sees a bar
    Given a queen and a hive
    When a person at a terminal starts the worker of a slow model with rbee worker start
    Then a bar with the stages of loading is drawn, and it exits with 0

  @WORKER-10 @WORKER-11
  Scenario: Loading without progress
    Given a queen and a hive
    And the worker of a slow model may go without progress for a quarter of a second
    When a person starts it with rbee worker start
    Then it exits with 1, names LOADING_TIMEOUT, the time that passed and the command that shows the log
    And the worker's log names the stage at which it stood

  @WORKER-06
  Scenario: The hive's row of a worker
    Given a queen and a hive
    When the worker of the talking model is started
    Then the hive's row has its id, url, model, backend, device, state, slots, pid, invocation and since
    And a request in flight shows in the queen's row as busy with one slot less

  # on a real systemd

  @WORKER-01 @WORKER-08
  Scenario: From an order to a ready worker
    Given a machine on which queen and hive run
    When the hive is told to spawn a worker of the slow model
    Then it answers 202 with state loading and has written the worker's definition
    And the worker answers HTTP while its unit is still activating
    And the unit's status shows the stage that the progress stream tells
    And READY=1 came after the warm-up: the stream's last words are warmed up, ready and [DONE]

  @WORKER-05 @WORKER-01
  Scenario: A model that loads and cannot run
    Given a machine on which queen and hive run
    When a person spawns a worker of a model that fails its warm-up
    Then rbee exits with 1 within 30 s and shows the worker's own reason
    And the unit never became active

  @WORKER-03
  Scenario: rbee-worker is not installed
    Given a machine on which queen and hive run
    When a person starts a worker on it after rbee-worker was removed
    Then rbee exits with 1 within 30 s and says how to install it

  @RECOVER-01 @INFER-03 @INFER-07
  Scenario: A worker crashes while it answers a person
    Given a machine on which queen and hive run
    And a worker of the talking model runs there
    When a person runs rbee infer there and the worker is killed with SIGKILL
    Then rbee exits with 1 and names the file with what came before
    And the hive's journal has the crash within 1 s with result and signal, the queen's within 2 s
    And a request that comes meanwhile is answered by the worker's next life

  @RECOVER-05 @SCENE-13
  Scenario: The hive restarts while a worker answers
    Given a machine on which queen and hive run
    And a worker of the talking model runs there
    When the hive is restarted while a client streams a long answer
    Then the stream goes on to its end
    And within 2 s of the hive's start the queen lists the worker of the same process again

  Scenario: The hive dies while a request waits for a loading worker
    Given a machine on which queen and hive run
    And the hive will not be started again
    When a client waits for the slow model and the hive is killed with SIGKILL meanwhile
    Then the client gets its answer, because the queen asked the worker itself, which is counted

  @INFER-05
  Scenario: The network drops in the middle of an answer
    Given a machine on which queen and hive run
    And a worker of the talking model runs there
    And the queen listens for the network
    When a person on another machine runs rbee infer and the cable is pulled out
    Then rbee exits with 1 within 8 s, with what came before kept and counted
