"""Databases of these tests lie in memory."""

from tests.unit.memory import tmp_path

__all__ = ["tmp_path"]
