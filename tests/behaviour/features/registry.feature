Feature: Who knows which workers there are
  The queen keeps what hives report; before a request goes out, hive, version and worker are looked at.

  @QREG-01
  Scenario: A worker never seen before is stored at its first report, and once
    Given another hive with a worker "new" that the queen does not know
    When that hive reports the worker ready
    Then the answer is 200 with success and "stored: a new worker", and the worker is listed
    When the same report comes again, then a newer one
    Then the first is answered 200 and ignored, the second 200 and stored, and there is one row

  @QREG-02
  Scenario: The list has every worker with what a router needs
    When an administrator lists the workers
    Then the row of a real worker has id, hive, url, model_ref, backend, device, state, slots and capabilities

  @QREG-03
  Scenario: A capability filters the list
    Given another hive reports a worker "painted" on cuda:0, which is no GPU but says so
    When an administrator lists the workers with the capability "cuda:0"
    Then the answer is 200 and has only "painted"
    When an administrator lists the workers with the capability "cpu"
    Then the answer is 200 and has the real workers and not "painted"

  @QREG-04
  Scenario: An operator holds a worker back
    When the worker "talk" is patched to busy
    Then the answer is 200, its row is busy, and a request for its model gets 503 ALL_SLOTS_BUSY
    When the worker "talk" is patched to idle
    Then the answer is 200, its row is idle, and a request for its model is answered

  @QREG-05
  Scenario: A worker is deleted from the list
    Given another hive with a worker "old" that the queen has listed
    When the worker "old" is deleted
    Then the answer is 204 and the worker is not listed
    When the worker "old" is deleted
    Then the answer is 404 WORKER_NOT_FOUND

  @QREG-06
  Scenario: Workers of a silent hive are dropped, fresh ones stay
    Given another hive with a worker "silent" that the queen has listed
    When that hive is silent for longer than the limit
    Then "silent" is stale first and then dropped, and the real workers are still listed

  @HREG-01 @HREG-02
  Scenario: A hive whose version fits and which has no worker is ready for the next step
    Given a queen and a hive that were started just now
    Then rbee hive health exits with 0 and shows "healthy" and API v1
    And the hive's list is an empty list of workers, and its resources and capabilities answer
    When a person spawns a worker with a model
    Then it exits with 0 and the worker is ready in both lists

  @HREG-03
  Scenario: An idle worker of the model is used as it is
    When a person asks the model of the worker "talk" a question
    Then it exits with 0 and stdout is the known answer
    And nothing was spawned and the worker is in the same life

  @HREG-04
  Scenario: A busy worker of the model is asked all the same, and refuses
    Given the only slot of the worker "lone" is held by a client that does not read
    When a client asks for its model
    Then it gets 503 ALL_SLOTS_BUSY in the end
    And nothing was spawned and the worker is in the same life

  @HREG-05
  Scenario: A hive that never answers is tried three times for 10 s
    Given another hive that never answers
    When a person spawns a worker there
    Then it exits with 1, names HIVE_UNREACHABLE and says where to look
    And the hive was called 3 times, 10 s and 0.2 s apart, then 10 s and 0.4 s

  @HREG-06
  Scenario Outline: A hive that answers invalid JSON
    Given another hive that answers invalid JSON
    When a person <asks>
    Then it exits with 1, names <code>, the position in the answer, and how to restart the hive

    Examples:
      | asks                  | code                |
      | spawns a worker there | HIVE_PROTOCOL_ERROR |
      | asks for its health   | PROTOCOL_ERROR      |

  @HREG-07
  Scenario: A hive that is not there
    When a person asks for the health of a hive that is not there
    Then three tries are shown, it exits with 1, names CONNECTION_TIMEOUT and says to look at the service

  @HREG-08 @HREG-09
  Scenario Outline: A hive of another version
    Given another hive of version 9.8.7
    When a person <asks>
    Then it exits with 1, names VERSION_MISMATCH and both versions, and shows the upgrade command

    Examples:
      | asks                  |
      | spawns a worker there |
      | asks for its health   |
