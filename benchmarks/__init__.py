"""Measures XSC beside limits and rivals taken in the same run: `make bench`."""
