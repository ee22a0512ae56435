"""xsc compute deploy, ls, logs, rollback and undeploy: programs that answer requests."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import click

from xsc.base.jobs import LimitOptions
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
    pass_settings,
    table_of,
)
from xsc.cli.output import moment, named, say, show, show_json, show_table, warn
from xsc.client.calls import read_module
from xsc.client.core import Document
from xsc.client.services import ServiceCalls

ROWS_SHOWN = 20


def _calls(settings: Settings) -> ServiceCalls:
    return ServiceCalls(settings.calls().core)


@click.command(cls=Command)
@click.argument("module", metavar="MOD", type=MODULE)
@click.option("--name", required=True, metavar="NAME", help="What the service is called.")
@click.option("--version", metavar="V", help="What this version is called.  [the next number]")
@click.option("--env", type=PAIR, multiple=True, metavar="K=V", help="One variable for it.")
@click.option("--fuel", type=RUN_FUEL, metavar="N", help="Most fuel of a request.")
@click.option(
    "--memory", "memory_bytes", type=RUN_MEMORY, metavar="SIZE", help="Most memory of a request."
)
@click.option(
    "--timeout",
    "timeout_ms",
    type=RUN_TIME,
    metavar="DURATION",
    help="Most time of a request.",
)
@click.option(
    "--concurrency", type=CONCURRENCY, metavar="N", help="Requests that run at once.  [4]"
)
@click.option("--on", type=PEER, metavar="NODE", help="Have this node hold it, and pay it.")
@pass_settings
def deploy(
    settings: Settings,
    *,
    module: Path,
    name: str,
    version: str | None,
    env: tuple[tuple[str, str], ...],
    concurrency: int | None,
    on: str | None,
    **limits: Unpack[LimitOptions],
) -> None:
    """Let the WASI program MOD answer requests, and print where.

    Each request runs it anew: fields, query and path come as variables, the
    body as standard input (WAGI); what it writes is the answer.
    """
    done = _calls(settings).deploy(
        read_module(module),
        name,
        version=version,
        env=table_of(env, "variable"),
        concurrency=concurrency,
        on=on,
        **limits,
    )
    _tell(settings, done)


@click.command(cls=Command, name="ls")
@pass_settings
def services(settings: Settings) -> None:
    """List services: one's own, and those that are held for peers."""
    answer = _calls(settings).services()
    if settings.json:
        show_json(answer)
        return
    rows = answer["services"]
    show_table(
        ["name", "owner", "version", "at", "state", "<requests", "<failed", "<refused", "url"],
        [
            [
                row["name"],
                named({"name": row["owner_name"]}, row["owner"]),
                row["version"],
                named({"name": row["node_name"]}, row["node"]),
                row["state"],
                str(row["requests"]),
                str(row["failures"]),
                str(row["refused"]),
                row["url"] or "-",
            ]
            for row in rows
        ],
        "there are no services",
    )
    for row in rows:
        if row["fault"]:
            warn(f"{row['name']}: {row['fault']}")
    if any(row["state"] == "off" for row in rows):
        say("this node answers no requests: set services_listen, for example to 8080")


@click.command(cls=Command)
@click.argument("name", type=SERVICE)
@click.option("-f", "--follow", is_flag=True, help="Go on with each request that comes.")
@click.option("-n", "count", type=WHOLE, default=ROWS_SHOWN, metavar="N", help="Newest rows.  [20]")
@pass_settings
def logs(settings: Settings, *, name: str, follow: bool, count: int) -> None:
    """Show the newest requests of a service, and what each cost.

    With --json, one document a line where it follows, else one with all.
    """
    calls = _calls(settings)
    if settings.json and not follow:
        show_json({"requests": calls.log(name, count)})
        return
    for row in calls.follow(name, count) if follow else calls.log(name, count):
        if settings.json:
            show_json(row)
        else:
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
@pass_settings
def rollback(settings: Settings, *, name: str, to: str | None) -> None:
    """Go back to a version of a service; requests that run end with theirs."""
    _tell(settings, _calls(settings).rollback(name, to))


@click.command(cls=Command)
@click.argument("name", type=SERVICE)
@pass_settings
def undeploy(settings: Settings, *, name: str) -> None:
    """Remove a service, all of its versions and its log."""
    done = _calls(settings).undeploy(name)
    if settings.json:
        show_json(done)
    elif done["warning"]:
        warn(done["warning"])


def _tell(settings: Settings, done: Document) -> None:
    if settings.json:
        show_json(done)
        return
    show(done["url"] or f"/fn/{done['owner']}/{done['name']}")
    if settings.verbose:
        say(f"version {done['version']} is active")
    if done["state"] == "off":
        warn(
            "this node answers no requests: set services_listen in its config.toml, "
            "for example to 8080, and start it again"
        )


COMMANDS = (deploy, services, logs, rollback, undeploy)
