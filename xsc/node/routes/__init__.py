"""The endpoints of `/v1`, one module a subject of `xsc.api`."""
