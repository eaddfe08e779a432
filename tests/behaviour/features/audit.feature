Feature: The audit log
  Queen and hive write down who did what, in a chain of hashes that shows whether somebody changed it later.

  @AUDIT-01
  Scenario: A start is in both logs, with who asked for it and one correlation id
    Given queen, hive and a worker are running, and everything is audited
    When a client asks the queen to start a worker of tiny-tensor
    Then the queen's log has worker.spawn of the client's fingerprint, with the worker, its model and its node
    And the hive's log has worker.spawn of the same correlation id, by the token that the queen presented

  @AUDIT-02 @AUDIT-09
  Scenario: Who was let in and who was refused is named by a fingerprint
    Given queen, hive and a worker are running, and everything is audited
    When a client asks with its token, with a strange one, and with none
    Then the queen's log has auth.success and auth.failure with fingerprints and reasons
    And no token of this rbee, and not the strange one, is in any audit log

  @AUDIT-03 @AUDIT-05
  Scenario: Every entry has its fields and the hash of the one before
    Given queen, hive and a worker are running, and everything is audited
    Then every entry of both logs has timestamp, event_type, actor, details, previous_hash and entry_hash
    And each log begins after 64 zeros and every hash follows from what the entry says and the hash before
    And rbee audit verify finds both logs whole

  @AUDIT-04
  Scenario: An entry that was edited is named, and those after it are flagged
    Given queen, hive and a worker are running, and everything is audited
    When the third entry of a copy of the queen's log is edited
    Then rbee audit verify ends with 1, names entry 3 as changed, and flags every later one

  @AUDIT-08
  Scenario Outline: An inference is three entries of one correlation id
    Given queen, hive and a worker are running, and everything is audited
    When a client asks <model> for an inference by <route>
    Then the queen's log has inference.start, worker.assigned and inference.complete of its correlation id

    Examples:
      | model       | route                          |
      | tiny-tensor | /v2/models/tiny-tensor/infer   |
      | tiny-tensor | the long way, in parts         |

  @AUDIT-02
  Scenario: Without being asked for, callers that are let in and inference are not written
    Given a queen with the audit log as it comes
    When a client asks with its token, with a strange one, and with none
    Then the queen's log has auth.failure and no auth.success

  Scenario: A reload is in the log, with what it changed
    Given a queen with the audit log as it comes
    When her configuration is read again with another token and a declared model
    Then the queen's log has config.reload, credential.change with both fingerprints, and model.declare

  @AUDIT-06
  Scenario: A file is rotated at 10 MB and the chain goes on in the next one
    Given a queen whose audit log has 9999 kB
    When callers are refused until the log is rotated
    Then the old file has the time behind its name and the new one goes on with its chain

  @AUDIT-07
  Scenario: At 95 of 100 MB there is a warning, and the queen goes on
    Given a queen whose audit log has 95100 kB
    Then she warns that the log has used 95 % of its room
    And she serves, and nothing was removed

  @AUDIT-07
  Scenario: At 99 of 100 MB the oldest file goes, and an entry says so
    Given a queen whose audit log has 99100 kB
    Then she tells of an error and removes the oldest file
    And she serves, and rbee audit verify finds the log whole

  @AUDIT-10
  Scenario: A restart goes on with the file and its chain, whatever the end was like
    Given a queen with the audit log as it comes
    When she is stopped and started, and killed in the middle of an entry and started
    Then the log has all earlier entries, says that the end was torn, and is whole
