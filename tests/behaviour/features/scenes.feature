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

  @SCENE-07
  Scenario: The queen's database cannot be written
    Given one worker is ready, and nodes can be added
    When the queen can write no file any more
    Then a node cannot be added: 503 STORAGE_UNAVAILABLE that says what to do
    And the queen's health is degraded and names her storage
    And a request is answered, and a worker that gets ready now is heard of and asked
    When the queen can write again
    Then a node is added, and the queen's health is well

  @SCENE-05
  Scenario: A hive does not reach a worker that only looks as if it ran
    Given a hive that asks for health often, and two workers of one model, one of them outside its supervisor
    When the worker outside stands still
    Then the queen lists it as unhealthy, and as not ready for requests
    And requests are answered by the other worker alone
    When the worker outside moves again
    Then the queen lists it as idle in the life that it had, and requests are answered by it as well

  @SCENE-04
  Scenario: The queen does not reach a hive
    Given a hive whose way to and from the queen is a line of the test's own, and a worker is ready
    When the line is cut
    Then the queen says that the hive is silent, and its worker is stale
    And a request is refused with 503 that names the hive
    And a start of a worker there is refused with 503
    When the line is whole again
    Then the queen says that all is well, and the worker is idle in the life that it had
    And a request is answered, and a worker is started there

  @SCENE-15
  Scenario: Long answers take no more memory the longer they go on
    Given the worker of the talking model is ready
    When clients stream answers as long as the model can give, one after the other
    Then from the end of the first one on the worker's memory is the same at every token
    And further requests are answered, and the worker has the memory and the open files that it had
