Feature: A fleet of three nodes, over its days
  Nodes are set up from bare machines by three commands; models come by themselves; a node that goes away is done without,
  and comes back without a person.

  Background:
    Given a queen's machine that declares models of a source on the network, and three bare machines that became nodes

  @NODE-05 @CLI-04
  Scenario: From bare machines to an answer of a model that no node had, with three commands
    Then rbee node add, rbee node install and rbee infer told the time of each step
    And the answer came from a node whose worker is at an https address of that node

  @NODE-05
  Scenario: A second run of the same commands changes nothing
    When every node is installed again
    Then it says of each that nothing was to change
    And no hive was restarted, and the source was not asked

  @FLOW-01 @STACK-07 @SCENE-11
  Scenario: Ten clients ask at once for a model that no node has
    When 10 clients ask for the crowd's model at once
    Then all were answered by one worker
    And the source sent each file of the model once, and one worker was started on all machines

  @SCENE-04 @RECOVER-04
  Scenario: A node whose cable is out is done without, and is back by itself
    Given the model runs on two nodes, and clients ask for it all along
    When the cable of one of them is taken out
    Then the other one answers, and no request waits for the silent one any more
    And the queen says that the node is silent and its worker stale
    When the cable is put back
    Then the node is online by itself, and its worker serves in the life that it had
    And every request was answered

  Scenario: A node that is rebooted is done without, and is back by itself
    Given the model runs on two nodes, and clients ask for it all along
    When one of them is rebooted
    Then the node is online by itself, and two nodes serve the model
    And every request was answered

  Scenario: A node that loses its power is done without, and is back by itself
    Given the model runs on two nodes, and clients ask for it all along
    When one of them loses its power and is switched on again
    Then the node is online by itself, and two nodes serve the model
    And every request was answered

  @SCENE-05
  Scenario: A hive that does not reach its worker has it begun anew, and no request fails
    Given the model runs on two nodes, and clients ask for it all along
    When the socket of one of them's worker is gone, and the connection that its hive had
    Then the queen hears that the worker is unhealthy, and then that it serves in another life
    And the hive says that it restarted the worker, which was unhealthy
    And every request was answered

  @MODE-02
  Scenario: A call that is ephemeral starts what does not run, and stops just that in order
    Given the queen, the hives of one and two and every worker are stopped
    When rbee infer --ephemeral asks the model
    Then it exits with 0 and the model's answer, and has told in this order what it stopped: worker, hives, queen
    And nothing of it runs any more, and the hive of three was not touched

  @MODE-02
  Scenario Outline: A call that is ephemeral cleans up however it ends
    Given the queen, the hives of one and two and every worker are stopped
    When rbee infer --ephemeral <what>
    Then it exits with <code>
    And nothing of it runs any more, and the hive of three was not touched

    Examples:
      | what                                      | code |
      | asks a model of which one worker is kept  | 0    |
      | asks a model that there is not            | 1    |
      | is interrupted amid a long answer         | 130  |
      | is interrupted while its model is fetched | 130  |
