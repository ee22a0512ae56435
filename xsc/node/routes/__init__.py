"""The endpoints of `/v1`, one module a subsystem; each gives its list of routes."""
