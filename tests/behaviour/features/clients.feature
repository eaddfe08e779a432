Feature: The clients of others talk to the queen unchanged, and she says where their time went

  Background:
    Given a queen with a talking, an embedding and a tensor model

  @INFER-01
  Scenario: OpenAI's asynchronous client, many at once
    When 12 of OpenAI's asynchronous clients ask at once, half of them for streams with usage
    Then each gets the same text, and the streams end with their token counts

  Scenario: OpenAI's client for vectors
    Then OpenAI's client gets vectors as base64 and as numbers, and they are the same

  Scenario: Triton's client with tensors in binary and in JSON
    Then Triton's client finds the queen live and ready, and the model and its version ready
    And it gets the same tensors in binary, in JSON and with a version
    And it is told of an unknown model

  @STACK-09
  Scenario Outline: Errors on OpenAI's routes have OpenAI's shape, whoever makes them
    When a client sends <what> to the queen's chat route
    Then it gets <status> with OpenAI's error <type> and the code <code>

    Examples:
      | what                   | status | type                  | code                  |
      | no token               | 401    | authentication_error  | MISSING_API_KEY       |
      | an unknown model       | 404    | invalid_request_error | MODEL_NOT_FOUND       |
      | no JSON                | 400    | invalid_request_error | INVALID_REQUEST       |
      | a body that is too big | 413    | invalid_request_error | PAYLOAD_TOO_LARGE     |
      | an odd parameter       | 400    | invalid_request_error | UNSUPPORTED_PARAMETER |
      | a deadline that passed | 408    | timeout_error         | REQUEST_TIMEOUT       |

  Scenario: rbee why tells where a request went
    When a client asks for an answer and keeps its correlation id
    Then its headers name the worker, the wait and the queen's own part
    And rbee why tells the steps of that request, and why its worker gets requests
    And rbee why of a name that nobody had exits with 1

  @SCENE-14
  Scenario: A thousand requests within a minute
    When 8 clients send 1000 requests for tensors over kept connections
    Then all are answered within 60 s and the queen holds nothing of them
