"""WebAssembly programs, run metered in sandbox processes, for ourselves and for peers."""
