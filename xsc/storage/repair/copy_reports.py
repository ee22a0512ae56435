"""Reports of custodians that keep copies of an own object, and which may delete one.

A report is a reason to look at the object and nothing else. A custodian may delete
one copy after each look that found every column good, under leases of this node,
and read all of them.
"""

from __future__ import annotations

from collections.abc import Collection

from xsc.base.tally import Tally

REPORTS_AN_OBJECT_MAX = 16
"""How often within REPORTS_MS an owner reads all of an object because a peer reports copies."""
REPORTS_MS = 24 * 3_600_000


class CopyReports:
    """Keeps in memory which custodians reported copies of which objects."""

    def __init__(self) -> None:
        self._reports: dict[bytes, dict[bytes, bool]] = {}
        """By object and custodian: whether it may delete one of its copies."""
        self._counted = Tally(REPORTS_AN_OBJECT_MAX, REPORTS_MS)

    def __len__(self) -> int:
        return len(self._reports)

    def take_permission(self, ref: bytes, custodian: bytes) -> bool:
        """Return whether a custodian may delete one copy now; the permission is used by that."""
        reports = self._reports.get(ref, {})
        if reports.get(custodian):
            del reports[custodian]
            return True
        return False

    def note(self, ref: bytes, custodian: bytes, now_ms: int) -> bool:
        """Note a report; return whether the object is to be looked at because of it.

        Each such look reads the whole object, so that their number is limited.
        """
        reports = self._reports.setdefault(ref, {})
        if custodian in reports or self._counted.wait_ms(ref + custodian, now_ms):
            return False
        self._counted.note(ref + custodian, now_ms)
        reports[custodian] = False
        return True

    def is_waiting(self, ref: bytes) -> bool:
        """Say whether a custodian waits for a look at the object."""
        return False in self._reports.get(ref, {}).values()

    def permit(self, ref: bytes) -> None:
        """Let each custodian that reported copies of an object delete one."""
        self._reports[ref] = dict.fromkeys(self._reports[ref], True)

    def forget_others(self, refs: Collection[bytes]) -> None:
        """Forget the reports about all other objects."""
        for ref in self._reports.keys() - set(refs):
            del self._reports[ref]
