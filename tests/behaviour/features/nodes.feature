Feature: Machines of the fleet, reached over SSH by whoever runs rbee
  The person's own key and agent open the way; the queen keeps what was proven, and no key.

  Background:
    Given a queen, and a machine with sshd that takes the person's key

  @NODE-01 @NODE-06 @SSHPRE-01 @SSHPRE-04 @SSHPRE-05
  Scenario: A machine is added once SSH to it is proven, and is listed with what is known of it
    When the machine is added as far with its own host key's fingerprint
    Then the command ends with 0
    And it told: ok reach, ok auth, ok echo: 'test', ok latency, expected under 100 ms
    And rbee node list shows far with its host, reachable, a time, not installed
    And the queen's list has far at port 22, connected just now

  @NODE-08
  Scenario: A key that is not there is noticed before anybody is asked
    When a machine is added with the key /no/such/key while no queen is there
    Then the command ends with 1 and says: the key /no/such/key is not there

  @NODE-02 @SSHPRE-02
  Scenario: A machine that never answers is tried three times and not saved
    When an address that answers nothing is added as void within 1 s a try
    Then the command ends with 1 and says:
      | words                          |
      | try 1 of 3: nothing within 1 s |
      | try 2 of 3: nothing within 1 s |
      | try 3 of 3: nothing within 1 s |
      | SSH_UNREACHABLE                |
      | ping                           |
    And void is not in the registry

  @NODE-03 @SSHPRE-03
  Scenario: A server that refuses the key is asked once, and nothing is saved
    When the machine is added as shut with a key that it does not know
    Then the command ends with 1 and says:
      | words             |
      | SSH_AUTH_REFUSED  |
      | publickey         |
      | chmod 600         |
    And it does not say: try 1 of 3
    And shut is not in the registry

  @NODE-04
  Scenario: A machine without the hive is named as such, with the command that sets it up
    Given the machine is in the registry as far
    When rbee node check far is run
    Then the command ends with 1 and says:
      | words                      |
      | NODE_NOT_INSTALLED         |
      | rbee node install far      |

  Scenario: A queen whom no other machine reaches sets none up, and says so before anything is copied
    Given the machine is in the registry as far
    When rbee node install far --packages / is run
    Then the command ends with 1 and says:
      | words                                    |
      | public_url is a loopback address         |
    And it does not say: packages ...

  @SSHPRE-06
  Scenario: The version of rbee-hive's package is found on the machine
    Given the machine is in the registry as far
    And the machine has the package rbee-hive 0.1.0
    When rbee node check far is run
    Then it told: ok package: rbee-hive 0.1.0
    And rbee node list shows far with 0.1.0

  @NODE-09
  Scenario: A name that is taken is refused
    Given the machine is in the registry as far
    When the machine is added as far with its own host key's fingerprint
    Then the command ends with 1 and says:
      | words                |
      | rbee node update far |
      | rbee node remove far |
    And the queen answers 409 to the same request

  @NODE-07
  Scenario: A node that is removed is in no list
    Given the machine is in the registry as far
    When rbee node remove far is run
    Then the command ends with 0 and says: removed
    And far is not in the registry

  @NODE-10
  Scenario: A request that is bound to a node that nobody added names the command that adds it
    When rbee infer --model m --prompt hello --node nowhere is run
    Then the command ends with 1 and says:
      | words                  |
      | rbee node add nowhere  |

  Scenario: A host key that nobody confirmed is shown and refused
    When the machine is added as far without a fingerprint
    Then the command ends with 1 and says:
      | words            |
      | HOST_KEY_REFUSED |
      | --host-key       |
    And it names the machine's own fingerprint
    And far is not in the registry

  Scenario: A host key that known_hosts has needs no question, and another one is refused
    Given the person's known_hosts has the machine's own key
    When the machine is added as far without a fingerprint
    Then the command ends with 0
    When the person's known_hosts has another key of the machine
    And the machine is added as other with its own host key's fingerprint
    Then the command ends with 1 and says: known_hosts has another one

  Scenario: A host key that changed since it was pinned is refused
    Given the machine is in the registry as far
    When the machine's host key is another one
    And rbee node check far is run
    Then the command ends with 1 and says:
      | words                         |
      | HOST_KEY_REFUSED              |
      | another one is pinned         |
      | nothing was sent to it        |
    And the machine has its former host key again
