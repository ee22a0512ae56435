"""xsc compute deploy, ls, logs, rollback and undeploy: programs that answer requests."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Unpack

import click

from xsc import api
from xsc.base.units import format_credits, format_size
from xsc.cli.options import (
    CONCURRENCY,
    MODULE,
    PAIR,
    PEER,
    RUN_FUEL,
    RUN_MEMORY,
    RUN_TIME,
    SERVICE,
    WHOLE,
    Command,
    Settings,
    table_of,
)
from xsc.cli.output import Columns, moment, or_dash, say, short, show, warn
from xsc.client.calls import DeployOptions, read_module, service_name
from xsc.client.calls import follow as rows_of
from xsc.client.core import Document

ROWS_SHOWN = 20
WAIT_MS = 20_000
"""How long one call waits for the next row of a log that is followed."""


@click.command(cls=Command)
@click.argument("module", metavar="MOD", type=MODULE)
@click.option("--name", required=True, metavar="NAME", help="What the service is called.")
@click.option("--version", metavar="V", help="What this version is called.  [the next number]")
@click.option(
    "--env", "variables", type=PAIR, multiple=True, metavar="K=V", help="One variable for it."
)
@click.option("--fuel", type=RUN_FUEL, help="Most fuel of a request.")
@click.option("--memory", "memory_bytes", type=RUN_MEMORY, help="Most memory of a request.")
@click.option("--timeout", "timeout_ms", type=RUN_TIME, help="Most time of a request.")
@click.option("--concurrency", type=CONCURRENCY, help="Requests that run at once.  [4]")
@click.option("--on", type=PEER, metavar="NODE", help="Have this node hold it, and pay it.")
def deploy(
    settings: Settings,
    *,
    module: Path,
    name: str,
    variables: tuple[tuple[str, str], ...],
    **how: Unpack[DeployOptions],
) -> None:
    """Let the WASI program MOD answer requests, and print where.

    Each request runs it anew: fields, query and path come as variables, the
    body as standard input (WAGI); what it writes is the answer.
    """
    how["env"] = table_of(variables, "variable")
    done = settings.calls().deploy(read_module(module), name, **how)
    _tell(settings, done)


_SERVICES: Final[Columns] = {
    "name": "name",
    "owner": lambda row: row["owner_name"] or short(row["owner"]),
    "version": "version",
    "at": lambda row: row["node_name"] or short(row["node"]),
    "state": "state",
    "<requests": ("requests", str),
    "<failed": ("failures", str),
    "<refused": ("refused", str),
    "url": ("url", or_dash),
}


@click.command(cls=Command, name="ls")
def services(settings: Settings) -> None:
    """List services: one's own, and those that are held for peers."""
    answer = settings.ask(api.services.LIST)
    settings.table(answer, "services", _SERVICES, "there are no services")
    if settings.json:
        return
    for row in answer["services"]:
        if row["fault"]:
            warn(f"{row['name']}: {row['fault']}")
    if any(row["state"] == "off" for row in answer["services"]):
        say("this node answers no requests: set services_listen, for example to 8080")


@click.command(cls=Command)
@click.argument("name", type=SERVICE)
@click.option("-f", "--follow", is_flag=True, help="Go on with each request that comes.")
@click.option("-n", "count", type=WHOLE, default=ROWS_SHOWN, help="Newest rows.  [20]")
def logs(settings: Settings, *, name: str, follow: bool, count: int) -> None:
    """Show the newest requests of a service, and what each cost.

    With --json, one document a line where it follows, else one with all.
    """
    calls = settings.calls()
    if follow:
        for row in rows_of(calls, name, count, WAIT_MS):
            settings.view(row, _show_row)
        return
    asked = api.services.Log(name=service_name(name), n=count)
    settings.view(calls.ask(api.services.LOG, asked), _show_rows)


def _show_rows(answer: Document) -> None:
    for row in answer["requests"]:
        _show_row(row)


def _show_row(row: Document) -> None:
    ended = f"  {row['trap']}" if row["trap"] else ""
    show(
        f"{moment(row['at_ms'])}  {row['request_id']}  {row['version']}  {row['status']}  "
        f"{row['method']} {row['path'] or '/'}  {row['fuel_used']} fuel  "
        f"{format_size(row['memory_peak_bytes'])}  {row['wall_ms']}ms  "
        f"{format_credits(row['amount_micro'])} credits{ended}"
    )
    for line in row["note"].splitlines():
        show(f"    {line}")


@click.command(cls=Command)
@click.argument("name", type=SERVICE)
@click.option("--to", metavar="V", help="The version to go back to.  [the one before]")
def rollback(settings: Settings, *, name: str, to: str | None) -> None:
    """Go back to a version of a service; requests that run end with theirs."""
    asked = api.services.Rollback(name=service_name(name), to=to)
    _tell(settings, settings.ask(api.services.ROLLBACK, asked))


@click.command(cls=Command)
@click.argument("name", type=SERVICE)
def undeploy(settings: Settings, *, name: str) -> None:
    """Remove a service, all of its versions and its log."""
    done = settings.ask(api.services.UNDEPLOY, api.services.Named(name=service_name(name)))
    settings.view(done, _warn)


def _warn(done: Document) -> None:
    if done["warning"]:
        warn(done["warning"])


def _tell(settings: Settings, done: Document) -> None:
    settings.view(done, done["url"] or f"/fn/{done['owner']}/{done['name']}")
    if settings.json:
        return
    if settings.verbose:
        say(f"version {done['version']} is active")
    if done["state"] == "off":
        warn(
            "this node answers no requests: set services_listen in its config.toml, "
            "for example to 8080, and start it again"
        )


COMMANDS = (deploy, services, logs, rollback, undeploy)
