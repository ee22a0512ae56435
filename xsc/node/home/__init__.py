"""The home directory of a node: files, databases, backups."""
