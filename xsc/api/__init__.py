"""The node's HTTP API as data: its endpoints with their requests and answers, once for all."""
