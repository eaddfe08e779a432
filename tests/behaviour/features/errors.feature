Feature: Errors
  Every failure has a code, a sentence and a correlation id in one shape, tells nothing of the inside, and leaves the daemons up.

  @ERROR-01
  Scenario: The project's linter refuses what swallows errors or forgets tasks
    Given a module with a bare except, a swallowed exception and a task that nobody holds
    When it is checked with the project's own rules
    Then each of the sins is reported
    And the project's own code has none of them

  @ERROR-01
  Scenario: A coroutine that nobody awaits is refused by the type checker
    Given a module with a coroutine that nobody awaits
    When its types are checked with the project's own rules
    Then the missing await is reported

  @ERROR-02 @ERROR-14
  Scenario Outline: One shape and one map of statuses on every daemon
    Given queen, hive and workers are running, some of them faulty
    When the <daemon> is asked <method> <path> with <credential> and <body>
    Then the answer is <status> with the code <code>
    And its body is {error: {code, message, details, correlation_id}} and nothing else

    Examples: authentication 401 and authorisation 403
      | daemon | method | path              | credential          | body | status | code            |
      | queen  | GET    | /v2/workers/list  | no token            |      | 401    | MISSING_API_KEY |
      | hive   | GET    | /v1/workers/list  | no token            |      | 401    | MISSING_API_KEY |
      | worker | GET    | /v1/ready         | no token            |      | 401    | MISSING_API_KEY |
      | queen  | GET    | /v2/workers/list  | hive_callback_token |      | 403    | FORBIDDEN       |
      | queen  | POST   | /v2/workers/ready | api_token           | {}   | 403    | FORBIDDEN       |

    Examples: what is missing 404, and wrong methods 405
      | daemon | method | path                    | credential | body | status | code               |
      | queen  | GET    | /no/such/route          | its token  |      | 404    | NOT_FOUND          |
      | hive   | GET    | /no/such/route          | its token  |      | 404    | NOT_FOUND          |
      | worker | GET    | /no/such/route          | its token  |      | 404    | NOT_FOUND          |
      | queen  | GET    | /v2/workers/bee/nobody  | its token  |      | 404    | WORKER_NOT_FOUND   |
      | queen  | GET    | /v2/tasks/nobody        | its token  |      | 404    | TASK_NOT_FOUND     |
      | queen  | POST   | /v2/models/nobody/infer | its token  | {}   | 404    | MODEL_NOT_FOUND    |
      | hive   | DELETE | /v1/workers/nobody      | its token  |      | 404    | WORKER_NOT_FOUND   |
      | queen  | DELETE | /v2/workers/list        | its token  |      | 405    | METHOD_NOT_ALLOWED |
      | hive   | PUT    | /v1/workers/list        | its token  |      | 405    | METHOD_NOT_ALLOWED |
      | worker | PATCH  | /v1/ready               | its token  |      | 405    | METHOD_NOT_ALLOWED |

    Examples: validation 400 and 413
      | daemon | method | path                         | credential | body                                                  | status | code                    |
      | queen  | POST   | /v2/workers/spawn            | its token  | no JSON                                               | 400    | INVALID_REQUEST         |
      | queen  | POST   | /v2/workers/spawn            | its token  | {"worker_id": 7}                                      | 400    | INVALID_REQUEST         |
      | hive   | POST   | /v1/workers/spawn            | its token  | no JSON                                               | 400    | INVALID_REQUEST         |
      | hive   | POST   | /v1/workers/spawn            | its token  | {"worker_id": "w", "model_ref": "file:///etc/passwd"} | 400    | INVALID_MODEL_REFERENCE |
      | worker | POST   | /v2/models/tiny-tensor/infer | its token  | {"inputs": []}                                        | 400    | INVALID_REQUEST         |
      | hive   | POST   | /v1/workers/spawn            | its token  | 2 MiB                                                 | 413    | PAYLOAD_TOO_LARGE       |

    Examples: exhaustion 503 and internal 500
      | daemon | method | path                       | credential | body        | status | code             |
      | queen  | POST   | /v2/models/held/infer      | its token  | a tensor    | 503    | ALL_SLOTS_BUSY   |
      | queen  | POST   | /v2/models/broken/infer    | its token  | a tensor    | 503    | WORKER_FAILED    |
      | queen  | POST   | /v2/models/bad-index/infer | its token  | a bad index | 500    | INFERENCE_FAILED |

  @ERROR-02
  Scenario Outline: OpenAI's routes add OpenAI's own fields to the same code
    Given queen, hive and workers are running, some of them faulty
    When the <daemon> is asked <method> <path> with its token and <body>
    Then the answer is <status> with the code <code>
    And its body has OpenAI's type <type> and param beside the four fields of ours

    Examples:
      | daemon | method | path                 | body                                   | status | code               | type                  |
      | queen  | POST   | /v1/chat/completions | {"model": "nobody", "messages": []}    | 404    | MODEL_NOT_FOUND    | invalid_request_error |
      | queen  | POST   | /v1/embeddings       | no JSON                                | 400    | INVALID_REQUEST    | invalid_request_error |
      | worker | POST   | /v1/embeddings       | {"model": "tiny-tensor", "input": "x"} | 400    | INVALID_REQUEST    | invalid_request_error |
      | queen  | DELETE | /v1/models           |                                        | 405    | METHOD_NOT_ALLOWED | invalid_request_error |

  @ERROR-03
  Scenario: Every error has a correlation id of its own, a valid UUID, in body and header
    Given queen, hive and workers are running, some of them faulty
    When each daemon is asked 20 times for what it does not have
    Then every answer has a valid UUID as correlation_id, the same in its header, and no two are alike
    And a correlation id that the caller sent is kept, and one that is no UUID is not

  @ERROR-04
  Scenario: One correlation id links the records of all daemons that a request passed
    Given queen, hive and workers are running, some of them faulty
    When a request for inference and a request to spawn come to the queen, each with a correlation id
    Then the records of the first one in queen and worker have its correlation id
    And the records of the second one in queen and hive have its correlation id

  @ERROR-05
  Scenario: Without a database aliases are refused with 503, all else goes on, and the database is tried again
    Given a queen whose database cannot be opened
    Then setting an alias is answered 503 with the code STORAGE_UNAVAILABLE and Retry-After
    And her process runs, models are listed, and /health names the storage
    When the database can be opened again
    Then she notices by herself and says so in her log
    And setting an alias is answered 200 and it outlives a restart

  @ERROR-05
  Scenario: A database that another process holds locked is a 503 as well, until it lets go
    Given a queen whose database another process holds locked
    Then setting an alias is answered 503 with the code STORAGE_UNAVAILABLE and Retry-After
    When the other process lets the database go
    Then setting an alias is answered 200 again

  @ERROR-06 @ERROR-07 @ERROR-08 @ERROR-09
  Scenario: No error tells a token, a path, an address or a host name
    Given queen, hive and workers are running, some of them faulty
    When errors of every kind are provoked at queen, hive and worker
    Then there are at least 30 of them, with at least 12 different codes
    And none has a token in it, and a refused token is in no log but by its fingerprint
    And none has an absolute path or a home folder in it
    And none has an IP address or the name of this host in it

  @ERROR-10
  Scenario: One failed health check only counts; three in a row take the worker out
    Given a worker whose health is checked every 0.3 seconds
    When its process is halted until one health check has failed, and then goes on
    Then it was never unhealthy and still takes requests
    When its process is halted for good
    Then it is unhealthy after exactly three failed checks, and its hive replaces the process
    And the worker takes requests again

  @ERROR-11
  Scenario: 100 requests at once, half of them invalid
    Given queen, hive and workers are running, some of them faulty
    When 50 valid and 50 invalid requests for inference come at the same time
    Then each valid one is answered 200 with the right tensor and each invalid one 400
    And queen, hive and worker are the same processes as before

  @ERROR-15
  Scenario: An error that is our own is an ERROR record with all that links it
    Given queen, hive and workers are running, some of them faulty
    When the queen is asked POST /v2/models/broken/infer with its token and a tensor
    Then the log of the queen has an ERROR record with a time, the component, the code and the correlation id
