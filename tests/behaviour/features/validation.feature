Feature: What comes from outside is checked at the edge, and refused by name

  Background:
    Given queen and hive are running

  @VALID-02 @VALID-03 @VALID-13 @VALID-14 @VALID-15 @VALID-18 @VALID-19 @VALID-20 @VALID-21 @VALID-23 @VALID-31
  Scenario Outline: A spawn that names what cannot be is refused by queen and hive alike
    When queen and hive are asked to spawn a worker with <field> <value>
    Then each answers 400 with the code <code> and names <named>, and repeats nothing that was sent
    And no worker is known and no command has run

    Examples:
      | field     | value                     | code                | named     |
      | worker_id | w;touch ${MARK}           | INVALID_REQUEST     | worker_id |
      | worker_id | w\|touch ${MARK}          | INVALID_REQUEST     | worker_id |
      | worker_id | $(touch ${MARK})          | INVALID_REQUEST     | worker_id |
      | worker_id | under_score               | INVALID_REQUEST     | worker_id |
      | worker_id | ../../etc/passwd          | INVALID_REQUEST     | worker_id |
      | worker_id | 65 letters                | INVALID_REQUEST     | worker_id |
      | worker_id | nothing                   | INVALID_REQUEST     | worker_id |
      | backend   | metal                     | BACKEND_UNAVAILABLE | cpu       |
      | backend   | rocm                      | BACKEND_UNAVAILABLE | cuda      |
      | device    | -1                        | INVALID_DEVICE      | device    |
      | hive_id   | bee@home                  | INVALID_REQUEST     | hive_id   |

  @VALID-04 @VALID-05
  Scenario Outline: Without the right token the queen answers 401, and rbee says where to put it
    When a person asks the queen by TCP with <token>
    Then the answer is 401 with the code <code> and its challenge
    And rbee exits with 1, names <code>, and says where the token is configured

    Examples:
      | token         | code            |
      | no token      | MISSING_API_KEY |
      | a wrong token | INVALID_API_KEY |

  @VALID-06
  Scenario: Every code is one of the list
    Then each error that is provoked has a code of the list, a sentence and details

  @VALID-29
  Scenario Outline: Who sends more that is not acceptable than 50 a second is told to come back
    When a caller sends the <daemon> bodies that are not acceptable as fast as it can
    Then each is answered 400 until more than 50 a second came, and then 429 with Retry-After
    And a request of that caller that is acceptable is served all the while
    And another caller is told why its own is not acceptable

    Examples:
      | daemon |
      | queen  |
      | hive   |

  @VALID-28
  Scenario Outline: A body over 1 MiB is refused where none so large is of use
    When the <daemon> is sent 2 MiB to <path>
    Then it answers 413 with the code PAYLOAD_TOO_LARGE

    Examples:
      | daemon | path                 |
      | queen  | /v2/workers/spawn    |
      | queen  | /v2/workers/register |
      | hive   | /v1/workers/spawn    |

  @VALID-22
  Scenario Outline: A port that is not its own keeps a daemon from starting
    When a <daemon> is started on port <port>
    Then it ends with 78 and says what ports there are

    Examples:
      | daemon | port  |
      | queen  | 80    |
      | queen  | 70000 |
      | hive   | 80    |
      | hive   | 70000 |
