"""Plays the whole story on this machine, and exits with 0 only if all of it held.

Seven nodes; a file stored on six of them; two of those killed; the file read
back by a node that never saw it; modules run, billed and proved; a program that
reads what another node's program gives, also over a restart, and the chain behind its
result; the books compared; a debt that goes around three nodes and clears; a forked ledger,
found by a node that never met its author. Every command is printed as one would type it, with
what it answered. Pictures of the terminal and of the dashboard's pages stay in `try`. Everything
else lives in a temporary directory, and is stopped and removed at the end: on a terminal once Enter
is pressed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

NODES = 7
HOSTS_KILLED = 2
FILE_BYTES = 64 * 1024 * 1024
BLOCK_BYTES = 1024 * 1024
NOTICED_S = 120.0
PICTURES = Path("try").resolve()
TERMINAL = {
    "overview": ["top --once"],
    "capacity": ["node status", "store stat film.raw", "market slots"],
    "runs": [
        "compute invoke add.wasm add 1 2 --receipt add.receipt",
        "verify add.receipt",
        "compute run wordcount.wasm --stdin text",
        "program why demo/twice",
    ],
    "availability": ["health", "peer ls"],
    "payments": ["ledger statement", "ledger checkpoint", "ledger cubes", "ledger verify"],
}
"""What the pictures of the terminal show, by name."""
PAGES = ("circle", "storage", "market", "allocation", "ledger", "compute", "programs")
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WIDTH_PX, HEIGHT_PX = 1280, 800
COLUMNS = 120
PROGRAMS = Path(__file__).resolve().parent.parent / "fixtures" / "wasm"


class Broken(Exception):
    """Something did not hold."""


def say(text: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def chapter(title: str) -> None:
    """Print a heading."""
    say(f"\n# {title}")


def require(holds: bool, what: str) -> None:
    """Go on if something holds."""
    if not holds:
        raise Broken(what)


class Story:
    """The directory that everything happens in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []

    def xsc(self, words: str, *, stdin: Path | None = None, to: str = "", code: int = 0) -> str:
        """Print and run one command line of xsc; return its standard output.

        Args:
            words: what stands behind `xsc`, as in a shell.
            stdin: a file for its standard input.
            to: a file for its standard output.
            code: the exit code that it must have.
        """
        say(f"$ xsc {words}" + (f" < {stdin.name}" if stdin else "") + (f" > {to}" if to else ""))
        done = self.run(words, b"" if stdin is None else stdin.read_bytes())
        if to:
            (self.folder / to).write_bytes(done.stdout)
        elif done.stdout:
            say(done.stdout.decode().rstrip("\n"))
        if done.stderr:
            say(done.stderr.decode().rstrip("\n"))
        if code:
            say(f"$ echo $?\n{done.returncode}")
        require(done.returncode == code, f"exit code {done.returncode} instead of {code}")
        return "" if to else done.stdout.decode()

    def ask(self, words: str) -> Any:  # noqa: ANN401 - a JSON document
        """Return what a command says with --json, without printing anything."""
        done = self.run(f"{words} --json")
        require(done.returncode == 0, f"xsc {words}: {done.stderr.decode().strip()}")
        return json.loads(done.stdout)

    def value(self, words: str) -> str | None:
        """Return what is at a path; None where nothing is, or its node does not answer."""
        done = self.run(words)
        return None if done.returncode else done.stdout.decode()

    def start(self, name: str) -> None:
        """Start one node again, in the background."""
        words = f"--home net/{name} node start"
        say(f"$ xsc {words} &")
        with (self.folder / "net" / name / "again.log").open("wb") as log:
            self.started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "xsc", *shlex.split(words)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.folder,
                )
            )

    def end(self) -> None:
        """Stop what was started in the background."""
        for process in self.started:
            process.terminate()
            process.wait()

    def run(
        self, words: str, stdin: bytes = b"", *, terminal: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run one command line of xsc without printing anything.

        Args:
            words: what stands behind `xsc`, as in a shell.
            stdin: its standard input.
            terminal: variables of the terminal that it is to take its output for.
        """
        return subprocess.run(
            [sys.executable, "-m", "xsc", *shlex.split(words)],
            input=stdin,
            capture_output=True,
            cwd=self.folder,
            env={**os.environ, **(terminal or {})},
            check=False,
        )


def write_random(path: Path) -> str:
    """Write a file of random bytes; return its SHA-256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(FILE_BYTES // BLOCK_BYTES):
            block = os.urandom(BLOCK_BYTES)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def store_and_lose(story: Story) -> tuple[dict[str, str], str]:
    """Store, kill two hosts, read back; return the lost nodes by id and a survivor's name."""
    chapter("A file, on six nodes that know nothing about it")
    say(f"$ head -c {FILE_BYTES} /dev/urandom > film.raw")
    before = write_random(story.folder / "film.raw")
    story.xsc("--home net/node-0 store put film.raw", to="film.cap")
    say(f"$ cat film.cap\n{(story.folder / 'film.cap').read_text().strip()}")
    story.xsc("--home net/node-0 store stat @film.cap")
    hosts = {row["node"] for row in story.ask("--home net/node-0 store stat @film.cap")["hosts"]}
    nodes = {row["id"]: row for row in story.ask("devnet status --dir net")["nodes"]}
    require(len(hosts) == NODES - 1, f"it is on {len(hosts)} nodes")
    others = [row for row in nodes.values() if row["name"] != "node-0"]
    lost = [row for row in others if row["id"] in hosts][:HOSTS_KILLED]
    reader = next(row["name"] for row in reversed(others) if row not in lost)

    chapter("Two of those six die")
    say(f"$ kill -9 {' '.join(str(row['pid']) for row in lost)}   # {_names(lost)}")
    for row in lost:
        os.kill(row["pid"], signal.SIGKILL)
    story.xsc(f"--home net/{reader} store get @film.cap -o copy.raw")
    after = sha256_of(story.folder / "copy.raw")
    say(f"$ sha256sum film.raw copy.raw\n{before}  film.raw\n{after}  copy.raw")
    require(before == after, "the copy differs")
    story.xsc(f"--home net/{reader} store stat @film.cap")
    return {row["id"]: row["name"] for row in lost}, reader


def _names(rows: list[dict[str, Any]]) -> str:
    return ", ".join(row["name"] for row in rows)


def compute(story: Story) -> None:
    """Run a function, a program, and one that never ends."""
    chapter("Programs, in a sandbox, billed by fuel")
    for name in ("add", "wordcount", "endless"):
        (story.folder / f"{name}.wasm").write_bytes((PROGRAMS / f"{name}.wasm").read_bytes())
    home = "--home net/node-0"
    answer = story.xsc(f"{home} compute invoke add.wasm add 1 2 --receipt add.receipt")
    require(answer == "3\n", f"1 + 2 gave {answer!r}")
    text = story.folder / "text"
    text.write_text("to be\nor not to be\n")
    counted = story.xsc(f"{home} compute run wordcount.wasm --stdin text")
    require(counted.split()[:3] == ["2", "6", "19"], f"it counted {counted!r}")
    story.xsc(
        f"{home} compute invoke endless.wasm spin --fuel 50000000 --receipt endless.receipt",
        code=4,
    )
    for name in ("add", "endless"):
        story.xsc(f"verify {name}.receipt")


DOUBLE = """id = "double"

[variables.a]
kind = "subscription"
type = "i32"
path = "demo/a"

[computations.double]
function = { module = "add.wasm", export = "add" }
inputs = { x = "a", y = "a" }
outputs.twice = { path = "demo/twice", type = "i32" }
"""
NEXT = """id = "next"

[variables.theirs]
kind = "subscription"
type = "i32"
owner = "node-0"
path = "demo/twice"

[variables.one]
kind = "value"
type = "i32"
value = 1

[computations.next]
function = "math.add"
inputs = { x = "theirs", y = "one" }
outputs.next = { path = "demo/next" }
"""


def react(story: Story, reader: str) -> None:
    """Let a program of one node read what one of another gives, and explain its result."""
    chapter("Programs that read each other, and what is behind a result")
    for name, home, text in (("double", "node-0", DOUBLE), ("next", reader, NEXT)):
        (story.folder / f"{name}.toml").write_text(text)
        say(f"$ cat {name}.toml\n{text.rstrip()}")
        program = story.xsc(f"--home net/{home} program register {name}.toml").strip()
        story.xsc(f"--home net/{home} program activate {program}")
    story.xsc("--home net/node-0 space put demo/a 20")
    await_result(story, reader, "41")

    chapter("The reader dies, and the value changes meanwhile")
    (pid,) = (
        row["pid"] for row in story.ask("devnet status --dir net")["nodes"] if row["name"] == reader
    )
    say(f"$ kill -9 {pid}   # {reader}")
    os.kill(pid, signal.SIGKILL)
    story.xsc("--home net/node-0 space put demo/a 50")
    story.start(reader)
    await_result(story, reader, "101")
    story.xsc(f"--home net/{reader} program why demo/next")
    found = story.ask(f"--home net/{reader} program why demo/next")
    require(found["verified"] and found["value"] == "101", "the chain is not verified")


def await_result(story: Story, reader: str, wanted: str) -> None:
    """Wait until the reader's program has published a result, and show it."""
    words = f"--home net/{reader} space get demo/next"
    deadline = time.monotonic() + NOTICED_S
    while story.value(words) != wanted:
        require(time.monotonic() < deadline, f"the result is not {wanted}")
        time.sleep(0.1)
    story.xsc(words)
    say()


def settle(story: Story, reader: str) -> None:
    """Show prices, settle, and compare the books."""
    chapter("What it cost, and both sides of the books")
    story.xsc("--home net/node-0 market quote")
    story.xsc("--home net/node-0 ledger settle")
    story.xsc("--home net/node-0 ledger statement")
    owed = {
        row["peer"]: row["balance_micro"]
        for row in story.ask("--home net/node-0 ledger balance")["balances"]
    }
    require(any(owed.values()), "nobody was paid")
    ids = {row["name"]: row["id"] for row in story.ask("devnet status --dir net")["nodes"]}
    theirs = {
        row["peer"]: row["balance_micro"]
        for row in story.ask(f"--home net/{reader} ledger balance")["balances"]
    }
    require(theirs.get(ids["node-0"], 0) == -owed.get(ids[reader], 0), "the two ledgers disagree")
    story.xsc("--home net/node-0 ledger verify")
    story.xsc(f"--home net/{reader} ledger verify")


def clear(story: Story, names: list[str], alive: list[str]) -> None:
    """Let a debt go around three nodes and clear, and have a ledger co-signed and exported."""
    chapter("A debt that goes around three nodes")
    first = f"--home net/{names[0]}"
    for debtor, creditor in zip(names, names[1:] + names[:1], strict=True):
        # What uses up its fuel is billed, too.
        words = "compute invoke endless.wasm spin --fuel 400000000 --memory 1GiB"
        story.xsc(f"--home net/{debtor} {words} --on {creditor}", code=4)
        story.xsc(f"--home net/{debtor} ledger settle")
    story.xsc(f"{first} ledger clear")
    deadline = time.monotonic() + NOTICED_S
    while story.ask(f"{first} ledger clear")["loops"]:
        require(time.monotonic() < deadline, "the debt does not clear")
    story.xsc(f"{first} ledger log")

    chapter("A ledger that others co-sign, and its export")
    for name in alive:
        story.xsc(f"{first} peer recognise {name} 10%")
    story.xsc(f"{first} ledger checkpoint")
    require(story.ask(f"{first} ledger checkpoint")["complete"], "too few have co-signed")
    # The node of the lower id seals, so each of them is asked.
    for name in names[1:]:
        story.xsc(f"--home net/{name} ledger checkpoint")
    story.xsc(f"{first} ledger cubes --compare")
    sealed = [row["sealed"] for row in story.ask(f"{first} ledger cubes")["cubes"]]
    require(any(sealed), "nothing is sealed")
    story.xsc(f"{first} ledger export --format beancount -o ledger.beancount")
    say("$ bean-check ledger.beancount && echo balances agree")
    checker = Path(sys.executable).with_name("bean-check")
    done = subprocess.run([checker, story.folder / "ledger.beancount"], check=False)
    require(done.returncode == 0, "bean-check found a fault")
    say("balances agree")


def prove(story: Story, hosts: list[str]) -> None:
    """Write down what a host did under a lease, and check it where nobody knows the network."""
    chapter("A passport of a lease, for a machine that never saw the network")
    nodes = story.ask("devnet status --dir net")["nodes"]
    names = {row["id"]: row["name"] for row in nodes if row["name"] in hosts}
    lease, host = next(
        (row["lease_id"], names[row["peer"]])
        for row in story.ask("--home net/node-0 market leases")["leases"]
        if row["kind"] == "storage" and row["role"] == "customer" and row["peer"] in names
    )
    story.xsc(f"--home net/node-0 health challenge {host}")
    story.xsc("--home net/node-0 ledger settle")
    story.xsc(f"--home net/node-0 ledger passport {lease} -o film.passport")
    with tempfile.TemporaryDirectory() as elsewhere:
        passport = shutil.copy(story.folder / "film.passport", elsewhere)
        story.xsc(f"--home {elsewhere}/nowhere verify {passport}")


def fork(story: Story, names: list[str]) -> None:
    """Let a node go on from an old copy of its home, and be found by one that never used it."""
    forker, before, *others = names
    after, stranger, *_ = others
    chapter("A ledger that is shown in two ways")
    kill(story, forker)
    say(f"$ cp -r net/{forker} copy")
    shutil.copytree(story.folder / "net" / forker, story.folder / "copy")
    # Else the others would be told of the later directory, and the copy would not start.
    for name in others:
        kill(story, name)
    await_start(story, forker)
    use(story, before, forker)
    kill(story, forker)
    kill(story, before)
    for name in others:
        await_start(story, name)
    say(f"$ rm -r net/{forker} && mv copy net/{forker}")
    shutil.rmtree(story.folder / "net" / forker)
    (story.folder / "copy").rename(story.folder / "net" / forker)
    await_start(story, forker)
    use(story, after, forker)
    await_start(story, before)
    deadline = time.monotonic() + NOTICED_S
    while story.ask(f"--home net/{stranger} health why {forker}")["grade"] != "barred":
        require(time.monotonic() < deadline, f"{stranger} does not know that {forker} forked")
        story.run(f"--home net/{before} ledger checkpoint")
    story.xsc(f"--home net/{stranger} health why {forker}")
    owner = story.ask(f"--home net/{stranger} node status")["name"]
    (path,) = (
        row["path"] for row in story.ask(f"--home net/{stranger} space ls ledger/forks")["records"]
    )
    story.xsc(f"--home net/{stranger} space get {owner}:{path}", to="fork.proof")
    story.xsc("verify fork.proof")


def use(story: Story, customer: str, provider: str) -> None:
    """Let one node run something on another, and both book it."""
    story.xsc(f"--home net/{customer} compute invoke add.wasm add 1 2 --on {provider}")
    story.xsc(f"--home net/{customer} ledger settle")


def kill(story: Story, name: str) -> None:
    """Kill a node, and wait until it is gone."""
    (pid,) = (
        row["pid"] for row in story.ask("devnet status --dir net")["nodes"] if row["name"] == name
    )
    say(f"$ kill -9 {pid}   # {name}")
    os.kill(pid, signal.SIGKILL)
    while story.run(f"--home net/{name} node status").returncode == 0:
        time.sleep(0.1)


def await_start(story: Story, name: str) -> None:
    """Start a node again, and wait until it serves."""
    story.start(name)
    deadline = time.monotonic() + NOTICED_S
    while story.run(f"--home net/{name} node status").returncode:
        require(time.monotonic() < deadline, f"{name} does not start")
        time.sleep(0.1)


def notice(story: Story, lost: dict[str, str]) -> None:
    """Wait until the probes have noticed who is gone, and show it."""
    chapter("Who is still there")
    deadline = time.monotonic() + NOTICED_S
    while True:
        rows = story.ask("--home net/node-0 health")["peers"]
        up = {row["id"] for row in rows if row["state"] == "up"}
        if {row["id"] for row in rows} - up == set(lost):
            break
        require(time.monotonic() < deadline, "the probes do not say who is gone and who lives")
        time.sleep(0.2)
    story.xsc("--home net/node-0 health")


def draw_terminal(story: Story) -> None:
    """Leave pictures of what commands print."""
    terminal = {"COLUMNS": str(COLUMNS), "FORCE_COLOR": "1"}
    for name, commands in TERMINAL.items():
        said = Text()
        for words in commands:
            done = story.run(f"--home net/node-0 {words}", terminal=terminal)
            require(done.returncode == 0, f"xsc {words}: {done.stderr.decode().strip()}")
            said.append(f"$ xsc {words}\n", style="bold")
            said.append_text(Text.from_ansi(done.stdout.decode())).append("\n")
        console = Console(record=True, file=io.StringIO(), width=COLUMNS)
        console.print(said)
        console.save_svg(str(PICTURES / f"terminal-{name}.svg"), title="xsc")


def draw_pages(story: Story) -> None:
    """Leave pictures of the dashboard, where there is a browser."""
    chromium = shutil.which("chromium")
    if chromium is None:
        say("its pages were not drawn: there is no chromium (on Debian: apt install chromium)")
        return
    link = story.ask("--home net/node-0 dashboard")["url"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": WIDTH_PX, "height": HEIGHT_PX})
        page.goto(link)
        page.wait_for_url("**/circle")
        for name in PAGES:
            page.goto(f"{page.url.rpartition('/')[0]}/{name}")
            # What a page draws by itself is there after its script has run.
            page.wait_for_load_state("load")
            page.screenshot(path=PICTURES / f"page-{name}.png", full_page=True)
        browser.close()


def show(story: Story) -> None:
    """Leave pictures, print the link, and on a terminal wait until somebody has looked."""
    chapter("Pictures, and the dashboard")
    PICTURES.mkdir(exist_ok=True)
    draw_terminal(story)
    draw_pages(story)
    for path in sorted(PICTURES.glob("*-*.*g")):
        say(f"{PICTURES.name}/{path.name}")
    story.xsc("--home net/node-0 dashboard")
    if sys.stdin.isatty() and sys.stdout.isatty():
        say(f"for another link: {sys.executable} -m xsc --home {story.folder}/net/node-0 dashboard")
        with suppress(EOFError, KeyboardInterrupt):
            input("Enter ends the network. ")


def play(story: Story, began: float) -> None:
    """Tell the story from its beginning to its end."""
    try:
        chapter("A network of seven nodes on this machine")
        story.xsc(f"devnet up --nodes {NODES} --dir net")
        lost, reader = store_and_lose(story)
        compute(story)
        react(story, reader)
        settle(story, reader)
        notice(story, lost)
        alive = [f"node-{number}" for number in range(NODES)]
        alive = [name for name in alive if name not in {*lost.values(), reader, "node-0"}]
        clear(story, ["node-0", *alive[:2]], [*alive, reader])
        prove(story, alive)
        fork(story, [alive[2], reader, *alive[:2], "node-0"])
        say(f"\nall of it held, in {time.monotonic() - began:.0f} s")
        show(story)
    except Broken:
        show_logs(story.folder)
        raise
    finally:
        chapter("The end")
        if (story.folder / "net" / "node-0").exists():
            story.xsc("devnet down --dir net")
        story.end()


def main() -> int:
    """Play the story; return the exit code."""
    began = time.monotonic()
    # Ended from outside, it still stops what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="xsc-demo-") as name:
        try:
            play(Story(Path(name)), began)
        except Broken as fault:
            say(f"\nthe demo failed: {fault}")
            return 1
    return 0


def show_logs(folder: Path) -> None:
    """Print the last lines of every node's log, which go with the directory."""
    for path in sorted(folder.glob("net/*/*.log")):
        say(f"--- {path.relative_to(folder)}")
        say("\n".join(path.read_text(errors="replace").splitlines()[-10:]))


if __name__ == "__main__":
    sys.exit(main())
