"""What a command of ``roi-inspector`` shows: lines that stay, and how far it is in the last one."""

from __future__ import annotations

import io
import sys


def say(line: str) -> None:
    """Print a line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # A code page without a letter of a name must not end it.
    show("")
    print(line, flush=True)


def show(line: str) -> None:
    """Show how far it is in the last line of a terminal; what is printed next takes its place."""
    if sys.stderr.isatty():
        print(f"\r{line:<60}\r", end="", file=sys.stderr, flush=True)
