Feature: Who may call a daemon
  On TCP every route but /health and /metrics wants a Bearer token; logs name a token by its fingerprint only.

  Background:
    Given queen, hive and a worker are running

  @AUTH-01 @AUTH-08
  Scenario Outline: Each daemon refuses a caller without a token
    When GET <path> is asked of the <daemon> with no Authorization header
    Then the answer is 401 with the code MISSING_API_KEY and the reason missing_header
    And its message has the word "missing"
    And it carries the challenge Bearer
    And the <daemon> logs a WARNING "authentication failed" with reason=missing_header

    Examples:
      | daemon | path             |
      | queen  | /v2/workers/list |
      | hive   | /v1/workers/list |
      | worker | /v1/ready        |

  @AUTH-02 @AUTH-07 @AUTH-14
  Scenario Outline: A wrong token is refused and named by its fingerprint
    When GET <path> is asked of the <daemon> with a token that nobody knows
    Then the answer is 401 with the code INVALID_API_KEY and the reason unknown_token
    And the <daemon> logs a WARNING "authentication failed" with the fingerprint of that token
    And neither that token nor any token of ours is in the answer or in a log

    Examples:
      | daemon | path             |
      | queen  | /v2/workers/list |
      | hive   | /v1/workers/list |
      | worker | /v1/ready        |

  @AUTH-03 @AUTH-07 @AUTH-15
  Scenario Outline: The right token opens the door and its fingerprint is recorded
    When <method> <path> is asked of the <daemon> with its own token
    Then the status is <status>
    And the <daemon> logs an INFO "authenticated" with the fingerprint of that token
    And neither that token nor any token of ours is in the answer or in a log

    Examples:
      | daemon | method | path             | status |
      | queen  | GET    | /v2/workers/list | 200    |
      | queen  | POST   | /v2/tasks        | 202    |
      | hive   | GET    | /v1/workers/list | 200    |
      | worker | GET    | /v1/ready        | 200    |

  @AUTH-04
  Scenario: A valid and an invalid token take the same time
    When 100 requests with the right token and 100 with a wrong one take turns, five times over
    Then the typical times of the two are less than 10 % apart

  @AUTH-05
  Scenario Outline: On loopback without any token everybody is trusted, and the log says so
    Given a <daemon> on loopback with no token configured
    Then GET <path> without a token is answered 200
    And its log has a WARNING that says development mode

    Examples:
      | daemon | path             |
      | queen  | /v2/workers/list |
      | hive   | /v1/workers/list |
      | worker | /v1/ready        |

  @AUTH-06
  Scenario Outline: A public address without a token is refused at the start
    Given a <daemon> that shall listen on 0.0.0.0 with no token configured
    Then it ends with exit code 78 and says what to do
    And it never said that it was ready

    Examples:
      | daemon |
      | queen  |
      | hive   |
      | worker |

  @AUTH-06
  Scenario: A reload that takes the token of a public address away is refused
    Given a queen that listens on 0.0.0.0 with its token
    When the token is taken out of its configuration and it is told to reload
    Then the log says that the reload is refused
    And a caller without a token is still answered 401

  @AUTH-09
  Scenario: Health and metrics are open and everything else is closed
    Then these routes are open to anybody:
      | daemon | route        |
      | queen  | GET /health  |
      | queen  | GET /metrics |
      | hive   | GET /health  |
      | hive   | GET /metrics |
      | worker | GET /health  |
      | worker | GET /metrics |
    And these routes answer 401 without a token:
      | daemon | route                             |
      | queen  | GET /v1/models                    |
      | queen  | POST /v1/chat/completions         |
      | queen  | POST /v1/completions              |
      | queen  | POST /v1/embeddings               |
      | queen  | POST /v1/inference                |
      | queen  | DELETE /v1/inference/x            |
      | queen  | GET /v2                           |
      | queen  | GET /v2/health/live               |
      | queen  | GET /v2/health/ready              |
      | queen  | GET /v2/models/tiny-tensor        |
      | queen  | GET /v2/models/tiny-tensor/ready  |
      | queen  | POST /v2/models/tiny-tensor/infer |
      | queen  | POST /v2/tasks                    |
      | queen  | GET /v2/tasks/x                   |
      | queen  | GET /v2/tasks/x/events            |
      | queen  | DELETE /v2/tasks/x                |
      | queen  | POST /v2/workers/ready            |
      | queen  | POST /v2/workers/state            |
      | queen  | POST /v2/hives/bee/heartbeat      |
      | queen  | GET /v2/hives/bee/session         |
      | queen  | GET /v2/workers/list              |
      | queen  | GET /v2/workers/health            |
      | queen  | POST /v2/workers/spawn            |
      | queen  | POST /v2/workers/shutdown         |
      | queen  | POST /v2/workers/register         |
      | queen  | GET /v2/workers/bee/tiny          |
      | queen  | PATCH /v2/workers/bee/tiny        |
      | queen  | DELETE /v2/workers/bee/tiny       |
      | queen  | GET /v2/events                    |
      | queen  | GET /v2/aliases                   |
      | queen  | PUT /v2/aliases/x                 |
      | queen  | DELETE /v2/aliases/x              |
      | queen  | GET /v2/hives                     |
      | queen  | GET /v2/declarations              |
      | queen  | PUT /v2/declarations/x            |
      | queen  | DELETE /v2/declarations/x         |
      | queen  | GET /no/such/route                |
      | hive   | GET /v1/health                    |
      | hive   | GET /v1/resources                 |
      | hive   | GET /v1/capabilities              |
      | hive   | POST /v1/workers/spawn            |
      | hive   | POST /v1/workers/ready            |
      | hive   | GET /v1/workers/list              |
      | hive   | DELETE /v1/workers/tiny           |
      | hive   | POST /v1/workers/tiny/restart     |
      | hive   | GET /v1/workers/tiny/logs         |
      | hive   | GET /no/such/route                |
      | worker | GET /v1/ready                     |
      | worker | GET /v1/loading/progress          |
      | worker | POST /v1/inference                |
      | worker | DELETE /v1/inference/x            |
      | worker | GET /v1/models                    |
      | worker | POST /v1/chat/completions         |
      | worker | POST /v1/completions              |
      | worker | POST /v1/embeddings               |
      | worker | POST /v1/rerank                   |
      | worker | GET /v2                           |
      | worker | GET /v2/health/live               |
      | worker | GET /v2/health/ready              |
      | worker | GET /v2/models/tiny-tensor        |
      | worker | GET /v2/models/tiny-tensor/ready  |
      | worker | POST /v2/models/tiny-tensor/infer |
      | worker | GET /no/such/route                |
    And the worker still runs

  @AUTH-10 @AUTH-11 @AUTH-16
  Scenario Outline: Any other form of the header is refused with its reason
    When GET /v2/workers/list is asked of the queen with the header "<header>"
    Then the answer is 401 with the code INVALID_API_KEY and the reason <reason>
    And neither that token nor any token of ours is in the answer or in a log

    Examples: not a Bearer token at all
      | header             | reason         |
      | Basic dXNlcjpwYXNz | invalid_format |
      | Token {token}      | invalid_format |
      | {token}            | invalid_format |

    Examples: a Bearer token of no length
      | header  | reason      |
      | Bearer  | empty_token |
      | Bearer~ | empty_token |

    Examples: nearly right
      | header          | reason         |
      | bearer {token}  | invalid_format |
      | BEARER {token}  | invalid_format |
      | Bearer~~{token} | invalid_format |
      | Bearer{token}   | invalid_format |
      | Bearer {token}x | unknown_token  |

  @AUTH-12
  Scenario: A token with punctuation works
    Given a queen whose token is !#$%&'*+-.^_`|~:/=?@,;(){}[]<>"\
    Then GET /v2/workers/list with that token is answered 200
    And GET /v2/workers/list with that token but its last character is answered 401

  @AUTH-13
  Scenario: 50 valid and 50 invalid callers at the same time
    When 50 callers with the right token and 50 with wrong ones ask the queen at the same time
    Then each right one is answered 200 and each wrong one 401
    And all of it took less than 5 seconds

  @AUTH-17
  Scenario Outline: Every method needs a token
    When <method> <path> is asked of the queen with no Authorization header
    Then the answer is 401 with the code MISSING_API_KEY and the reason missing_header

    Examples:
      | method | path                 |
      | GET    | /v2/aliases          |
      | POST   | /v2/workers/spawn    |
      | PUT    | /v2/aliases/some     |
      | PATCH  | /v2/workers/bee/tiny |
      | DELETE | /v2/workers/bee/tiny |
      | PUT    | /v2/workers/list     |
      | PATCH  | /no/such/route       |

  @AUTH-18
  Scenario Outline: A refusal is JSON with code and message, on every daemon and whatever the caller accepts
    When <path> is asked of the <daemon> with each wrong header and with Accept <accept>
    Then every answer is 401 and JSON with a code and a message under "error"

    Examples:
      | daemon | path             | accept            |
      | queen  | /v2/workers/list | text/html         |
      | queen  | /v2/events       | text/event-stream |
      | queen  | /v1/models       | application/json  |
      | hive   | /v1/workers/list | text/html         |
      | worker | /v1/models       | text/plain        |

  @AUTH-19
  Scenario: Each hop has a token of its own, and each is recorded by its fingerprint
    When a client starts a worker and runs inference on it through the queen
    Then the queen knows the client by the fingerprint of api_token
    And the hive knows the queen by the fingerprint of hive_api_token
    And the worker knows the queen by the fingerprint of worker_api_token
    And the queen knows the hive by the fingerprint of hive_callback_token
    And the four fingerprints differ
    And neither that token nor any token of ours is in the answer or in a log

  @AUTH-19
  Scenario: The rbee command presents the queen's token to the queen
    When a person without rights on the sockets runs "rbee worker list" with the queen's URL and token file
    Then the command exits 0 and lists the worker
    And the queen logs an INFO "authenticated" with the fingerprint of that token

  @AUTH-20
  Scenario: Authentication costs less than a millisecond
    Given a queen on loopback with no token configured
    When 1000 requests with a token and 1000 to the queen without tokens take turns
    Then authentication took less than 1 ms on average and less than 5 ms at the 99th percentile
