"""Lets `python -m fusion_tui.cli` stand for the `fusion-tui` command."""

from fusion_tui.cli import main

main(prog_name="fusion-tui")
