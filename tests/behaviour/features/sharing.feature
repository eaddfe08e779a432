Feature: How requests share workers
  What comes is spread by the work there is, shared fairly between clients, and told honestly what it waits for.

  @SCENE-01
  Scenario: Two hives with two workers each share ten requests
    Given two hives with two workers each serve the talking model
    When ten clients ask for it in the same moment
    Then each gets its whole answer, and every worker answered two or three of them

  @SCENE-10
  Scenario: Ten workers register at once
    Given a queen, and ten workers of a hive of the test's own
    When all ten are told to be ready in the same moment
    Then the queen lists ten workers, each once, and all of them idle

  Scenario: A client with many requests does not hold up another
    Given the talking model has one slot, and two clients have tokens with names
    When one client asks twelve times at once, and then the other asks once
    Then the other has its answer while most of the twelve still wait
    And every one of them is answered

  Scenario: A client is held to the limit of its token
    Given the talking model has one slot, and a client may have two requests at once
    When that client asks twelve times at once
    Then some are answered, and the others get 429 with Retry-After and the limit that they met

  @RECOVER-04
  Scenario: A request for a model on a silent node
    Given a queen and a hive with short intervals, and the talking model is ready
    When the hive stands still until its worker is stale
    Then a request without a deadline gets 503 that names the node, within the grace and with Retry-After
    And a request with a deadline is answered once the hive moves again

  Scenario: A conversation stays with the worker that has its beginning
    Given two workers serve the talking model
    When five conversations have two turns each
    Then the second turn of each is answered by the worker of the first
    And the queen counts five prompts whose beginning was found

  Scenario: Who does not wait for a cold model is told when it will be ready
    Given a model that takes 2 s to load, which was loaded before and is stopped
    When a client asks for it and does not want to wait
    Then it gets 503 MODEL_LOADING with the node and an estimate of a few seconds
    And after the time of Retry-After the model answers
