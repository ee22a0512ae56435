"""Calls of the command line, each in a process of its own that does not read its modules first.

A start of Python with the modules of a node takes nine tenths of what the node then takes until
it serves, and of what most calls take at all. So one process for each of pytest's workers reads
them once (this module, run as a script) and forks for every call: what runs then has its own
number, streams, environment, directory and end. What must be started as users start it (the
README, a devnet, a process list without secrets) is.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

MESSAGE_BYTES_MAX = 150_000


@functools.cache
def forker() -> socket.socket:
    """Start the process that forks; it ends with this one, whatever ends this one."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with there:
        process = subprocess.Popen(
            [sys.executable, __file__, str(there.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[there.fileno()],
        )

    def end() -> None:
        here.close()
        process.wait()

    atexit.register(end)
    return here


class Process:
    """A call of the command line that runs, with what a `Popen` has of it.

    What it says goes to files; without any it is kept for `communicate`.
    """

    def __init__(
        self, words: list[str], *, stdin: bytes = b"", log: IO[bytes] | None = None, **env: str
    ) -> None:
        message = json.dumps([words, {**os.environ, **env}, str(Path.cwd())]).encode()
        assert len(message) <= MESSAGE_BYTES_MAX
        self.returncode: int | None = None
        self._said = b"", b""
        self._files = [] if log else [tempfile.TemporaryFile() for _ in "oe"]  # noqa: SIM115 - closed where they are read
        self._told, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there, tempfile.TemporaryFile() as given:
            given.write(stdin)
            given.seek(0)
            files = [there, given, *([log, log] if log else self._files)]
            socket.send_fds(forker(), [message], [file.fileno() for file in files])
        self.pid = int(self._told.recv(100))

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._told.settimeout(timeout)
            self.returncode = int(self._told.recv(100))
            self._told.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except BlockingIOError:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        self.wait(timeout)
        if self._files:
            for file in self._files:
                file.seek(0)
            out, err = self._files
            self._said = out.read(), err.read()
            for file in self._files:
                file.close()
            self._files = []
        return self._said

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def serve(control: socket.socket) -> None:
    """Fork for every message until the other side is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait
    while True:
        message, descriptors, *_ = socket.recv_fds(control, MESSAGE_BYTES_MAX, 4)
        if not message:
            return
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            control.close()
            told, *streams = descriptors
            wait_or_run(socket.socket(fileno=told), streams, *json.loads(message))
        for descriptor in descriptors:
            os.close(descriptor)


def wait_or_run(
    told: socket.socket, streams: list[int], words: list[str], env: dict[str, str], folder: str
) -> None:
    """Fork once more: one says which process the other is, waits for it and says how it ended.

    Both end with what started them, so that a run of tests that is broken off leaves no node.
    """
    from xsc.compute.worker.confine import die_with_parent

    die_with_parent()
    if pid := os.fork():
        for stream in streams:
            os.close(stream)
        told.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        told.send(str(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    die_with_parent()
    told.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["xsc", *words]
    code: object = 1
    try:
        from xsc.cli.main import run

        run()
    except SystemExit as end:
        code = end.code
    finally:
        # Python would take each module apart at its end, and so copy the memory that is shared.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


def main() -> None:
    """Read what calls need, and serve the process that started this one."""
    import xsc.cli
    import xsc.node.daemon
    import xsc.node.offline

    for package in (xsc.cli, xsc.node.offline):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    gc.freeze()
    try:
        serve(socket.socket(fileno=int(sys.argv[1])))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
