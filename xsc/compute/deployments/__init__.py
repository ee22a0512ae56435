"""Deployed programs that answer HTTP requests."""
