Feature: What a start lacks, and what only slows it down
  A GPU's memory that is too small or in pieces, and disks that others keep busy.

  @RES-05
  Scenario Outline: A GPU without so much memory in one piece (the GPUs are those of a fake driver)
    Given a queen, and a node whose GPU 1 has 16384 MB, of which <used> MB are in use
    When a worker on GPU 1 fails to allocate 4096 MB at once as it loads, and a request waits for its model
    Then the request is answered 503 <code> with 4096 MB required and <there> MB available
    And the message says <hint>
    And the queen shows the worker as failed with <code>

    Examples:
      | used  | there | code            | hint                                 |
      | 11000 | 5384  | VRAM_FRAGMENTED | restart the worker                   |
      | 14000 | 2384  | VRAM_EXHAUSTED  | stop another worker on this GPU      |

  @RES-07
  Scenario Outline: Busy disks are a warning, and loading goes on
    Given the kernel says that tasks waited for disks <share> percent of the last 10 s, workers warn past 60
    When a worker is started
    Then it is ready and answers
    And its log has <warnings> warnings that the disks are busy, with the share and the limit

    Examples:
      | share | warnings |
      | 83.21 | 1        |
      | 59.99 | 0        |
