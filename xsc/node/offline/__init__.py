"""Work without a running node: verify, re-execute, check and diagnose."""
