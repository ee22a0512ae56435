"""Decides which jobs a pool takes, and which of those that wait is run next.

A killed job is billed for its run time, perhaps 1 ms, but replacing its worker costs 200 ms.
A customer whose jobs end many workers is therefore refused for a while. A module that ended a
worker process itself is refused longer for that customer: it would end the next one as well,
and the customer pays for one such end. Times are of the steady clock.

Cleared rates come first. Customers with jobs for now share spare time by deficit round robin. Each
has a balance in fuel. While it has some, its turn comes round; a job takes from it what it used,
once that is known. Where nobody who waits has any left, all are given more, by the weights of their
tiers. So whoever runs long jobs has fewer turns, and what was used beyond a balance is remembered
until that is made up for. With one queue for all, a customer with 32 long runs would block the
others.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from xsc.base import errors, limits, tally, units
from xsc.compute.wasm.sandbox import Job
from xsc.terms.quote import Tier

T = TypeVar("T")
WEIGHTS: Final[dict[Tier, int]] = {"mutual": 4, "one_way": 2, "open": 1}


class FairQueue(Generic[T]):
    """Items that wait: `take` serves the customers in turns, first in, first out for each."""

    def __init__(self) -> None:
        self._queues: OrderedDict[bytes, deque[T]] = OrderedDict()
        """No queue is empty; the first is that of the customer that was served longest ago."""
        self._weights: dict[bytes, int] = {}
        self._balances: dict[bytes, int] = {}
        """In fuel, while anybody waits."""

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def add(self, customer: bytes, weight: int, item: T, *, first: bool = False) -> None:
        """Put an item at the end of a customer's queue, or at its head."""
        queue = self._queues.setdefault(customer, deque())
        if first:
            queue.appendleft(item)
        else:
            queue.append(item)
        self._weights[customer] = weight
        self._balances.setdefault(customer, weight * limits.RUN_FUEL)

    def first(self) -> T:
        """Return the next item; the queue must not be empty."""
        return self._queues[self._next()][0]

    def take(self) -> T:
        """Remove and return the next item; the turn passes to the next customer."""
        customer = self._next()
        item = self._queues[customer].popleft()
        self._queues.move_to_end(customer)
        self._tidy(customer)
        return item

    def drop(self, customer: bytes, item: T) -> bool:
        """Remove an item; return False where it does not wait."""
        queue = self._queues.get(customer)
        if queue is None or item not in queue:
            return False
        queue.remove(item)
        self._tidy(customer)
        return True

    def clear(self) -> list[T]:
        """Remove and return all items."""
        items = [item for queue in self._queues.values() for item in queue]
        self._queues.clear()
        self._balances.clear()
        return items

    def is_wanted(self, beside: bytes) -> bool:
        """Return whether anybody waits but one customer."""
        return len(self._queues) > (beside in self._queues)

    def charge(self, customer: bytes, fuel: int) -> None:
        """Take fuel from a customer's balance; where nobody waits, nobody has a claim to more."""
        if self._queues:
            balance = self._balances.get(customer, 0)
            self._balances[customer] = balance - fuel

    def _next(self) -> bytes:
        if all(self._balances[customer] <= 0 for customer in self._queues):
            self._give()
        return next(each for each in self._queues if self._balances[each] > 0)

    def _give(self) -> None:
        """Give all as many rounds as the first of those that wait need to have something."""
        share = {each: self._weights.get(each, 1) * limits.RUN_FUEL for each in self._balances}
        rounds = min(units.ceil_div(1 - self._balances[each], share[each]) for each in self._queues)
        for each, balance in list(self._balances.items()):
            self._balances[each] = balance + rounds * share[each]
            if each not in self._queues and self._balances[each] >= 0:
                del self._balances[each]
                self._weights.pop(each, None)

    def _tidy(self, customer: bytes) -> None:
        if not self._queues[customer]:
            del self._queues[customer]
        if not self._queues:
            self._balances.clear()
            self._weights.clear()


class JobQueue(Generic[T]):
    """All items that wait, and what those that run may be charged for."""

    def __init__(self) -> None:
        self._cleared: FairQueue[T] = FairQueue()
        self._spare: FairQueue[T] = FairQueue()
        self._begun_ms: dict[int, int] = {}
        """When those began, by the identity of the job, that kept others from spare time."""

    def __len__(self) -> int:
        return len(self._cleared) + len(self._spare)

    def count(self, *, cleared: bool) -> int:
        """Return how many wait, of those at cleared rates or of the others."""
        return len(self._cleared if cleared else self._spare)

    def add(self, job: Job, item: T, *, first: bool = False) -> None:
        """Append an item to its customer's queue, or put it at its head."""
        self._of(job).add(job.customer, WEIGHTS[job.tier], item, first=first)

    def drop(self, job: Job, item: T) -> bool:
        """Remove an item; return False where it does not wait."""
        return self._of(job).drop(job.customer, item)

    def next(self) -> FairQueue[T] | None:
        """Return the queue whose turn it is; None for none."""
        return self._cleared or self._spare or None

    def clear(self) -> list[T]:
        """Remove and return all items."""
        return self._cleared.clear() + self._spare.clear()

    def begun(self, job: Job, now_ms: int) -> None:
        """Note that a job begins to run: it counts where others wait for spare time."""
        if not job.cleared and self._spare.is_wanted(job.customer):
            self._begun_ms[id(job)] = now_ms

    def ended(self, job: Job, fuel: int | None, now_ms: int) -> None:
        """Charge a customer for a job that has ended; of fuel that is not known, for its time."""
        began_ms = self._begun_ms.pop(id(job), None)
        if began_ms is not None:
            used = (now_ms - began_ms) * limits.MILLISECOND_FUEL if fuel is None else fuel
            self._spare.charge(job.customer, used + limits.RUN_FUEL)

    def _of(self, job: Job) -> FairQueue[T]:
        return self._cleared if job.cleared else self._spare


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
        self._losses = tally.Tally(WORKERS_LOST_A_PEER_MAX, WORKERS_LOST_MS)
        self._lost_by = tally.Tally(1, limits.MODULE_LOST_MS)
        """Customers with the modules that ended a worker process."""

    def enter(self, job: Job, now_ms: int, wait_s: Callable[[], int]) -> None:
        """Count a job; each return needs one `leave`.

        Args:
            job: the job.
            now_ms: the time now.
            wait_s: returns how long the waiting jobs take.

        Raises:
            RateLimited: the customer has too many jobs, or lost too many workers.
            SandboxFailed: the module ended a worker process a short while ago.
        """
        if self._jobs[job.customer] >= limits.JOBS_QUEUED_A_PEER_MAX:
            raise errors.RateLimited(
                f"{limits.JOBS_QUEUED_A_PEER_MAX} jobs of this customer wait already",
                retry_after_s=wait_s(),
            )
        if wait_ms := self._losses.wait_ms(job.customer, now_ms):
            raise errors.RateLimited(
                f"{WORKERS_LOST_A_PEER_MAX} runs of this customer ended with their worker "
                f"within {WORKERS_LOST_MS // 1000} s: they were cancelled, or had to be killed",
                retry_after_s=-(-wait_ms // 1000),
            )
        if not job.service and self._lost_by.wait_ms(job.customer + job.module_hash, now_ms):
            raise errors.SandboxFailed(
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
