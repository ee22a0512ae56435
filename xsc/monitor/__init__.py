"""What a node says of itself while it runs: measures, metrics, alerts and a history."""
