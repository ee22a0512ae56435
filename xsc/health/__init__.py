"""Who answers, how fast and how reliably: what probes say about peers."""
