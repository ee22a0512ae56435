"""The node's HTTP API as data, shared by the node and whoever documents it."""
