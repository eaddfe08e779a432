Feature: What was sent is not sent back
  An error says what is wrong with a request, not what was in it: a payload may be a secret, or an attack on who reads it.

  @VALID-30
  Scenario Outline: A payload that is refused is repeated neither in the answer nor in a log
    Given queen, hive and worker are running
    When the <daemon> is sent payloads that it must refuse, each with a secret and a script in it
    Then each is refused with a code, a sentence and no word of the payload
    And no log has a word of the payload

    Examples:
      | daemon |
      | queen  |
      | hive   |
      | worker |
