"""The executor port: threads and the inline one keep the same laws."""

import asyncio

import pytest

from xsc.base.clock import InlineExecutor
from xsc.base.work import ENTERED
from xsc.node.system import ThreadExecutor


@pytest.fixture(params=[lambda: ThreadExecutor(2), InlineExecutor], ids=["threads", "inline"])
def executor(request):
    made = request.param()
    yield made
    made.close()


async def test_it_returns_what_the_function_returns(executor):
    assert await executor.run(lambda a, *, b: (a, b), 1, b=2) == (1, 2)


async def test_what_the_function_raises_passes_through(executor):
    def fail():
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await executor.run(fail)


async def test_many_at_once_are_all_done(executor):
    done = await asyncio.gather(*(executor.run(pow, 2, n) for n in range(100)))
    assert done == [2**n for n in range(100)]


async def test_what_threads_work_is_told_to_whoever_is_named(executor):
    told = []
    ENTERED.set(told.append)
    with pytest.raises(ZeroDivisionError):
        await executor.run(lambda: sum(range(10**5)) // 0)
    # What is simulated takes no time.
    assert [us > 0 for us in told] == ([True] if isinstance(executor, ThreadExecutor) else [])


async def test_closing_waits_for_what_runs():
    seen = []
    executor = ThreadExecutor(1)
    started = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def work():
        loop.call_soon_threadsafe(started.set_result, None)
        seen.append(sum(range(100_000)))

    running = asyncio.ensure_future(executor.run(work))
    await started
    executor.close()
    assert len(seen) == 1
    await running
    with pytest.raises(RuntimeError):
        await executor.run(work)
