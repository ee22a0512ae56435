"""Many calls of one node at one peer at once, by HTTP and by the command line: none is refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.e2e.conftest import PROGRAMS
from xsc.base.jobs import JobSpec
from xsc.client.calls import Calls

ADD = PROGRAMS / "add.wasm"
BY_HTTP = 64
BY_PROCESSES = 16


def test_calls_in_flight_at_one_peer_are_all_answered(net):
    peer = net.status()[1]["id"]
    module = ADD.read_bytes()

    def by_http(number: int) -> tuple[str, ...]:
        spec = JobSpec.invoke(module, "add", [str(number), "1"], on=peer)
        return Calls(net[0].home).job(spec).results

    def by_process(number: int) -> str:
        return net[0](["compute", "invoke", ADD, "add", number, 1, "--on", peer]).line

    with ThreadPoolExecutor(BY_HTTP) as pool:
        assert list(pool.map(by_http, range(BY_HTTP))) == [
            (str(number + 1),) for number in range(BY_HTTP)
        ]
        assert list(pool.map(by_process, range(BY_PROCESSES))) == [
            str(number + 1) for number in range(BY_PROCESSES)
        ]
