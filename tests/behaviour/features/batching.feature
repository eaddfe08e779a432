Feature: Many texts at once
  One worker writes many texts in one batch; none of them is another one for it, and none waits for a slow reader.

  @INFER-01 @INFER-12
  Scenario: Texts in one batch say what each says alone
    Given a worker of the talking model with 4 slots and a queue of 8
    When twelve clients ask it different questions in the same moment
    Then each gets the answer that the model gives to its question alone
    And the worker has no slot in use and nobody waiting

  @INFER-02
  Scenario: A queue that is full
    Given a worker of the talking model with 1 slots and a queue of 1
    And one client holds the slot and another waits for it
    When a third client asks
    Then it gets 503 ALL_SLOTS_BUSY with the slots, who waits, and the queue's length
    And the one that waits is answered once the slot is free

  @INFER-10
  Scenario: A client that does not read holds up nobody
    Given a worker of the talking model with 4 slots and a queue of 0
    And a client that asks for a long text and reads none of it
    When another client asks
    Then the other one's whole answer comes

  @RES-04
  Scenario: A worker keeps to the idlest cores
    Given the talking model's definition says pin_cores 1
    When that worker is started
    Then every thread of it may run on one core alone, and the log names it
