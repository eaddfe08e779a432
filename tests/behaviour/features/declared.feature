Feature: Models are declared by a file, without a hand on the queen's machine
  rbee apply declares over the queen's API; what queen.yaml declares is its own.

  Background:
    Given a queen whose configuration declares the model house

  Scenario: Declared by a file, known at once, and unchanged by a second run
    Given a file that declares the model chat with 4 slots
    When it is applied with --dry-run
    Then it ends with 0 and says "~ declare chat: reference hf:org/chat"
    And the queen lists house
    When it is applied
    Then it ends with 0 and says "ok declare chat"
    And the queen lists chat and house
    When it is applied
    Then it ends with 0 and says "nothing to change"
    When the queen is started anew
    Then the queen lists chat and house

  Scenario: A changed number is the only difference
    Given a file that declares the model chat with 4 slots
    And it was applied
    And a file that declares the model chat with 8 slots
    When it is applied
    Then it ends with 0 and says "~ declare chat: slots"
    When it is applied with --json
    Then it ends with 0 and prints no step

  Scenario: What queen.yaml declares otherwise is an obstacle that is told, and the rest is done
    Given a file that declares the models chat and house
    When it is applied with --dry-run
    Then it ends with 1 and says "! declare house: queen.yaml declares it otherwise and wins"
    When it is applied
    Then it ends with 1 and says "1 of 2 steps are left undone: declare house"
    And the queen lists chat and house

  Scenario: A machine that does not answer hinders no declaration, and is told of
    Given a file that declares the model chat and names a machine that refuses every connection
    When it is applied
    Then it ends with 1 and says "! add gone"
    And it says "2 of 3 steps are left undone: add gone, set up gone"
    And the queen lists chat and house

  Scenario: A declaration that the file does not name goes only when that was asked for and agreed to
    Given a file that declares the model chat with 4 slots
    And it was applied
    And a file that declares nothing
    When it is applied
    Then it ends with 0 and says "nothing to change"
    When it is applied with --prune
    Then it ends with 1 and says "nothing was changed, because 1 would be removed"
    When it is applied with --prune --yes
    Then it ends with 0 and says "ok take back chat"
    And the queen lists house

  Scenario: A key that nobody knows is refused with its line before anything is asked
    Given a file with a key that nobody knows in its third line
    When it is applied
    Then it ends with 1 and says "fleet.yaml:3: declared.chat.colour: unknown field 'colour'"
