Feature: A changed declaration whose worker has no room beside the former one
  The memory of the node is the test's own: its hive tells what the workers that run leave of it.

  @MODE-03
  Scenario: For availability the last worker goes on, and who looks is told what is lacking
    Given a node with memory for 1 worker, and a queen that keeps 1 there
    And clients ask without a pause
    When the declaration asks for other slots, and for availability
    Then rbee model list tells what is lacking, and that the former worker goes on
    And the former worker serves, and no request failed

  @MODE-03
  Scenario: For progress the last worker ends first, and who asks meanwhile waits for the new one
    Given a node with memory for 1 worker, and a queen that keeps 1 there
    And clients ask without a pause
    When the declaration asks for other slots, and for progress
    Then 1 worker of the changed declaration serves, and no former one
    And an alert told that one ended first while none served beside it
    And no request failed

  @MODE-03
  Scenario: For availability a worker ends first while another one serves
    Given a node with memory for 2 workers, and a queen that keeps 2 there
    And clients ask without a pause
    When the declaration asks for other slots, and for availability
    Then 2 workers of the changed declaration serve, and no former one
    And an alert told that one ended first while another one served
    And no request failed
