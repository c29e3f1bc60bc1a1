"""Commands about the background: serve, token, keys."""

from __future__ import annotations

import logging
from dataclasses import asdict

import click

from fusion_tui import daemon
from fusion_tui.cli.output import Session, document, json_option, pass_session, say, table

SCOPES = ("train", "read", "datasets", "models", "billing")  # of store.keys, which a face does not import


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


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def keys(context: click.Context, *, as_json: bool) -> None:
    """List the API keys, without their secrets; `add` and `revoke` work on one."""
    if context.invoked_subcommand:
        return
    service = context.ensure_object(Session).service
    service.token()
    listed = service.keys()
    if as_json:
        document([asdict(key) for key in listed])
    else:
        table(("id", "name", "prefix", "scopes"), [(k.id, k.name, k.prefix, ", ".join(k.scopes)) for k in listed])


@keys.command("add")
@click.argument("name")
@click.option("--scope", "scopes", type=click.Choice(SCOPES), multiple=True, required=True, help="May be repeated.")
@json_option
@pass_session
def add_key(session: Session, *, name: str, scopes: tuple[str, ...], as_json: bool) -> None:
    """Make an API key. Its secret is printed here and never again."""
    made = session.service.make_key(name, tuple(dict.fromkeys(scopes)))
    if as_json:
        document(asdict(made.key) | {"secret": made.secret})
    else:
        say(f"Made the key {made.key.name} ({', '.join(made.key.scopes)}). Its secret is not shown again:")
        click.echo(made.secret)


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@json_option
@pass_session
def revoke_key(session: Session, *, key_id: str, as_json: bool) -> None:
    """End an API key at once. In place of the first one, `token` makes a new one."""
    key = session.service.revoke_key(key_id)
    if as_json:
        document(asdict(key))
    else:
        say(f"Revoked the key {key.name} ({key.prefix}…).")


COMMANDS = (serve, token, keys)
