Feature: The command of one user, installed by pip
  Nothing of root's is needed to talk to an rbee that is elsewhere.

  @CLI-01
  Scenario: pip installs the command, which works and writes a configuration of the user's own
    Given pip has installed the source into a folder of the user's own
    Then rbee version, run from that folder, says the version of the source
    And rbee config init writes ~/.config/rbee/config.yaml, which rbee config show reads
