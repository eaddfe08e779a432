Feature: Deadlines
  A request's deadline is set once, travels unchanged, and ends the work wherever it is when it passes.

  @DEADLINE-01 @DEADLINE-04
  Scenario Outline: A deadline reaches the worker as it was written
    Given a worker of the test's own that records what it is asked
    When a client asks for its model with a deadline as <form>
    Then the worker got X-Request-Deadline letter by letter as the client wrote it

    Examples:
      | form               |
      | ISO-8601           |
      | epoch milliseconds |

  @DEADLINE-01
  Scenario: The queen sets the deadline of a request that has none
    Given a worker of the test's own that records what it is asked
    When a client asks for its model without a deadline
    Then the worker got a deadline of the queen's own, her limit of 20 s after the request

  @DEADLINE-07
  Scenario: A deadline later than the queen's own
    Given a worker of the test's own that records what it is asked
    When a client asks for its model with a deadline an hour away
    Then the worker got a deadline of the queen's own, her limit of 20 s after the request
    And the queen's log warns that the later one is ignored

  @DEADLINE-02 @DEADLINE-05 @DEADLINE-06
  Scenario: The deadline of a whole answer passes
    When a client asks for a long answer at once, with a deadline half a second away
    Then it gets 408 REQUEST_TIMEOUT with the deadline it gave, after half a second
    And the worker stopped before the answer's end, freed its slot and logged the timeout

  @DEADLINE-02 @DEADLINE-06
  Scenario: The deadline of a stream passes
    When a client asks for a long answer as a stream, with a deadline half a second away
    Then the stream ends with one error event REQUEST_TIMEOUT with the deadline it gave
    And the worker stopped before the answer's end, freed its slot and logged the timeout

  @DEADLINE-03
  Scenario: A worker that is started for a request has the request's deadline
    Given the model's only worker is stopped
    When a client asks for a long answer as a stream, with a deadline five seconds away
    Then the stream tells that the worker loads, and ends with one error event REQUEST_TIMEOUT with the deadline it gave
    And the worker stopped before the answer's end, freed its slot and logged the timeout

  @DEADLINE-05
  Scenario: A deadline that has passed, and one that is none
    When a client asks with a deadline in the past
    Then it gets 408 REQUEST_TIMEOUT with the deadline it gave
    When a client asks with a deadline that is no time
    Then it gets 400 INVALID_REQUEST that names the header

  @DEADLINE-08
  Scenario: Without a deadline a stream may go on, and waiting for a slot has its limit
    Given every slot of the model is held
    When a client asks without a deadline
    Then it gets 503 ALL_SLOTS_BUSY after the configured second
    And the streams that held the slots for longer than that come to their end
