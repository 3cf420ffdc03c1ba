"""The command line: thin commands that parse, call one function and print what it returns.

Knows options, messages and exit codes; computes nothing. Commands import what they need when
they run, so that `zfscale --help` is there at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import click

import zfscale
from zfscale.cli import jobs, run, tools
from zfscale.cli.exit import end, exit_code


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(zfscale.__version__, prog_name="zfscale")
@click.option(
    "--debug", is_flag=True, envvar="ZFSCALE_DEBUG", help="Show where an error came from."
)
def commands(debug: bool) -> None:
    """What every feature of a convnet sees, over any number of images."""


for command in (*run.COMMANDS, *jobs.COMMANDS, *tools.COMMANDS):
    commands.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the process with its exit code."""
    end(exit_code(commands, arguments))
