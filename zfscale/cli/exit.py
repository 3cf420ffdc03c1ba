"""How a command ends: messages without tracebacks, exit codes, Ctrl-C.

Knows the errors of errors.py and those of click; not what any command does.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import click

from zfscale.errors import ZfscaleError

INTERRUPTED = 130


def exit_code(command: click.Command, arguments: Sequence[str] | None) -> int:
    """Run `command` and return the exit code of the process; errors are shown on stderr.

    An error that is neither a ZfscaleError nor one of the operating system is a mistake of ours:
    it keeps its traceback, and Python ends with 1.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    context = None
    try:
        with interruptible(), command.make_context("zfscale", arguments.copy()) as context:
            command.invoke(context)
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (ZfscaleError, OSError) as error:
        return _told(error, context is not None and context.params.get("debug", False))
    except KeyboardInterrupt:
        click.echo("zfscale: interrupted", err=True)
        return INTERRUPTED
    return 0


def _told(error: ZfscaleError | OSError, debug: bool) -> int:
    """Show an error in one message; its exit code."""
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has enough of it; and nothing more shall be flushed to them.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if debug:
        traceback.print_exception(error)
    if isinstance(error, ZfscaleError):
        click.echo(f"zfscale: {error}", err=True)
        return error.exit_code
    # A full disk, a place that may not be written, a server that does not answer.
    click.echo(f"zfscale: {error}; what is finished is kept", err=True)
    return 1


@contextmanager
def interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM raise KeyboardInterrupt once; the second one ends the process at once."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def at_once(_number: int, _frame: FrameType | None) -> None:
        os._exit(INTERRUPTED)

    def first(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, at_once)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, first)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(code: int) -> NoReturn:
    """End the process with an exit code.

    After an interruption it ends at once: Zarr may be in the middle of hundreds of writes, none of
    which counts any more, and the interpreter would complain of each as it drops it.
    """
    if code == INTERRUPTED:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # whoever read it is gone
                stream.flush()
        os._exit(code)
    sys.exit(code)


@contextmanager
def resumable(command: str) -> Iterator[None]:
    """Around work that `command` goes on with: say so when it is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            f"zfscale: interrupted; finished tasks are kept. Resume with:\n  {command}", err=True
        )
        raise click.exceptions.Exit(INTERRUPTED) from None
