Feature: A fleet that one file describes
  rbee apply tells the difference between the file and the machines, brings it about, and finds nothing to do afterwards.

  Background:
    Given a queen's machine, two bare machines with sshd, and a file that describes them as far and near

  @NODE-05
  Scenario: A dry run tells every step and takes none
    When the file is applied with --dry-run
    Then the command ends with 0 and says:
      | words                                          |
      | + add far: host root@                          |
      | ~ set up far: hive.labels ["fast-disk"]        |
      | + add near: host root@                         |
      | ~ declare org/talk: labels ["fast-disk"]       |
      | 5 to do, 0 to remove: nothing was changed      |
    And no node is in the registry, and nothing of ours is on far or near

  @NODE-05 @FIT-04
  Scenario: From two bare machines to an answer of a declared model with one command
    When the file is applied
    Then the command ends with 0 and says:
      | words                        |
      | ok add far,                  |
      | ok set up far,               |
      | ok set up near,              |
      | ok declare org/talk,         |
      | done: the fleet is as        |
    And far and near are online, and a request for org/talk is answered by far, which has the label

  Scenario: A second run changes nothing
    When the file is applied again
    Then the command ends with 0 and says:
      | words                              |
      | nothing to change: the fleet is as |
    And no file of far is another than before, and its hive was not restarted

  Scenario: A changed label is the only difference
    When the file gives near the label fast-disk, and it is applied with --dry-run
    Then the command ends with 0 and says:
      | words                                           |
      | ~ set up near: hive.labels [] -> ["fast-disk"]  |
      | 1 to do, 0 to remove                            |
    When the file is applied
    Then the command ends with 0 and says:
      | words             |
      | ok set up near,   |
    And the hive of near reports the label fast-disk
    When the file is applied again
    Then the command ends with 0 and says:
      | words              |
      | nothing to change  |

  @CATALOG-02 @CATALOG-03
  Scenario: Models lie on the disks that the file names, and go from node to node
    When the file names a model of a source on the network for far, and it is applied with --dry-run
    Then the command ends with 0 and says:
      | words                                  |
      | + fetch http://                        |
      | ~ pin http://                          |
      | 2 to do, 0 to remove                   |
    And the source has not been asked
    When the file is applied
    Then the command ends with 0 and says:
      | words             |
      | ok fetch http://  |
      | ok pin http://    |
    And the model is whole and pinned on the disk of far alone
    When the file names it for all nodes, and it is applied
    Then the command ends with 0 and says:
      | words                   |
      | ok fetch http://        |
      | done: the fleet is as   |
    And the model is whole and pinned on the disks of far and near
    And the source has sent each of its files once
    When the file is applied again
    Then the command ends with 0 and says:
      | words                              |
      | nothing to change: the fleet is as |

  Scenario: A model that the file names no longer leaves the disks when that was agreed to
    When the file names no model, and it is applied with --prune
    Then the command ends with 1 and says:
      | words                                             |
      | nothing was changed, because 2 would be removed   |
    When the file is applied with --prune --yes
    Then the command ends with 0 and says:
      | words               |
      | ok remove model     |
      | MiB freed           |
    And the model is on no disk, and that of the operator is

  Scenario: A machine that cannot be reached stops no other, and the next run goes on from there
    When the sshd of near is stopped, the file gives far and near the label spare, and it is applied
    Then the command ends with 1 and says:
      | words                                    |
      | ! look at near: 10.                      |
      | ok set up far,                           |
      | 1 of 2 steps are left undone: look at near |
    And the hive of far reports the label spare
    When the sshd of near is started, and the file is applied
    Then the command ends with 0 and says:
      | words            |
      | ok set up near,  |
    And the hive of near reports the label spare

  Scenario: What the file does not name is removed only when that was asked for and agreed to
    When the file names near no longer, and it is applied
    Then the command ends with 0 and says:
      | words              |
      | nothing to change  |
    When the file is applied with --prune
    Then the command ends with 1 and says:
      | words                                             |
      | - remove node near                                |
      | nothing was changed, because 1 would be removed   |
    When the file is applied with --prune --yes
    Then the command ends with 0 and says:
      | words                     |
      | ok remove node near,      |
    And near is not in the registry

  Scenario: A newer source upgrades a node, and restarts its worker while another one answers
    Given two workers of far serve the operator's model
    And the queen's machine has newer packages already
    When the file takes far's packages from a line of apt that has newer ones, and it is applied with --dry-run
    Then the command ends with 0 and says:
      | words                                       |
      | ~ update far: packages                      |
      | ~ set up far: rbee-common 0.1.0             |
      | ~ restart one on far: version 0.1.0 -> 0.99 |
      | ~ restart two on far: version 0.1.0 -> 0.99 |
      | 0 to remove: nothing was changed            |
    And no file of far is another than before, and its hive was not restarted
    When the file is applied while clients ask the model
    Then the command ends with 0 and says:
      | words               |
      | ok set up far,      |
      | ok restart one on   |
      | ok restart two on   |
    And the hive of far and its workers are of the newer version, and every request was answered
    When the file is applied again
    Then the command ends with 0 and says:
      | words                              |
      | nothing to change: the fleet is as |

  Scenario: A source that is older than what is installed is refused
    When the file takes far's packages from the first folder again, and it is applied
    Then the command ends with 1 and says:
      | words                                                 |
      | ! set up far: the source is older than what runs      |
      | rbee node install far --packages                      |
    And the hive of far and its workers are of the newer version
