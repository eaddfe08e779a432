Feature: Certificates that count no longer
  What a node was given to speak with is useless once the node was removed, wherever it is shown.

  Scenario: The certificate of a removed node is refused with an alert, and other nodes are told
    Given a queen with the nodes near and far, each with its credentials
    When the node far is removed
    Then far's certificate gets no connection to the queen, and she alerts: certificate revoked
    And near reports as before, and is handed a list by which far is refused there too
    And the queen's log has node.remove of who did it

  Scenario: A removed node is refused after a restart of the queen too
    Given a queen with the nodes near and far, each with its credentials
    When the node far is removed
    And the queen is stopped and started
    Then far's certificate gets no connection to the queen, and she alerts: certificate revoked
    And near reports as before, and is handed a list by which far is refused there too
