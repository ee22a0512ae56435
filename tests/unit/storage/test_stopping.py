"""Tasks that are stopped are over when that returns, whatever comes meanwhile."""

import asyncio

import pytest

from tests.settle import turns
from xsc.storage.transfer.host_client import stop_all, together


async def slow_to_end(begun):
    try:
        begun.set()
        await asyncio.Event().wait()
    finally:
        await turns(5)


async def fails():
    raise ValueError("no")


async def test_they_are_over_also_where_the_waiting_is_cancelled():
    begun = [asyncio.Event() for _ in range(3)]
    tasks = [asyncio.create_task(slow_to_end(event)) for event in begun]
    for event in begun:
        await event.wait()
    stopping = asyncio.create_task(stop_all(tasks))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert all(task.done() for task in tasks)


async def test_the_first_that_fails_stops_the_others_and_is_heard():
    begun = asyncio.Event()

    async def fails_later():
        await begun.wait()
        raise ValueError("later")

    with pytest.raises(ValueError, match="later"):
        await together([slow_to_end(begun), fails_later()])


async def test_what_has_failed_before_is_asked_for():
    """Else asyncio reports it, and a warning is an error here."""
    unheard = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: unheard.append(about))
    failed = asyncio.create_task(fails())
    await asyncio.wait([failed])
    await stop_all([failed])
    del failed
    await asyncio.sleep(0)
    assert unheard == []
