Feature: Memory that runs out
  A real machine whose memory is limited: the kernel kills, or the runtime cannot allocate, and everybody hears which.

  Background:
    Given a machine with queen and hive, whose memory will be short

  @FIT-03 @SCENE-08
  Scenario: The kernel kills a worker that loads a model too large for what is free
    Given a worker whose model weighs 256 MiB, where 160 MiB are free
    And a request waits for its model
    When it loads
    Then the kernel has killed one process, and queen and hive are the processes that they were
    And the hive says that the worker failed with "oom-kill", how far loading was, and the last line of its log
    And the request is answered 503 OUT_OF_MEMORY, which names oom-kill and what to do
    And nothing is left of the worker: no process, no file of its life, no place among those that are asked
    And rbee worker spawn ends with 1 and says that the kernel killed it

  @FIT-03
  Scenario: The runtime cannot allocate what loading needs
    Given a worker whose model asks for more than an address space has as it is warmed up
    And a request waits for its model
    When it loads
    Then no process was killed, and the worker ended by itself and is not tried again
    And the hive says that the worker failed with "OUT_OF_MEMORY", with the amount, and the last line of its log
    And the request is answered 503 OUT_OF_MEMORY with the amounts, which names the runtime and what to do

  @SCENE-09
  Scenario: A request that takes more memory than there is costs its worker's life once, and its client hears why
    Given a ready worker whose requests take as much memory as they ask for, where 160 MiB are free
    When a request asks for 1024 MiB
    Then the kernel has killed one process, and queen and hive are the processes that they were
    And the request is answered 503 OUT_OF_MEMORY, which names oom-kill and what to do
    And the hive says that the worker failed with "oom-kill", and the last line of its log
    And the machine has the memory back, and a request that asks for little is answered by the worker's next life

  @SCENE-09
  Scenario: A request for which the runtime cannot allocate fails alone
    Given a ready worker whose requests take as much memory as they ask for
    When a request asks for more than an address space has
    Then the request is answered 503 OUT_OF_MEMORY with the amounts, which names what to do
    And the worker is the process that it was, and a request that asks for little is answered
