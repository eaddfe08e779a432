Feature: The right worker starts on the right machine
  A model that the queen's configuration declares needs no worker: the first request has one placed, fetched and started.

  Background:
    Given a source of models, and a queen with two hives that declares a model of it

  @FLOW-01 @STACK-07 @E2E-03 @FIT-01 @FIT-04
  Scenario: A request for a declared model that no hive has is placed, fetched, started and answered
    Given a worker runs on bee already
    When a client asks for the declared model
    Then it is answered by a worker of far, where fewer run
    And the model was fetched once, and is in the catalogue of far only
    And rbee why tells where it was placed and what was looked at

  @STACK-07
  Scenario: Ten that ask at once cause one download and one start
    When 10 clients ask for the declared model at once
    Then all are answered by one worker
    And every file of the model was fetched once

  @FIT-01 @MODE-03
  Scenario: A worker that is spawned without a node goes where its model is
    Given far has the model
    When a person spawns a worker of it without a node
    Then the worker runs on far
    And the source was not asked again

  @FIT-02 @ERROR-12 @ERROR-13
  Scenario: What fits nowhere is refused with what is needed and what there is
    Given far has a folder with a model larger than its memory
    When a client asks for the model that is too large
    Then the answer is 503 INSUFFICIENT_RAM with required_ram_mb, available_ram_mb and model_ref
    And the node is named with its numbers
    And a person who spawns it exits with 1 and reads the numbers and what to do

  @FIT-01
  Scenario: The next start of a model rests on what its worker took at the last one, also by a new queen
    Given a worker of the declared model answered and was stopped
    And the queen was started anew
    When a client asks for the declared model
    Then its need is a tenth above what the worker had when it became ready
    And rbee why tells that it was measured at the last start

  @FIT-02
  Scenario: A worker that a person defined is not started by a request where it does not fit
    Given far has a folder with a model larger than its memory
    And a worker of it is defined on far
    When a client asks for the model of that worker
    Then the answer is 503 INSUFFICIENT_RAM with required_ram_mb, available_ram_mb and model_ref
    And the node is named with its numbers
    And the worker of it has never begun to start

  @ENGINE-03 @FIT-06 @FIT-07
  Scenario: A backend that no node has is refused, never replaced
    When a client asks for a model that is declared for cuda
    Then the answer is 400 BACKEND_UNAVAILABLE that names both nodes

  @MODE-03
  Scenario: Workers that are to be kept run without a request, and a new queen starts none twice
    When the declaration asks for 2 workers at least
    Then one runs on each node, though nobody asked
    And a queen that starts anew leaves it at these

  @FIT-04
  Scenario: A declared model runs on a node that has its labels
    When a client asks for a model that is declared for the label fast-disk
    Then it is answered by a worker of far, which has the label
