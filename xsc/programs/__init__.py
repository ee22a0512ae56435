"""Programs: documents that say which values depend on which, run in frames."""
