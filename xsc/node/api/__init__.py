"""The HTTP servers of a node: the loopback API and deployed programs."""
