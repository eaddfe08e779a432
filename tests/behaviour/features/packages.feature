Feature: The Debian packages and the command on a machine that apt has set up
  One command installs everything; what the machine lacks is said by name, with the package that brings it.

  Background:
    Given a machine on which apt has installed rbee from a signed repository

  @CLI-02
  Scenario: Everything is in place after apt install, and the doctor agrees
    Then these paths are there:
      | path                          |
      | /etc/rbee/queen.yaml          |
      | /etc/rbee/hive.yaml           |
      | /etc/rbee/worker.yaml         |
      | /etc/rbee/workers             |
      | /var/lib/rbee/models          |
      | /usr/share/rbee/alerts.yaml   |
      | /usr/share/man/man1/rbee.1.gz |
    And the units rbee-queen rbee-hive rbee.target are enabled and active
    And rbee doctor exits 0 and every line begins with ok or warn

  @CLI-02
  Scenario: The doctor names what is missing and what to do, and exits 1
    When the token rbee.worker_api_token is taken away and rbee-hive is stopped
    Then rbee doctor exits 1 with these lines:
      | line                                                                     |
      | /etc/credstore/rbee.worker_api_token is missing                          |
      | next: rbee credentials init, then systemctl restart rbee-queen rbee-hive |
      | rbee-hive.service is inactive                                            |
      | next: systemctl enable --now rbee-hive.service                           |
    And what was taken away is put back

  @ENGINE-05 @ENGINE-06
  Scenario: A worker on a GPU of a machine without CUDA fails with the library and its package
    When a worker with backend cuda is started
    Then its start fails, and systemctl status names the library that cannot be loaded and the package to install

  @FIT-07
  Scenario: A GPU that is asked of a machine without a driver is refused with the package and what there is instead
    When a worker is spawned by rbee with backend cuda
    Then it exits 1, names the package nvidia-open and the backend cpu, and no worker is there

  @ENGINE-07
  Scenario: A worker of another version than its hive is refused by apt
    When apt is asked for rbee-worker of a higher version beside rbee-hive of this one
    Then apt refuses: rbee-hive depends on rbee-common of its own version

  @ENGINE-07
  Scenario: A machine without rbee-worker refuses to start one, with the apt command
    When rbee-worker is removed
    Then rbee worker spawn exits 1 and says: apt install rbee-worker
    And rbee doctor says: apt install rbee-worker

  @CLI-01
  Scenario: A user writes a configuration of their own and is not let overwrite it
    When an ordinary user runs rbee config init
    Then ~/.config/rbee/config.yaml of that user is valid and rbee config show names it
    And a second rbee config init exits 1 and leaves the file as it is

  @CLI-03
  Scenario: A flag wins over RBEE_CONFIG, over the user's file, over the system's
    Given four addresses: by flag, by RBEE_CONFIG, in the user's file, in the system's
    Then the address in force, as each is taken away, is that of the flag, RBEE_CONFIG, the user, the system
