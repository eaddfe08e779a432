Feature: What a machine's engine can really run
  The hive says what starts on its machine, not what is listed; the queen finds nodes by it.

  @ENGINE-01
  Scenario: Execution providers are tried, not read from a list
    Given a queen and a hive
    When the hive is asked for its capabilities
    Then it names the version of ONNX Runtime that workers here run on
    And a provider is good where a session of it starts in another process here as well, and only there
    And a provider that does not start has the loader's own words, though the runtime lists it

  @ENGINE-03
  Scenario Outline: Nodes are found by what they can run (the GPUs are fakes: this machine has none)
    Given the nodes bee, a real hive, and forge and mill, hives of the test's own with two and one fake GPUs
    And the node dark, whose hive has GPUs as well and is silent
    When nodes with <capability> are asked for
    Then the queen and rbee node list show <nodes> and no other

    Examples:
      | capability | nodes            |
      | cuda       | forge, mill      |
      | cuda:1     | forge            |
      | cuda:2     | none             |
      | cpu        | bee, forge, mill |

  @ENGINE-03
  Scenario: A capability that nothing can have is refused by name
    Given a queen and a hive
    When nodes with metal are asked for
    Then the queen answers 400 and names capability, and rbee node list ends with 1
