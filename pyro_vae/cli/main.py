"""The commands' entry point: messages, signals and exit codes."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

from tqdm import tqdm

from pyro_vae.cli.evaluate import evaluate
from pyro_vae.cli.generate import generate
from pyro_vae.cli.train import train
from pyro_vae.errors import LostWorkerError, NotFiniteError, RequestError, StorageError, TerminatedError
from pyro_vae.inference.distributed import is_main_process

Command = Callable[[list[str]], None]

COMMANDS: dict[str, Command] = {"train": train, "evaluate": evaluate, "generate": generate}

USAGE = """usage: pyro-vae COMMAND ...

Variational autoencoders as Pyro programs.

commands:
  train       train a model, score it on the test set and draw figures
  evaluate    score a saved run and check how far the numbers can be trusted
  generate    write images or arrays from a saved run

pyro-vae COMMAND --help lists the options of a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pyro-vae COMMAND ...` and return its exit code."""
    name, *options = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command {name}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    return run(COMMANDS[name], options)


def run(command: Command, argv: list[str]) -> int:
    """Run a command: exit code 0, 2 for a wrong request, 130 for Ctrl-C, 143 for SIGTERM, 1 otherwise.

    Expected errors are one line, with what to do next if the exception has a note of it. Others keep their traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with _sigterm(), _messages(), nullcontext() if is_main_process() else redirect_stdout(io.StringIO()):
            command(argv)
    except RequestError as error:
        return _stop(2, f"error: {error}", error)
    except (NotFiniteError, StorageError, LostWorkerError) as error:
        return _stop(1, f"error: {error}", error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails again when it flushes at exit
        return 1
    except KeyboardInterrupt as error:
        return _stop(130, "stopped by Ctrl-C", error)
    except TerminatedError as error:
        return _stop(143, "stopped by SIGTERM", error)
    return 0


@contextmanager
def _sigterm() -> Iterator[None]:
    """Raise an exception on SIGTERM, so that it is handled like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise_terminated(number: int, frame: Any) -> None:
    raise TerminatedError


class _Handler(logging.Handler):
    """Prints messages above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        warning = record.levelno >= logging.WARNING
        text = " ".join(record.getMessage().split())
        tqdm.write(f"warning: {text}" if warning else text, file=sys.stderr if warning else sys.stdout)


@contextmanager
def _messages() -> Iterator[None]:
    """Print the messages of the library while a command runs, in the main process."""
    logger, handler = logging.getLogger("pyro_vae"), _Handler()
    level = logger.level
    logger.setLevel(logging.INFO if is_main_process() else logging.CRITICAL)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _stop(code: int, line: str, error: BaseException) -> int:
    if is_main_process() or isinstance(error, StorageError):
        print("; ".join([" ".join(line.split()), *getattr(error, "__notes__", [])]), file=sys.stderr)
    return code
