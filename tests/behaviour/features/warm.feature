Feature: A declared model is kept warm in the hours that its declaration names, and goes to zero at other times

  @MODE-03
  Scenario: A worker is there when the window opens, stays while it is open, and goes when it is over
    Given a queen with a hive, and a declared model whose window opens in some seconds
    Then no worker of it runs, and rbee model list says from when one is kept
    And a worker of it is ready once the window is open, though nobody asked
    And it stays for longer than its idle limit, and rbee why says until when
    When the window closes
    Then the worker ends, because it is idle
    And a client that asks is answered by another one
