Feature: Inference
  A prompt goes in, text comes out token by token; whoever stops it frees its slot, and whatever breaks is told once.

  @INFER-01 @STACK-01
  Scenario Outline: Text streams as typed events, and the worker goes from idle to busy and back
    When a client asks the <door> to count to one hundred
    Then the first events are <first>
    And then come the tokens, the metrics and exactly one end, closed by [DONE]
    And the text is the hundred numbers, letter by letter
    And the tokens came one by one over the time that they took
    And the worker was busy meanwhile and is idle now

    Examples:
      | door   | first                   |
      | worker | started                 |
      | queen  | queued, placing, started |

  @INFER-01 @CLI-05
  Scenario: rbee infer writes the text as it is made
    When a person runs rbee infer for the hundred numbers
    Then it exits with 0 and stdout is the hundred numbers
    And stdout grew over the time that the tokens took
    And stderr tells how many tokens there were and which worker made them

  @INFER-02 @INFER-08
  Scenario: All slots busy are tried again after 1, 2 and 4 s, then given up with advice
    Given the only slot of a worker is held by a client that does not read
    When a client asks that worker as well
    Then it gets 503 ALL_SLOTS_BUSY with 1 slots in all and 1 busy, and a time to come back
    When a person runs rbee infer at that worker
    Then it says that it tries again in 1 s, 2 s and 4 s
    And it exits with 1, names ALL_SLOTS_BUSY and says what can be done

  @INFER-12
  Scenario: Two requests race for the last of four slots
    Given 3 of the 4 slots of a worker are held by clients that do not read
    When two clients ask for the last slot in the same moment
    Then one streams its answer and the other gets 503 ALL_SLOTS_BUSY with 4 slots in all and 4 busy
    And the worker counts 3 slots as busy again

  @INFER-11
  Scenario Outline: Cancelling is repeatable and frees the slot
    Given a long answer streams from the <door>
    When its client sends DELETE for it twice
    Then both are answered with 204
    And the stream ends with exactly one error event CANCELLED
    And the slot is free and the worker made fewer tokens than it could have

    Examples:
      | door   |
      | worker |
      | queen  |

  @INFER-10
  Scenario Outline: A client that vanishes frees its slot within a second
    Given a long answer streams from the <door>
    When its client vanishes
    Then the slot is free within 1 s and the worker made fewer tokens than it could have
    And the worker's log says how the request ended: <outcome>

    Examples:
      | door   | outcome     |
      | worker | client_gone |
      | queen  | gone or cancelled |

  @INFER-09
  Scenario: Ctrl+C at rbee infer stops the worker's work
    Given a person runs rbee infer for a long answer
    When text has come and the person presses Ctrl+C
    Then it exits with 130 within 5 s and says that the worker stops
    And the slot is free and the worker made fewer tokens than it could have
    And what came is kept in a file that is named

  @INFER-03 @SCENE-03 @STACK-05
  Scenario: A worker that is killed in the middle of an answer
    Given a long answer streams from the queen
    When its worker is killed with SIGKILL
    Then the stream ends with exactly one error event WORKER_FAILED
    And every token that came before is whole
    And the queen sees the worker fail with signal 9 within 2 s and it comes back by itself

  @INFER-03
  Scenario: rbee infer keeps what came before its worker was killed
    Given a person runs rbee infer for a long answer
    When text has come and its worker is killed with SIGKILL
    Then it exits with 1 and says that the worker went away
    And what came is kept in a file that is named

  @INFER-04
  Scenario: rbee infer gives up an answer in which nothing comes any more
    Given a person runs rbee infer for a long answer with a stall limit of 1 s
    When text has come and its worker stands still
    Then it exits with 1 and names INFERENCE_STALLED
    And what came is kept in a file that is named
    And the worker, once it moves again, has a free slot and made fewer tokens than it could have

  @INFER-04
  Scenario: The queen ends a stream in which nothing comes any more
    Given a long answer streams from the queen
    When its worker stands still for longer than the queen's stall limit
    Then the stream ends with exactly one error event WORKER_FAILED
    And the worker, once it moves again, has a free slot and made fewer tokens than it could have

  @INFER-06
  Scenario Outline: A daemon that cannot be reached is tried three times
    When a person asks a queen by rbee infer at <place>
    Then each of 3 tries is shown and it exits with 1, names CONNECTION_TIMEOUT and says where to look

    Examples:
      | place                                     |
      | a port where nothing listens              |
      | a host that lets no connection in          |

  @E2E-05
  Scenario: A reader that is slower than the worker slows the worker down
    When a client asks the worker for a long answer and does not read
    Then the worker stops making tokens before the answer's end
    When the client reads on
    Then it gets every token in order, and the text is what another client gets that reads at once

  Scenario: OpenAI's own client talks to the queen
    Given OpenAI's Python client with the queen's address and token
    Then it lists the talking model
    And it gets a whole answer with its token counts
    And it streams the same answer piece by piece
    And it raises its own errors for a wrong token, an unknown model and a parameter that is not honoured
