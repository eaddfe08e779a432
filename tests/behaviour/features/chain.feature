Feature: The chain on one machine
  queen, hive and workers as one service: what waits is woken, what breaks is told, what ends ends in order.

  @STACK-03 @WORKER-01
  Scenario: A request that waits for a cold model goes on when its worker says READY
    Given the worker of a model that takes 2 s to load is defined and not started
    When a client asks the queen for that model
    Then the hive starts the worker once and the client gets the worker's answer
    And the request was on its way within a quarter of a second of the worker's READY
    And one ready callback was sent and received, and the worker was never polled
    And the queen lists the worker as idle, with its address

  @E2E-01
  Scenario: A stream tells how a cold model is coming up, and every hop names the request
    Given the worker of the talking model is defined and not started
    When a client with a correlation id of its own streams an answer from it
    Then the events are queued, placing, loading, started, tokens, metrics and one end
    And the logs of queen and worker name the correlation id, and the hive's names the start
    And the worker is idle and its metrics and the queen's count one request

  @FLOW-02 @MODE-01 @MODE-03
  Scenario: An idle worker is used again
    Given the worker of the talking model runs
    When a person runs rbee infer twice
    Then each exits with 0 in less than 5 s and no worker was started for it
    And queen, hive and worker keep running as the processes that they were

  @STACK-02 @STACK-10
  Scenario: Who asked, and for what request, travels along
    Given the worker of the talking model runs
    When a client with a correlation id of its own asks the queen
    Then the worker's log names that id and the fingerprint under which the queen knows the client
    And queen and worker show the id as exemplar of a metric to who asks for OpenMetrics

  @STACK-08
  Scenario: The queen's health asks hives and workers where it is told to
    Given the worker of the talking model runs
    Then the queen's deep health is healthy and names hive and worker
    When the worker stands still
    Then the queen's deep health names what is wrong

  @STACK-09
  Scenario: A worker's refusal reaches the client as the worker wrote it
    Given the worker of the talking model runs
    When a client asks the queen and then the worker for 0 tokens
    Then both get the same 400 with their own request's id

  @STACK-06
  Scenario: Ten clients share three workers
    Given three workers with one slot each serve the talking model
    When ten clients ask the queen in the same moment
    Then every one gets its whole answer and each worker did some of the work

  @E2E-02
  Scenario: A worker that dies before the first byte costs its request nothing
    Given two workers with one slot each serve the talking model
    And one of them stands still
    When two clients ask the queen and the worker that stands still is killed with SIGKILL
    Then both clients get their whole answer
    And the queen tells that she placed a request anew

  @RACE-01 @E2E-04
  Scenario: Three hives have workers of the same id and of their own
    Given three hives report to one queen
    When each starts a worker "same" and a worker of its own at once
    Then the queen lists the six of them, each under its hive
    When another hive claims the id of one that is alive
    Then it is refused with 409 and the queen still lists the six

  @RACE-02
  Scenario: Two marks of busy a moment apart
    Given the worker of the talking model runs
    When two administrators mark it busy in the same moment
    Then both get 200 and the worker is busy
    When one of them marks it idle again
    Then the worker is idle

  @RACE-03
  Scenario: A hive registers while another one is swept away
    Given a hive of the test's own that has gone silent with 20 workers
    When another hive of the test's own registers new workers until the first is dropped
    Then the workers of the silent hive are gone and every new one is there

  @RACE-04
  Scenario: Heartbeats and changes of state arrive in any order
    Given a hive of the test's own with one worker
    When 40 changes of state and 40 heartbeats arrive all at once, shuffled
    Then the queen shows the newest of them

  @RECOVER-04
  Scenario: A hive that falls silent
    Given a queen and a hive with short intervals, and the worker of the talking model runs
    And a client streams a long answer
    When the hive stands still
    Then its worker is stale within a few intervals
    And the stream goes on to its end
    And another request waits
    When the hive moves again
    Then that request is answered and the worker is idle
    When the hive stands still for longer than the limit
    Then the queen knows the worker no more

  @RECOVER-06
  Scenario: SIGTERM to a worker with two running requests
    Given the worker of the talking model runs
    And two clients stream a long answer
    When the worker gets SIGTERM
    Then it refuses a new request with 503 WORKER_DRAINING
    And both streams come to their end
    And the worker ends by itself with exit code 0, and the queen lists it as stopped

  @STACK-04
  Scenario: Queen, hive and worker end on SIGTERM
    Given the worker of the talking model runs
    When the queen and then the hive get SIGTERM
    Then both exit with 0 within 30 s and no process is left

  Scenario: rbee dev shows everything and ends it
    When a person runs rbee dev --once
    Then it exits with 0, and stdout has an answer of the talking model, three sentences compared and lines to go on with
    And none of its processes is left

  Scenario: Ctrl+C ends rbee dev
    Given a person runs rbee dev and it waits
    Then the lines to go on with work as they stand
    When the person presses Ctrl+C
    Then it exits with 0, and says that all ended
    And none of its processes is left
