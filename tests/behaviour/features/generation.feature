Feature: What a request may ask of a text
  OpenAI's own client, through the queen, to a worker: every parameter is honoured or refused by its name.

  Scenario: A seed repeats its text beside other requests, and choices differ
    When the client asks for three choices with a seed, while others ask as well
    Then each choice is the text that its own seed gives alone
    And a stream of the same request brings the same texts, each with its number

  Scenario: Log probabilities come with the tokens
    When the client asks for log probabilities, whole and streamed
    Then their tokens make the text, and each is the best of those told beside it

  Scenario: Answers keep to a schema, a regular expression or a choice
    When the client asks at a high temperature for a JSON object of a schema, whole and streamed
    Then each answer is an object that the schema describes
    And an answer to a regular expression matches it

  Scenario: Tools are called in OpenAI's shape
    Given a tool that the client offers
    When the client demands a call, whole and streamed
    Then it gets the same call with arguments that fit the tool's schema
    And the model goes on once the client sends the tool's result

  @VALID-31
  Scenario: What cannot be honoured is refused by name
    Then the client gets its own error for a bad value of each parameter, with the parameter's name

  @FETCH-08
  Scenario: The model's own files bound and end the text
    When the client sends a prompt that is longer than the model's context
    Then it is refused with both lengths
    And a text that is left alone ends at the model's end of sequence, and goes on past it with ignore_eos

  Scenario: A person measures a model
    When a person runs rbee bench with 1 and 4 clients
    Then the table has a row for each, with every request done
