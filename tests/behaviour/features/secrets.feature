Feature: Tokens in files and credentials
  A token file is one line that its owner alone can read; its value never leaves the process but in the header it is for.

  @SECRET-01 @SECRET-10
  Scenario Outline: A file of mode 0600 or 0400 is accepted, and its value is not in the log
    Given the token file of the <daemon> has mode <mode>
    When the <daemon> is started
    Then it is ready
    And a caller with that token is answered 200
    And the value of the token is not in its log

    Examples:
      | daemon | mode |
      | queen  | 0600 |
      | queen  | 0400 |
      | hive   | 0600 |
      | worker | 0600 |

  @SECRET-02 @SECRET-03 @SECRET-10
  Scenario Outline: A file that others could read is refused with the mode found and the mode expected
    Given the token file of the <daemon> has mode <mode>
    When the <daemon> is started
    Then it ends with exit code 78
    And the log names the file, <mode> as found and 0600 as expected
    And the value of the token is not in its log

    Examples:
      | daemon | mode |
      | queen  | 0644 |
      | queen  | 0640 |
      | queen  | 0604 |
      | hive   | 0644 |
      | hive   | 0640 |
      | worker | 0644 |
      | worker | 0640 |

  @SECRET-07 @SECRET-10
  Scenario Outline: A missing file fails the start and says what makes it
    Given the token file of the <daemon> is missing
    When the <daemon> is started
    Then it ends with exit code 78
    And the log names the file and says "rbee credentials init"

    Examples:
      | daemon |
      | queen  |
      | hive   |
      | worker |

  @SECRET-08 @SECRET-10
  Scenario Outline: A file that cannot be read fails the start
    Given the token file of the <daemon> has mode 0000
    When the <daemon> is started by a user who may not override modes
    Then it ends with exit code 78
    And the log names the file and says "cannot be read"
    And the value of the token is not in its log

    Examples:
      | daemon |
      | queen  |
      | hive   |
      | worker |

  @SECRET-08
  Scenario: Mode 0000 is refused to root as well
    Given the token file of the queen has mode 0000
    When the queen is started
    Then it ends with exit code 78
    And the log names the file, 0000 as found and 0600 as expected

  @SECRET-10 @SECRET-15 @SECRET-16 @SECRET-17
  Scenario Outline: A file that does not hold exactly one line of text is refused
    Given the token file of the <daemon> holds <content>
    When the <daemon> is started
    Then it ends with exit code 78
    And the log names the file and says "<reason>"
    And no line of the file is in its log

    Examples: more than one line
      | daemon | content                       | reason             |
      | queen  | first-half-1{LF}second-half-2 | more than one line |
      | hive   | first-half-1{LF}second-half-2 | more than one line |
      | worker | first-half-1{LF}second-half-2 | more than one line |
      | queen  | first-half-1{LF}{LF}          | more than one line |

    Examples: nothing
      | daemon | content   | reason   |
      | queen  | {NOTHING} | is empty |
      | hive   | {NOTHING} | is empty |
      | worker | {NOTHING} | is empty |
      | queen  | {LF}      | is empty |

    Examples: white space
      | daemon | content                   | reason   |
      | queen  | {SPACE}{SPACE}{SPACE}{LF} | is empty |
      | hive   | {SPACE}{TAB}{SPACE}       | is empty |
      | worker | {TAB}{LF}                 | is empty |

  @SECRET-14
  Scenario Outline: A trailing newline is not part of the token
    Given the token file of the <daemon> holds <content>
    When the <daemon> is started
    Then it is ready
    And a caller with the token "plain-token-with-newline" is answered 200

    Examples:
      | daemon | content                          |
      | queen  | plain-token-with-newline{LF}     |
      | queen  | plain-token-with-newline         |
      | queen  | plain-token-with-newline{CR}{LF} |
      | hive   | plain-token-with-newline{LF}     |
      | worker | plain-token-with-newline{LF}     |

  @SECRET-05
  Scenario: A secret shows itself as its fingerprint in reprs and in tracebacks with local variables
    Given a secret read from a file as the daemons read it
    When an exception passes a frame that holds it, and its traceback is written with every local variable
    Then the traceback has its fingerprint and not its value
    And neither its repr, its str nor a format of it has the value, and it cannot be pickled

  @SECRET-05
  Scenario: What cannot be done is documented and not claimed
    Then docs/security.md says that Python cannot wipe a token from memory
    And no text of the project claims that a secret is zeroized

  @SECRET-05 @SECRET-09
  Scenario: After 100 requests at log level debug no token is in a log or in a file but its own
    Given queen, hive and a worker run at log level debug
    When 100 requests come, half of them with a wrong token, and one of them fails inside a worker
    Then no token is in the log of queen, hive or worker
    And no token is in any file but the token files
    And no token is in the arguments or the environment of a process

  @SECRET-11
  Scenario: The time of a refusal does not tell how much of a token was right
    Given queen, hive and a worker run at log level debug
    When wrong tokens that differ in the first character, in the last one, and in length are tried in turn
    Then the typical times of any two are less than 10 % apart

  @SECRET-12
  Scenario Outline: SIGHUP brings a new token into force without a restart
    Given queen, hive and a worker run at log level debug
    When the token of the <daemon> is replaced and SIGHUP is sent to it
    Then callers of the <daemon> with the old token are answered 401 and with the new one 200
    And the <daemon> is the same process as before
    And its log says that it reloaded and has neither value

    Examples:
      | daemon |
      | queen  |
      | hive   |
      | worker |

  @SECRET-12
  Scenario: The queen presents the tokens that a reload brought
    Given queen, hive and a worker run at log level debug
    When worker_api_token is replaced and queen, hive and worker are told to reload
    Then inference through the queen works

  @SECRET-12
  Scenario: A hive whose queen alone read the new token says once what to do, is calm, and recovers by its reload
    Given queen, hive and a worker run at log level debug
    When hive_callback_token is replaced and the queen is told to reload
    Then the hive writes one ALERT that says: systemctl reload rbee-hive
    And in the next 4 s the queen refuses at most 3 requests of the hive
    When the hive is told to reload
    Then the hive is healthy again, with its worker known to the queen
    And the hive has written no second ALERT

  @SECRET-12
  Scenario: A bad token file leaves the old token in force
    Given queen, hive and a worker run at log level debug
    When the token file of the queen is made readable to all and SIGHUP is sent to it
    Then the log says that the reload is refused and names the file
    And callers of the queen with the old token are still answered 200

  @SECRET-13
  Scenario: rbee credentials init makes four files with different tokens and shows none
    When "rbee credentials init" is run twice on an empty folder
    Then it exits 0 both times
    And there are four files of mode 0600, each with a token of its own
    And none of the tokens was printed, and the second run changed nothing

  @SECRET-13
  Scenario: The token of one hop opens no other
    Given queen, hive and a worker run at log level debug
    Then each token opens only the door that it is for:
      | token               | GET /v2/aliases of queen | GET /v2/hives/x/session of queen | GET /v1/workers/list of hive | GET /v1/ready of worker |
      | api_token           | 200                      | 403                              | 401                          | 401                     |
      | hive_callback_token | 403                      | 200                              | 401                          | 401                     |
      | hive_api_token      | 401                      | 401                              | 200                          | 401                     |
      | worker_api_token    | 401                      | 401                              | 401                          | 200                     |
