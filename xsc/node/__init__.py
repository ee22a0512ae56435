"""The daemon: the only place where everything meets."""
