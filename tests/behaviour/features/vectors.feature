Feature: Embeddings, ranking and tensors
  What a model does, and in which precision, is read from its files; what it answers comes through the queen as from the
  worker itself.

  @FETCH-07 @FETCH-08
  Scenario Outline: A worker knows from the model's files what it does
    Given a worker of <model> whose definition names no task
    Then the queen lists it with the task <task>
    And the worker and the queen answer POST <route>

    Examples:
      | model            | task     | route                        |
      | all-minilm-l6-v2 | embed    | /v1/embeddings               |
      | tiny-rank        | rank     | /v1/rerank                   |
      | bee-talk         | generate | /v1/completions              |
      | tiny-tensor      | tensor   | /v2/models/tiny-tensor/infer |

  @FETCH-08
  Scenario: How long a text may be is the model's own
    Given a worker of all-minilm-l6-v2 whose definition names no task
    When a text of 300 words is embedded, and embedded again with truncate false
    Then the first is cut at 256 tokens, and the second is refused with both lengths

  Scenario: Triton's own client gets tensors through the queen
    Given a worker of tiny-tensor whose definition names no task
    When Triton's HTTP client asks the queen with binary tensors, and with JSON
    Then it gets the model's outputs either way

  @FETCH-09
  Scenario Outline: A model of any precision loads and infers
    Given an encoder whose weights are <precision>
    Then its worker states <precision> and gives the vectors of fp32, as near as <precision> can be

    Examples:
      | precision |
      | fp32      |
      | fp16      |
      | int8      |
      | int4      |
