"""Make docs/cli.md from the commands' own help; with --check, fail where it is not what they say."""

import sys
from pathlib import Path

import click

from p3select.cli import cli

PAGE = Path(__file__).with_name("cli.md")


def page() -> str:
    """The page as it should be."""
    parts = ["# Commands\n", "Made by `make docs` from the commands' own help.\n"]
    for name in [None, *sorted(cli.commands)]:
        command = cli if name is None else cli.commands[name]
        words = "p3select" if name is None else f"p3select {name}"
        context = click.Context(command, info_name=words, max_content_width=110, terminal_width=110)
        parts.append(f"## {words}\n\n```\n{command.get_help(context)}\n```\n")
    parts.append(
        "Exit codes: 0 done; 2 bad input or usage, one line on stderr that says what and the remedy; 1 a fault\n"
        "inside; 130 interrupted, what was finished stays.\n\n"
        "Results go to stdout (`--json` for machines), progress to stderr.\n"
    )
    return "\n".join(parts)


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.read_text(encoding="utf-8") == page() else "docs/cli.md is stale: make docs")
    PAGE.write_text(page(), encoding="utf-8")
