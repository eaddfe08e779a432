Feature: Models that arrive by themselves
  A hive fetches models by reference, verifies them, keeps a catalogue, and starts a worker once its model is there.

  Background:
    Given a source of models, and queen and hive that fetch from it

  @FETCH-01 @CATALOG-02 @CATALOG-03 @METRIC-07
  Scenario: A model that is not here is fetched from a hub with its progress, and entered into the catalogue
    When hf:org/tiny is downloaded from the hive as a stream
    Then each event of progress has stage, bytes_downloaded, bytes_total and speed_mbps, and never goes back
    And the stream ends with complete, the local path, and [DONE]
    And the catalogue has a row with id, provider hf, reference, local_path, size_bytes and downloaded_at_unix
    And the bytes that came and those expected are counted for the model

  @CATALOG-01
  Scenario: A model that is here is not fetched again
    Given hf:org/tiny was fetched
    When hf:org/tiny is downloaded from the hive
    Then the answer is 200 with its local path
    And the source was not asked again

  @CATALOG-04 @CATALOG-05
  Scenario: The catalogue is listed by provider, with sizes from the files
    Given hf:org/tiny was fetched
    And a folder of the operator's own is catalogued
    Then ?provider=hf lists the one and ?provider=local the other, each with the bytes of its files

  @FETCH-01
  Scenario: rbee shows how far a download is, and its end
    Given the source is slow
    When a person pulls hf:org/tiny
    Then it exits with 0 and prints the local path
    And it said how far it was

  @FETCH-02 @FETCH-03 @VALID-01
  Scenario Outline: What a source refuses, or no source could have, ends with a hint
    When a person pulls <reference>
    Then it exits with 1 and says "<hint>"

    Examples:
      | reference     | hint                |
      | hf:org/none   | check the reference |
      | hf:org/gated  | HF_TOKEN            |
      | garbage       | hf:org/repo         |

  @FETCH-05 @RECOVER-03
  Scenario: A connection that is reset at two fifths is resumed by range after 100 ms
    Given the source resets the weights at 40 percent, once
    When a person pulls hf:org/tiny
    Then it exits with 0 and prints the local path
    And it said that try 2 of 6 follows in 0.1 s
    And the second request of the weights had a Range from where the first ended

  @FETCH-05 @FETCH-10
  Scenario: Six interruptions end it, each one shown
    Given the source resets the weights at 1 percent, 6 times
    When a person pulls hf:org/tiny
    Then it exits with 1 and says "DOWNLOAD_FAILED"
    And it said that tries 2 to 6 follow

  @FETCH-04
  Scenario: A source that sends nothing is a timeout after six tries
    Given the source stalls, 6 times
    When a person pulls hf:org/tiny
    Then it exits with 1 and says "DOWNLOAD_TIMEOUT"
    And it said that tries 2 to 6 follow

  @FETCH-06
  Scenario: A wrong checksum deletes the file and it is fetched again
    Given the source sends wrong weights, once
    When a person pulls hf:org/tiny
    Then it exits with 0 and prints the local path
    And the second request of the weights began at their start

  @FETCH-06
  Scenario: Wrong checksums in every try end it
    Given the source sends wrong weights, 6 times
    When a person pulls hf:org/tiny
    Then it exits with 1 and says "checksum"

  @RES-06
  Scenario: The bandwidth limit is shown with the progress
    Given the hive may take 50 megabits per second
    When hf:org/tiny is downloaded from the hive as a stream
    Then each event of progress has limit_mbps 50

  @FIT-08
  Scenario: A disk without room refuses a download before it begins
    Given the hive must leave more of the disk free than there is
    When a person pulls hf:org/tiny
    Then it exits with 1 and says "rbee model rm"
    And the hive's refusal has the required, the available and the bytes to free up

  @FIT-09
  Scenario: A disk that fills up keeps no partial file
    Given the folder of models is a disk of 300 kB and the source tells no sizes
    When a person pulls hf:org/tiny
    Then it exits with 1 and says "INSUFFICIENT_DISK"
    And nothing is left in the folder of models

  @SCENE-11
  Scenario: Three clients that want the same model share one download
    Given the source is slow
    When three clients download hf:org/tiny at once
    Then all three streams end with the same local path
    And the weights were asked for once

  @E2E-03
  Scenario: A worker whose model is nowhere has it fetched, starts, and answers
    Given the source is slow
    When a worker of hf:org/tiny is spawned
    Then it is loading with the stage downloading, then ready
    And the queen answers for the model org/tiny
    And the record of the download has its duration

  @FETCH-03 @E2E-03
  Scenario: A worker whose model cannot be fetched has failed, with the reason
    When a worker of hf:org/gated is spawned
    Then it has failed with MODEL_ACCESS_DENIED as the reason

  Scenario: A worker of an operator's file that names a reference is started in the same way
    Given an operator's file names hf:org/tiny as a worker's model
    When that worker is started
    Then it is loading with the stage downloading, then ready

  @E2E-03
  Scenario: A request for a model that is defined and not here waits for it and is answered
    Given an operator's file names hf:org/tiny as a worker's model
    When a client asks the queen for the model org/tiny
    Then the answer comes once the model was fetched and its worker started

  @SCENE-11 @E2E-03
  Scenario: Ten requests at once for a model that is not here are one download and one start
    Given an operator's file names hf:org/tiny as a worker's model
    When ten clients ask the queen for the model org/tiny at once
    Then all ten are answered after one download and one start

  Scenario: A model that a worker uses is not removed
    Given a worker of hf:org/tiny is ready
    When a person removes hf:org/tiny
    Then it exits with 1 and says "MODEL_IN_USE"
    When the worker is stopped and a person removes hf:org/tiny
    Then it exits with 0 and says "freed"

  Scenario: Verifying finds a file that changed
    Given hf:org/tiny was fetched
    When a file of it changes and a person verifies hf:org/tiny
    Then it exits with 1 and says "another SHA-256"

  @RECOVER-02 @SCENE-06
  Scenario: A corrupt catalogue is kept aside and made anew, and fetching goes on
    Given hf:org/tiny was fetched
    When the catalogue is corrupted and the hive starts anew
    Then the person is told of it and the corrupt file is kept as .corrupt.backup
    And hf:org/tiny is still in the catalogue
    And another model can be fetched

  @SCENE-06
  Scenario: A disk that refuses the catalogue leaves it in memory, and fetching goes on
    When the catalogue cannot be opened and the hive starts anew
    Then the catalogue says that it is kept in memory
    And another model can be fetched

  @RECOVER-07
  Scenario: A backup of the catalogue is verified and tells how to put it back
    Given hf:org/tiny was fetched
    When a person backs the catalogue up
    Then it exits with 0 and says "install -o rbee-hive"
    And the copy holds the model

  Scenario Outline: A model is copied from one node to another through the queen
    Given another hive reports to the queen
    And hf:org/tiny was fetched
    When a person pulls hf:org/tiny to the other node with <how>
    Then it exits with 0 and prints the local path
    And the source was not asked again

    Examples:
      | how        |
      | --from bee |
      | --copy     |
