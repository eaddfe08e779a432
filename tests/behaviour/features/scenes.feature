Feature: Scenes of a life on bare metal
  What happens to a service over its days: workers come and go, daemons restart, disks fill, and people look after it.

  @SCENE-02
  Scenario: Workers come and go, and the list is right
    Given a queen and a hive without workers
    When five workers are spawned through the queen
    And three of them are shut down
    And two more are spawned
    Then the queen lists four that are ready, each with a process of its own, and three that are stopped
    And no process runs but theirs, and each of the four answers

  @SCENE-12
  Scenario: A queen that is killed has her list back from the hives
    Given two workers are ready, and one is stopped
    When the queen is killed while the hive stands still, and started again
    Then she is another life, and lists no worker
    When the hive moves again
    Then she lists the three workers as they were, and nobody was restarted
    And a request is answered
