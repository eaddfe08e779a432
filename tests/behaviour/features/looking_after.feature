Feature: Looking after workers by the command rbee
  What a person sees of the workers, and what becomes of one that is shut down.

  @CLI-06
  Scenario: Everything there is, with its state
    Given one worker is ready, one is held back, one is stopped and one has failed
    When a person runs rbee workers list
    Then it exits with 0 and shows each of the four with its state
    And with --json it shows the same as data

  @CLI-08
  Scenario: A worker that is shut down gives everything back
    Given one worker is ready, with a process that holds its model
    When a person runs rbee workers shutdown --id with its name
    Then it exits with 0 and says that the worker is stopped
    And its process is gone, and no other process holds its model
    And the queen and "rbee workers list" show it as stopped
    When a person shuts down a worker that nobody knows
    Then it exits with 1 and names the worker
