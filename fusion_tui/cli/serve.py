"""Commands about the background: serve, token, keys."""

from __future__ import annotations

import logging
from dataclasses import asdict

import click

from fusion_tui import daemon
from fusion_tui.cli.output import Session, document, json_option, pass_session, say, table


@click.command()
@click.option("--host", help="Address to listen on (default 127.0.0.1, or the settings').")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on (default 7878, or FUSION_PORT).")
@click.option("--detach", is_flag=True, help="Go into the background and stay there.")
@json_option
@pass_session
def serve(session: Session, *, host: str | None, port: int | None, detach: bool, as_json: bool) -> None:
    """Run supervisor and HTTP API without the app, until Ctrl+C or TERM. Runs outlive it.

    Beside a supervisor that runs already, it serves the API on a port of its own and takes over when that one ends.
    """
    service = session.service
    if detach:
        arguments = [*(["--host", host] if host else []), *(["--port", str(port)] if port else [])]
        known = daemon.running(service.home)
        info = known or daemon.start_in_background(service.home, arguments)
        if as_json:
            document({"pid": info.identity.pid, "url": info.url, "started": known is None})
        else:
            say(f"{'A supervisor runs already' if known else 'Serving'} (pid {info.identity.pid}), API at {info.url}")
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    daemon.serve(service, host=host, port=port, stand_by=True, announce=say)


@click.command()
@json_option
@pass_session
def token(session: Session, *, as_json: bool) -> None:
    """Print the API key of this data folder."""
    secret = session.service.token()
    if as_json:
        document({"token": secret})
    else:
        click.echo(secret)


@click.command()
@json_option
@pass_session
def keys(session: Session, *, as_json: bool) -> None:
    """List the API keys, without their secrets."""
    session.service.token()
    listed = session.service.keys()
    if as_json:
        document([asdict(key) for key in listed])
    else:
        table(("id", "name", "prefix", "scopes"), [(k.id, k.name, k.prefix, ", ".join(k.scopes)) for k in listed])


COMMANDS = (serve, token, keys)
