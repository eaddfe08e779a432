Feature: The whole fleet on one screen
  rbee status and rbee top show machines, workers and what they do; top is live and leaves the terminal as it was.

  Background:
    Given a queen, a hive with the label fast-disk, and a worker of the text model that is idle

  Scenario: One look shows machines with their memory and every worker
    When rbee status is run
    Then it shows the machine with its free memory, its label and one worker, and the worker talk, idle

  Scenario: One picture for scripts has rates of what runs meanwhile
    When rbee top --once --json is run while texts are written
    Then the picture has more than 0 requests and tokens a second, and a median duration
    And the worker talk has rates of its own

  Scenario Outline: The live screen shows a worker's change by itself, and ends as it should
    When rbee top is run on a terminal, figures being asked for once a minute
    Then the screen shows talk as idle
    When the worker is stopped
    Then the screen shows talk as stopped
    When <key> is pressed
    Then it ends with <code> and the terminal is as it was before

    Examples:
      | key    | code |
      | q      | 0    |
      | Ctrl+C | 130  |

  Scenario: A queen that goes away is told of on the screen, and shown again once she is back
    When rbee top is run on a terminal
    Then the screen shows talk as idle
    When the queen is stopped
    Then the screen says: does not answer
    When the queen is started again
    Then the screen shows talk as idle, and nothing to attend to
