Feature: Metrics
  Queen, hive and worker count what they do for Prometheus; no label is unbounded, and scraping changes nothing.

  Background:
    Given queen, hive and a worker are running

  @METRIC-01 @METRIC-02
  Scenario Outline: /metrics is Prometheus text with HELP, TYPE and legal names
    When /metrics of the <daemon> is read without a token
    Then the status is 200 and the content type is Prometheus text
    And every sample belongs to a family with HELP and TYPE, and every name is legal

    Examples:
      | daemon |
      | queen  |
      | hive   |
      | worker |

  @METRIC-03
  Scenario: The hive's workers are counted by state
    When a second worker is started and stopped
    Then rbee_hive_workers has one worker idle and one stopped
    And every state that a worker can report has a sample

  @METRIC-04 @METRIC-05 @METRIC-10
  Scenario: Every request is counted once, with its outcome and its error
    Given the queen's counters of requests are noted
    When 7 requests succeed and 5 are refused as invalid and 3 name a model that nobody has
    Then queen_rbee_requests_total grew by exactly 15
    And queen_rbee_request_duration_seconds counted exactly 7 with outcome ok and 8 with outcome error for that route
    And its sum grew by a plausible time
    And queen_rbee_errors_total grew by exactly 5 with the worker's code and 3 with MODEL_NOT_FOUND
    And the HTTP counters of the queen and of the worker fit these figures exactly

  @METRIC-08
  Scenario: Health checks are counted by their result
    Then rbee_hive_health_checks_total grows for result healthy
    And it has a sample for result unhealthy

  @METRIC-09
  Scenario: A crash is counted for its model, and the record says how it ended
    When the process of a second worker is killed
    Then rbee_hive_worker_crashes_total of its model grows by exactly 1
    And the hive's record of it has its result and its signal

  @METRIC-11
  Scenario Outline: Scraping changes no counter but its own
    When /metrics of the <daemon> is read three times in a row while nothing else asks
    Then only the counters of the route /metrics itself changed

    Examples:
      | daemon |
      | queen  |
      | hive   |
      | worker |

  @METRIC-12
  Scenario: A correlation id is in logs, errors, events and exemplars, and never a label
    When requests with correlation ids of their own succeed and fail
    Then none of the ids is in the metrics of queen, hive or worker
    And each of the ids is in the log of the queen and in its answer
    And the event stream of a request names its correlation id
    And a scraper that asks the queen or the worker for OpenMetrics finds one as exemplar

  @METRIC-13
  Scenario: A token that callers put where a name belongs becomes no label
    When a client puts its token into the path, the query, the model's name and the correlation id
    Then the queen writes the token into no metric and no record

  @METRIC-13
  Scenario: A token that an operator made a name is shown as [REDACTED]
    When a worker that is named like hive_api_token, and its model too, is started and killed
    Then rbee_hive_worker_crashes_total has the label model="[REDACTED]"
    And the hive writes the token into no metric and no record
    And the hive's log says [REDACTED] in its place
