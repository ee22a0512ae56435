"""Fixtures of real nodes."""

from __future__ import annotations

from tests.e2e.conftest import small_net

__all__ = ["small_net"]
