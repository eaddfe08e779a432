Feature: Tokens, configuration and records on a real systemd
  systemd hands the daemons copies of the tokens, reloads them, and keeps their records with fields.

  Background:
    Given queen and hive run as units of a real systemd

  @SECRET-04
  Scenario Outline: The credential that systemd hands to a unit is accepted, whatever makes it readable
    Then the credential <name> of <unit> has mode 0400 or the 0440 by which systemd's access list shows
    And nobody but root and the unit's own user can read it
    And the unit accepts it: GET <path> on port <port> is answered 200 with it and 401 without

    Examples:
      | unit       | name           | port | path             |
      | rbee-queen | api_token      | 8080 | /v2/workers/list |
      | rbee-hive  | hive_api_token | 9200 | /v1/workers/list |

  @SECRET-13
  Scenario: Each unit has copies of its own tokens only, and the four tokens differ
    Then the credentials of the units are exactly these:
      | unit       | credentials                                                   |
      | rbee-queen | api_token hive_api_token hive_callback_token worker_api_token |
      | rbee-hive  | hive_api_token hive_callback_token worker_api_token           |
    And the four files in /etc/credstore are root's, of mode 0600, and differ

  @AUTH-14 @AUTH-02 @AUTH-07
  Scenario: A refused token is a WARNING in the journal with identity and reason as fields
    When the queen is asked with a token that nobody knows
    Then the answer is 401
    And the journal of rbee-queen has a record of priority 4 "authentication failed" with these fields:
      | RBEE_IDENTITY  | the token's fingerprint |
      | RBEE_REASON    | unknown_token           |
      | RBEE_CODE      | INVALID_API_KEY         |
      | RBEE_COMPONENT | queen                   |
    And neither token is anywhere in the journal

  @AUTH-15 @AUTH-03
  Scenario: An accepted token is an INFO in the journal with identity and role as fields
    When the queen is asked with her token
    Then the answer is 200
    And the journal of rbee-queen has a record of priority 6 "authenticated" with these fields:
      | RBEE_IDENTITY  | the token's fingerprint |
      | RBEE_ROLE      | api                     |
      | RBEE_COMPONENT | queen                   |
    And neither token is anywhere in the journal

  @ERROR-15 @ERROR-04
  Scenario: An answer of class 5xx is an ERROR in the journal with all that links it
    When a worker that is defined with a model that cannot be loaded is asked for through the queen
    Then the answer is of class 5xx
    And the journal of rbee-queen has a record of priority 3 "request refused" with these fields:
      | RBEE_CODE            | the answer's code |
      | RBEE_COMPONENT       | queen             |
      | __REALTIME_TIMESTAMP | some time         |

  @SECRET-12
  Scenario: systemctl reload brings the token of a replaced file into force
    When /etc/credstore/rbee-queen.api_token is replaced and rbee-queen is reloaded by systemctl
    Then the queen answers the old token with 401 and the new one with 200
    And rbee-queen is still in the same life
    And the journal says that it reloaded and has neither value

  @CONFIG-03
  Scenario: systemctl reload puts limits, log level and tokens in force without a restart
    When hive.yaml gets "limits: {log_lines: 5}" and "log_level: warning", a new hive_api_token is put down, and rbee-hive is reloaded by systemctl
    Then the hive refuses to read 6 lines of a log and knows the new token
    And an authenticated request leaves no INFO record while a refused one leaves a WARNING
    And rbee-hive is still in the same life

  @CONFIG-03
  Scenario: A bad file leaves the old configuration in force, and journal and status say so
    When queen.yaml gets the line "log_level: louder" and rbee-queen is reloaded by systemctl
    Then the status of rbee-queen says "reload refused" and names log_level
    And the journal says that the old configuration stays in force
    And rbee-queen is still in the same life
    When queen.yaml is mended and rbee-queen is reloaded by systemctl
    Then the status of rbee-queen says "1 hive, "

  @CONFIG-07
  Scenario: The shipped examples are a working configuration
    When the shipped examples lie in /etc/rbee
    Then rbee-queen, rbee-hive and rbee-worker check them and say good
    And queen and hive run with them, and the worker that they define gets ready

  @METRIC-06
  Scenario: The memory of each GPU is a gauge (of a fake GPU: this machine has none)
    Given the hive's machine has a fake driver library with two fake GPUs
    Then rbee_hive_gpu_memory_total_bytes is 8 GiB of GPU 0 and 16 GiB of GPU 1
    And rbee_hive_gpu_memory_used_bytes follows what the fake GPUs have in use

  @ENGINE-02
  Scenario: A hive's engine is one row of facts (of a fake GPU: this machine has none)
    Given the hive's machine has a fake driver library with two fake GPUs
    When the hive is asked for its capabilities
    Then the row has its version, what became of each provider, the driver and the time of the probe
    And it lists both GPUs with name, memory and compute capability
    When it is asked again, and then told to look anew
    Then the time of the probe stays, and then moves on

  @METRIC-09
  Scenario Outline: The record of a crash carries systemd's result
    Given a worker runs with a watchdog of 2 seconds
    When its process gets <signal>
    Then the hive's crash counter for its model grows
    And the journal of rbee-hive has a record of it with RBEE_RESULT=<result>

    Examples:
      | signal | result   |
      | KILL   | signal   |
      | STOP   | watchdog |
