Feature: The GPU that a worker starts on
  The queen places by what hives tell of their GPUs. The hives and GPUs here are the tests' own: this machine has none.

  Background:
    Given a queen, and a node that tells of two GPUs and has a model of 5000 MB

  @RES-01 @FIT-04 @ENGINE-03
  Scenario: Without a device the GPU with the most memory free is taken, and logged
    Given its GPUs have 8000 and 9000 MB free
    When a worker is spawned for cuda
    Then its hive is asked for device 1
    And the queen's log has the device, what is needed and what is free

  @FIT-05
  Scenario: A device that is named and too small is refused with its numbers and what to do
    Given its GPUs have 9000 and 2000 MB free
    When a worker is spawned for cuda device 1
    Then the answer is 503 VRAM_EXHAUSTED with 6000 MB needed and 2000 there
    And the message names device 1 and what to do

  @FIT-10 @ERROR-13
  Scenario: No GPU has room
    Given its GPUs have 4000 and 3000 MB free
    When a worker is spawned for cuda
    Then the answer is 503 VRAM_EXHAUSTED with 6000 MB needed and 4000 there
    And the message names device 0 and what to do

  @RES-03
  Scenario: A GPU above 80 degrees takes no worker
    Given its GPUs have 9000 and 9000 MB free at 81 degrees
    When a worker is spawned for cuda
    Then the answer is 503 GPU_TOO_HOT with a hint when to ask again

  @RES-02
  Scenario: Memory that went since is looked at again
    Given its GPUs have 9000 and 2000 MB free
    When a worker is spawned for cpu
    And the node's memory drops to 5999 MB
    And another worker is spawned for cpu
    Then the answer is 503 INSUFFICIENT_RAM with 6000 MB needed and 5999 there
