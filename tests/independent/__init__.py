"""Second implementations of rules: they share no code with `xsc`."""
