"""xsc dashboard: a link that shows the node in a browser."""

from __future__ import annotations

import click
from click import option

from xsc import api
from xsc.base import errors, units
from xsc.cli import show
from xsc.cli.options import Command, Settings

_LEADS = '<!doctype html><meta http-equiv="refresh" content="0; url={}"><title>XSC</title>\n'


@click.command(cls=Command)
@option("--open", "opens", is_flag=True, help="Open it in this machine's browser.")
def dashboard(settings: Settings, *, opens: bool) -> None:
    """Print a link that shows the node in a browser on this machine.

    The link is good once, for a minute. From another machine, forward the port of the API first:
    ssh -L PORT:127.0.0.1:PORT HOST.
    """
    link = settings.calls().ask(api.dashboard.LOGIN)
    settings.view(link, link["url"])
    show.note(f"good once, for {units.format_duration(link['good_ms'])}")
    if opens:
        import webbrowser

        from xsc.node.home.folder import write_file

        # The link is no argument of the browser: every user of a machine can list those.
        page = settings.home / "dashboard.html"
        write_file(page, _LEADS.format(link["url"]))
        if not webbrowser.open(page.resolve().as_uri()):
            raise errors.NotFound("no browser was found", hint="open the link yourself")
