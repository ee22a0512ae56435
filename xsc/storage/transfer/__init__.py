"""Moves objects between this node and hosts: put, get, resume, delete."""
