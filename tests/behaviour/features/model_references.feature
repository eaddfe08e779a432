Feature: Model references from outside
  A reference is one of the accepted forms, or it is refused with 400 before anything is done with it.

  Background:
    Given queen and hive are running

  @VALID-01 @VALID-16
  Scenario Outline: The accepted forms are accepted
    When <reference> is given as a model
    Then no route refuses it for its form

    Examples:
      | reference                           |
      | hf:org/repo                         |
      | hf:org/repo@main:onnx/model_q4.onnx |
      | https://models.example/folder/      |

  @VALID-07 @VALID-08 @VALID-09 @VALID-16 @VALID-17 @VALID-24 @VALID-25 @VALID-27
  Scenario Outline: <what> is refused with 400, not shown again, and nothing happens
    When <what> is given as a model
    Then every route answers 400 with the accepted forms and without the reference
    And no log line is split or has it
    And the catalogue is as it was

    Examples:
      | what                    |
      | a newline               |
      | an ANSI escape          |
      | a NUL byte              |
      | garbage                 |
      | a shell's command       |
      | an injection of SQL     |
      | a script tag            |
      | an emoji                |
      | a URL with a password   |
      | an encoded path upwards |

  @VALID-10 @VALID-11 @VALID-12
  Scenario Outline: A folder that leads out of the model roots is refused with 400
    When <what> is given as a model
    Then the hive's routes answer 400 without the reference
    And the catalogue is as it was

    Examples:
      | what                       |
      | a path upwards             |
      | a folder outside the roots |
      | a link to a folder         |

  @VALID-26
  Scenario: A thousand random references crash nothing
    When a thousand random references are given
    Then each was answered with 400, none was shown again, and the hive still answers
