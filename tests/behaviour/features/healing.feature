Feature: Workers of a declared model are where and what its declaration says, whatever happens to nodes and declarations

  Background:
    Given a source of models, and a queen with two hives that keeps a worker of a model of it

  @RECOVER-04 @SCENE-04 @MODE-03
  Scenario: A node that loses power has its worker started on the other one, and who asks meanwhile is answered
    When the node of the worker loses power
    Then a client that asks at once is answered by a worker of the other node
    And when the node is back nothing more is started

  @MODE-03
  Scenario: A changed declaration has its workers replaced while requests go on
    Given clients ask without a pause
    When the declaration asks for other slots
    Then a worker of the changed declaration serves, and the former one is gone
    And no request failed

  @MODE-03
  Scenario: A changed declaration whose worker does not come up leaves the former one serving
    Given clients ask without a pause
    When the declaration names a revision that its source does not have
    Then rbee model list and rbee status say why the declaration is not in force
    And the former worker serves, and no request failed

  @MODE-03
  Scenario: A model that left the configuration while the queen did not run has its workers ended once she is back
    Given a worker of an operator's own runs beside it
    When the queen is stopped, the model is taken out of her configuration, and she is started again
    Then the worker of the model is stopped, and its hive has forgotten it
    And the operator's own worker runs on
