"""Decides which jobs a pool takes: bounds a customer's jobs and the worker processes it loses.

A killed job is billed for its run time, perhaps 1 ms, but replacing its worker costs 200 ms.
A customer whose jobs end many workers is therefore refused for a while. A module that ended a
worker process itself is refused longer for that customer: it would end the next one as well,
and the customer pays for one such end. Times are of the steady clock.
"""

from __future__ import annotations

from collections import Counter

from xsc.base.errors import RateLimited, SandboxFailed
from xsc.base.limits import JOBS_QUEUED_A_PEER_MAX, MODULE_LOST_MS
from xsc.base.tally import Tally
from xsc.compute.wasm.sandbox import Job

WORKERS_LOST_A_PEER_MAX = 20
"""Runs of one customer, within WORKERS_LOST_MS, that may end with their worker."""
WORKERS_LOST_MS = 60_000


class Admission:
    """Counts the jobs and the lost workers of each customer.

    Args:
        own: the customer that may lose any number of workers.
    """

    def __init__(self, own: bytes) -> None:
        self._own = own
        self._jobs: Counter[bytes] = Counter()
        self._losses = Tally(WORKERS_LOST_A_PEER_MAX, WORKERS_LOST_MS)
        self._lost_by = Tally(1, MODULE_LOST_MS)
        """Customers with the modules that ended a worker process."""

    def enter(self, job: Job, now_ms: int, wait_s: int) -> None:
        """Count a job; each return needs one `leave`.

        Args:
            job: the job.
            now_ms: the time now.
            wait_s: how long the waiting jobs take.

        Raises:
            RateLimited: the customer has too many jobs, or lost too many workers.
            SandboxFailed: the module ended a worker process a short while ago.
        """
        if self._jobs[job.customer] >= JOBS_QUEUED_A_PEER_MAX:
            raise RateLimited(
                f"{JOBS_QUEUED_A_PEER_MAX} jobs of this customer wait already",
                retry_after_s=wait_s,
            )
        if wait_ms := self._losses.wait_ms(job.customer, now_ms):
            raise RateLimited(
                f"{WORKERS_LOST_A_PEER_MAX} runs of this customer ended with their worker "
                f"within {WORKERS_LOST_MS // 1000} s: they were cancelled, or had to be killed",
                retry_after_s=-(-wait_ms // 1000),
            )
        if not job.service and self._lost_by.wait_ms(job.customer + job.module_hash, now_ms):
            raise SandboxFailed(
                "the last run of this module ended with its worker process, a short while ago",
                hint="run it on another node, or mend it",
            )
        self._jobs[job.customer] += 1

    def leave(self, job: Job) -> None:
        """Stop counting a job."""
        self._jobs[job.customer] -= 1
        if not self._jobs[job.customer]:
            del self._jobs[job.customer]

    def note_killed(self, job: Job, now_ms: int) -> None:
        """Count a worker that was killed because of a job."""
        if job.customer != self._own:
            self._losses.note(job.customer, now_ms)

    def note_lost(self, job: Job, now_ms: int) -> None:
        """Count a worker process that ended by itself during a job."""
        self.note_killed(job, now_ms)
        if not job.service and job.customer != self._own:
            self._lost_by.note(job.customer + job.module_hash, now_ms)
