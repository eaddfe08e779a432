Feature: A fleet: nodes that the command sets up over SSH, and that speak mutual TLS with the queen
  From a bare Debian machine with sshd to an answer of a model on it: rbee node add, rbee node install, rbee infer.

  Background:
    Given a queen's machine, and a bare machine that was added, installed and asked as the node far

  @NODE-05 @CLI-04
  Scenario: An installation brings packages, credentials and configuration, and shows each step with its time
    Then each step was shown with its time: ssh, packages, credentials, configuration, start, first report
    And the model's answer came from far, whose worker is at an https address of far
    And far is online with the version of its package
    And tokens and the key on far are readable by whom they are for, and by nobody else
    And the queen has alerted nobody

  @NODE-05
  Scenario: A second run changes nothing
    When rbee node install far is run again
    Then it says that nothing was to change
    And no file of far is another than before, and its hive was not restarted

  @HIVEPRE-01 @HIVEPRE-02 @HIVEPRE-03 @HIVEPRE-04 @SSHPRE-06
  Scenario: The check of a node tells what its machine and its hive are
    When rbee node check far is run with --json
    Then these checks are good:
      | check     | found                      |
      | package   | rbee-hive 0.1.0            |
      | hive      | healthy, API v1            |
      | version   | >=0.1.0                    |
      | backends  | cpu                        |
      | resources | GiB of memory free         |
      | disk      | GiB free                   |

  @CLI-07
  Scenario: The health of a node's workers
    When rbee workers health --node far is run
    Then it shows talk of far, which answers

  Scenario: Who has no certificate of the queen's authority gets nowhere
    Then on far curl reaches the queen's listener for nodes with far's certificate, and not without
    And on far curl does not reach the worker without a certificate
    And the hive of far does not answer plain HTTP on its address

  Scenario: A node's credentials speak for that node alone, and a person is told
    When somebody with all of far's credentials reports a worker of another hive
    Then the answer is 403
    When somebody with all of far's credentials reports a worker of far at the queen's address
    Then the answer is 400
    And the queen has alerted 2 times more

  Scenario: An expired certificate gets nowhere and a person is told; a wrong token neither, and the log has it
    When far shows the queen a certificate of her authority that expired yesterday
    Then nothing was answered, and the queen has alerted that a certificate has expired
    When far reports to the queen with its own certificate and a token that is none of hers
    Then the answer is 401
    And the queen's log says so

  @RACE-01
  Scenario: A hive id that is alive elsewhere is not enrolled a second time
    When another machine is to take the place of far, whose hive is alive
    Then the queen answers 409: alive at another address

  Scenario: Credentials are rotated under load and nobody notices
    When rbee node rotate far is run while the model is asked all along
    Then every request was answered
    And tokens, key and certificate of far are others
    And the former token of far's hive is not accepted

  @CLI-09
  Scenario: The log of a node is followed until Ctrl+C
    When rbee logs --node far --follow is run and interrupted
    Then it has shown the journal of far's hive and ends with 130

  Scenario: A node's hive is stopped and started from afar, and its workers go on
    When rbee node stop far is run
    Then systemd on far says that rbee-hive is inactive, and the worker goes on
    When rbee node start far is run
    Then far is online again and the model answers

  Scenario: A node that lost its power comes back by itself
    When far loses its power and is switched on again
    Then far is online again and the model answers

  @CLI-04
  Scenario: On a trusted network a node speaks in clear, and its packages may come from a line of apt
    When a bare machine is added as near with TLS off and installed from a line of apt
    Then near is online, its worker is at an http address of near, and the model answers from near

  @NODE-07
  Scenario: A node that is purged has nothing of ours left
    When rbee node remove near --purge is run
    Then near has no package, credential, user or unit of ours, and is not in the registry
