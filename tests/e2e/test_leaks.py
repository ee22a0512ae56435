"""No secret of any storage command shows in a process list, a log, or an error."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

from tests.e2e.conftest import Member
from xsc.base.ids import from_text

PASSPHRASE = b"unmistakable-passphrase-5417"


LOOKS = 5
"""At one command line of a process: it shows what it was started with while it runs."""


class Watcher:
    """Reads command lines and environments of all processes, again and again."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.rounds = 0
        self._looks: dict[tuple[str, bytes], int] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def look(self) -> None:
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            with contextlib.suppress(OSError):  # it is gone, or another user's
                # A process that starts shows its parent's line, then none, then its own.
                line = (process / "cmdline").read_bytes()
                count = self._looks.get((process.name, line), 0)
                if count < LOOKS:
                    self._looks[process.name, line] = count + 1
                    self.seen.add(line)
                    self.seen.add((process / "environ").read_bytes())
        self.rounds += 1

    def _run(self) -> None:
        while not self._end.is_set():
            self.look()
            self._end.wait(0.05)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def saw(self, secret: bytes) -> bool:
        return any(secret in text for text in self.seen)


def forms(capability: str) -> list[bytes]:
    """Return the forms in which a capability could leak."""
    word = capability.split(":")[2]
    return [word.encode(), from_text(word)[1:33].hex().encode()]


def test_no_secret_shows_in_processes_logs_or_errors(net, tmp_path):
    owner, friend = net[1], net[2]
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(os.urandom(9000))
    passphrase = tmp_path / "passphrase"
    passphrase.write_bytes(PASSPHRASE)
    key, backup = tmp_path / "key", tmp_path / "backup"
    told: list[str] = []

    def run(words: list[object], stdin: bytes = b"", at: Member = owner, code: int = 0) -> bytes:
        # Started as users start it: a process that was forked shows another one's words.
        line = [sys.executable, "-m", "xsc", "--home", at.home, *words]
        env = {**os.environ, "XSC_DEBUG": "1"}
        done = subprocess.run(line, input=stdin, capture_output=True, env=env, check=False)
        assert done.returncode == code, (words, done.stderr)
        told.append(done.stderr.decode())
        if code:
            told.append(done.stdout.decode())
        return done.stdout

    with Watcher() as watcher:
        one = run(["store", "put", "-", "--name", "one"], os.urandom(70_000)).strip()
        many = run(["store", "put", "-r", folder, "-v"]).strip()
        stored = tmp_path / "capability"
        stored.write_bytes(one)
        checks = run(["store", "share", f"@{stored}", "--verify"]).strip()
        run(["store", "get", "-", "-o", tmp_path / "out", "-v"], one, friend)
        run(["store", "get", "-r", "-", "-o", tmp_path / "there", "-v"], many, friend)
        run(["store", "check", "-", "--deep"], checks)
        # Errors name what is wrong, not what was given.
        wrong = one[:-1] + (b"a" if one[-1:] != b"a" else b"b")
        run(["store", "get", "-", "-o", "-"], wrong, code=2)
        run(["store", "get", "-", "-o", "-"], checks, code=2)
        run(["store", "rm", "-"], many, friend, code=2)
        run(["node", "backup", backup, "--passphrase-file", passphrase])
        new = Member(tmp_path / "new")
        run(["node", "restore", backup, "--check", "--passphrase-file", "-"], PASSPHRASE, new)
        lost = Member(tmp_path / "lost")
        run(["node", "init"], at=lost)
        run(["node", "identity", "export", key], at=lost)
        port = (friend.home / "peer.port").read_text().strip()
        run(["node", "recover", key, "--peer", f"{friend.id}@127.0.0.1:{port}"], at=new, code=2)
        run(["store", "rm", "-"], one)
        run(["store", "rm", "-"], many)
        # The watcher sees what stands there: a secret that is put there is found.
        bait = "unmistakable-bait-2206"
        with subprocess.Popen(
            [sys.executable, "-c", "print(flush=True); input()", bait],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"BAIT": bait[::-1]},
        ) as process:
            # A start returns before the kernel shows the new command line: wait for its words.
            assert process.stdout.readline() == b"\n"
            watcher.look()
            process.communicate(b"\n")
        assert watcher.saw(bait.encode())
        assert watcher.saw(bait[::-1].encode())
    assert watcher.rounds > 10
    secrets = [PASSPHRASE, key.read_bytes().split(b":")[1].strip()]
    for text in (one, many, checks):
        secrets += forms(text.decode())
    for member in (owner, friend):
        secrets.append((member.home / "api.token").read_bytes().strip())
        secrets.append((member.home / "identity.key").read_bytes().split(b":")[1].strip())
        told.append((member.home / "node.log").read_text())
    assert len(set(secrets)) == len(secrets) == 12
    for secret in secrets:
        assert len(secret) > 20
        assert not watcher.saw(secret), "a process shows a secret"
        assert not [text for text in told if secret.decode() in text], "a log or an error shows it"
