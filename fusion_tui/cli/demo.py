"""The demo: fine-tune the starter model on the starter data, and show what that did."""

from __future__ import annotations

import sys
import uuid

import click

from engine.catalog import STARTER
from fusion_tui import daemon
from fusion_tui.cli.output import Session, document, json_option, pass_session, say
from fusion_tui.cli.results import result_text
from fusion_tui.cli.runs import job_document
from fusion_tui.cli.watching import follow

# Sized so that two CPU cores need about a minute and a half; a rank-32 adapter on 4.7 M parameters learns fast.
SETTINGS = {"steps": 150, "seq_len": 512, "batch_size": 2, "lr": 3e-3, "save_steps": 50}


@click.command()
@json_option
@pass_session
def demo(session: Session, *, as_json: bool) -> None:
    """Train the starter model on the starter data; exit 0 only when its held-out loss fell."""
    service, key = session.service, str(uuid.uuid4())
    request = {
        "type": "finetune",
        "idempotency_key": key,
        "base_model_id": STARTER,
        "dataset_id": STARTER,
        "hyperparams": {**SETTINGS, "output_name": f"starter-demo-{key[:4]}"},
        "name": "demo",
    }
    job = service.submit(request).job
    info = daemon.ensure_running(service.home)
    say(f"Fine-tuning the starter model on the starter data (run {job.id[:8]}, API at {info.url or 'no address'}).")
    job = follow(service, job.id)
    result = service.result(job.id)
    if job.state != "completed" or result is None:
        say(f"The demo is {job.state}: {job.error or 'see fusion-tui logs ' + job.id[:8]}")
        sys.exit(1)
    if as_json:
        document({"job": job_document(job), "result": result})
    else:
        click.echo(result_text(result))
        click.echo(f"\nQ       {result['sample_prompt']}")
        click.echo(f"before  {' '.join(result['sample_before'].split())}")
        click.echo(f"after   {' '.join(result['sample_after'].split())}\n")
        click.echo(f"run     {job.id}  (fusion-tui show {job.id[:8]}, or open the app: fusion-tui)")
        click.echo(f"model   {service.model(job.output_model_id or '').path}")
    if result["ppl_final"] >= result["ppl_baseline"]:
        say("The held-out loss did not fall.")
        sys.exit(1)


COMMANDS = (demo,)
