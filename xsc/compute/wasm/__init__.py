"""One run of a WebAssembly module: engine, WASI, values, limits and code."""
