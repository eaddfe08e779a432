Feature: Configuration
  A typed YAML file, over it the environment, over it the flags; what is wrong is named by file, line and field.

  @CONFIG-01 @CONFIG-02
  Scenario Outline: One record names the file, what overrode it and how long it took, and holds no secret
    When the <daemon> is started
    Then it is ready
    And exactly one record "configuration read" names the file <file>, overrides=none and a duration
    And no token is in its log

    Examples:
      | daemon | file              |
      | queen  | queen.yaml        |
      | hive   | hive.yaml         |
      | worker | workers/tiny.yaml |

  @CONFIG-01
  Scenario: Without a file the built-in defaults are named
    When the hive is started without a file but with --callback-url "" and --log-level debug
    Then the record "configuration read" names "built-in defaults" and what overrode them

  @CONFIG-04
  Scenario Outline: The environment wins over the file, a flag over both, and the record names all sources
    When the <daemon> is started with <variable>=<value> and the flags "<flags>"
    Then it is ready
    And the record "configuration read" names the file <file> and as overrides "<overrides>"
    And the value in force is <in force>

    Examples:
      | daemon | file       | variable           | value                  | flags                                 | overrides                                                                          | in force               |
      | queen  | queen.yaml | QUEEN_PUBLIC_URL   | http://127.0.0.1:18080 |                                       | public_url from QUEEN_PUBLIC_URL                                                   | http://127.0.0.1:18080 |
      | queen  | queen.yaml | QUEEN_PUBLIC_URL   | http://127.0.0.1:18080 | --public-url http://127.0.0.1:18081   | public_url from QUEEN_PUBLIC_URL, public_url from --public-url                     | http://127.0.0.1:18081 |
      | hive   | hive.yaml  | QUEEN_CALLBACK_URL | http://127.0.0.1:18082 |                                       | queen.callback_url from QUEEN_CALLBACK_URL                                         | http://127.0.0.1:18082 |
      | hive   | hive.yaml  | QUEEN_CALLBACK_URL | http://127.0.0.1:18082 | --callback-url http://127.0.0.1:18083 | queen.callback_url from QUEEN_CALLBACK_URL, queen.callback_url from --callback-url | http://127.0.0.1:18083 |

  @CONFIG-03
  Scenario: SIGHUP changes the queen's limits
    Given queen, hive and a worker are running
    And the worker is held back from new work
    When requests.admission_timeout_s of the queen becomes 0.2 and she is told to reload
    Then a request for its model is refused within a few seconds
    And the queen is the same process as before

  @CONFIG-03
  Scenario: SIGHUP changes the hive's limits
    Given queen, hive and a worker are running
    When limits.log_lines of the hive becomes 5 and it is told to reload
    Then reading 6 lines of the worker's log is answered 400 and reading 5 is answered 200
    And the hive is the same process as before

  @CONFIG-03
  Scenario Outline: SIGHUP changes the log level
    Given queen, hive and a worker are running
    Then an authenticated request to the <daemon> leaves an INFO record
    When log_level of the <daemon> becomes warning and SIGHUP is sent to it
    Then authenticated requests to the <daemon> soon leave no INFO record
    When log_level of the <daemon> becomes info and it is told to reload
    Then an authenticated request to the <daemon> leaves an INFO record
    And the <daemon> is the same process as before

    Examples:
      | daemon |
      | queen  |
      | hive   |
      | worker |

  @CONFIG-03
  Scenario Outline: A bad file leaves the old configuration in force and the log says so
    Given queen, hive and a worker are running
    When the file of the <daemon> gets the line "<line>" and it is told to reload
    Then the log of the <daemon> says that the reload is refused, names the file, its line and "<field>"
    And the <daemon> is the same process as before
    And the <daemon> still answers with the tokens that it had

    Examples:
      | daemon | line                   | field          |
      | queen  | log_level: louder      | log_level      |
      | queen  | no_such_key: 1         | no_such_key    |
      | queen  | aliases: [not, a, map] | aliases        |
      | queen  | "unfinished            | not valid YAML |
      | hive   | idle_limit_s: -1       | idle_limit_s   |
      | hive   | limits: 7              | limits         |
      | worker | model_roots: 7         | model_roots    |

  @CONFIG-05
  Scenario Outline: A wrong type is named by file, line, field and the type expected
    Given the file <file> says "<line>"
    When the <daemon> is started
    Then it ends with exit code 78 and the event startup_failed
    And the record names the line in the file <file>, the field <field> and "<expected>"
    And it has error_kind=config_validation_failed

    Examples:
      | daemon | file              | line                                  | field                        | expected                |
      | queen  | queen.yaml        | listen: {port: eight}                 | listen.port                  | Expected `int`          |
      | queen  | queen.yaml        | requests: {admission_timeout_s: soon} | requests.admission_timeout_s | Expected `float`        |
      | queen  | queen.yaml        | requests: {stall_s: 0}                | requests.stall_s             | Expected `float` > 0    |
      | hive   | hive.yaml         | heartbeat_interval_s: [5]             | heartbeat_interval_s         | Expected `float`        |
      | hive   | hive.yaml         | queen: {required: 3}                  | queen.required               | Expected `bool`         |
      | hive   | hive.yaml         | listen: {port: 80}                    | listen.port                  | Expected `int` >= 1024  |
      | hive   | hive.yaml         | listen: {port: 70000}                 | listen.port                  | Expected `int` <= 65535 |
      | worker | worker.yaml       | admin_users: {a: b}                   | admin_users                  | Expected `array`        |
      | worker | workers/tiny.yaml | slots: many                           | slots                        | Expected `int`          |

  @CONFIG-06
  Scenario: A required field that is missing stops the start
    Given the definition of the worker names no model
    When the worker is started
    Then it ends with exit code 78 and the event startup_failed
    And the record names the line in the file workers/tiny.yaml, the field model and "required and missing"

  @CONFIG-06
  Scenario Outline: A file that is named and missing stops the start
    When the <daemon> is started with a file that is not there
    Then it ends with exit code 78 and the event startup_failed
    And the record says "the file is missing"

    Examples:
      | daemon |
      | queen  |
      | hive   |

  @CONFIG-07
  Scenario Outline: The shipped example has every key of its configuration, with its default, under a comment
    Then docs/examples/<file> has every key that <struct> knows, each with its default
    And each of its sections and keys stands under a comment

    Examples:
      | file                | struct                                |
      | queen.yaml          | rbee.queen.config.QueenConfig         |
      | hive.yaml           | rbee.hive.config.HiveConfig           |
      | worker.yaml         | rbee.worker.definition.WorkerDefaults |
      | workers/minilm.yaml | rbee.wire.worker_spec.WorkerSpec      |

  @CONFIG-07
  Scenario Outline: The daemon itself says that its shipped example is good
    When rbee-<daemon> checks docs/examples/<file>
    Then it exits 0 and says good

    Examples:
      | daemon | file       |
      | queen  | queen.yaml |
      | hive   | hive.yaml  |

  @CONFIG-08
  Scenario Outline: Load and reloads of one life share a correlation id, and another life has another
    When the <daemon> is started
    Then it is ready
    When it is told to reload, once with a good file and once with a bad one
    Then the records of the load and of both reloads have the same correlation id
    And a second life of the <daemon> has another one

    Examples:
      | daemon |
      | queen  |
      | hive   |
      | worker |

  @CONFIG-09
  Scenario Outline: A secret that was written into a configuration by mistake is not repeated
    Given the file <file> says "<line>"
    When the <daemon> is started
    Then it ends with exit code 78 and the event startup_failed
    And the record names "<field>"
    And "sk-0123456789" is nowhere in its log

    Examples:
      | daemon | file              | line                                                          | field              |
      | queen  | queen.yaml        | api_key: sk-0123456789                                        | api_key            |
      | queen  | queen.yaml        | tokens: {bearer_token: sk-0123456789}                         | bearer_token       |
      | queen  | queen.yaml        | tokens: {api_token: [sk-0123456789]}                          | tokens.api_token   |
      | queen  | queen.yaml        | public_url: "http://user:sk-0123456789@queen:8080"            | public_url         |
      | hive   | hive.yaml         | bearer_token: sk-0123456789                                   | bearer_token       |
      | hive   | hive.yaml         | queen: {callback_url: "http://user:sk-0123456789@queen:8080"} | queen.callback_url |
      | hive   | hive.yaml         | queen: {callback_url: "http://queen:8080/?key=sk-0123456789"} | queen.callback_url |
      | worker | worker.yaml       | api_key: sk-0123456789                                        | api_key            |
      | worker | workers/tiny.yaml | bearer_token: sk-0123456789                                   | bearer_token       |

  @CONFIG-09
  Scenario: A secret in the environment is not repeated either
    When the hive is started with QUEEN_CALLBACK_URL=http://user:sk-0123456789@queen:8080
    Then it ends with exit code 78 and the event startup_failed
    And "sk-0123456789" is nowhere in its log
