"""The commands' entry point: messages, signals and exit codes."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from pyro_vae.cli.evaluate import evaluate
from pyro_vae.cli.generate import generate
from pyro_vae.cli.report import report
from pyro_vae.cli.train import train
from pyro_vae.engine.distributed import is_main_process
from pyro_vae.errors import (
    LostWorkerError,
    NotFiniteError,
    RequestError,
    StorageError,
    TerminatedError,
)

Command = Callable[[list[str]], None]

COMMANDS: dict[str, Command] = {
    "train": train,
    "evaluate": evaluate,
    "generate": generate,
    "report": report,
}

USAGE = """usage: pyro-vae COMMAND ...

Variational autoencoders as Pyro programs.

commands:
  train       train a model, score it on the test set and draw figures
  evaluate    score a saved run and check how far the numbers can be trusted
  generate    write images or arrays from a saved run
  report      write an HTML page about one run, or that compares several

pyro-vae COMMAND --help lists the options of a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `pyro-vae COMMAND ...` and return its exit code."""
    if argv is None:
        argv = sys.argv[1:]
    name, *options = argv or ["--help"]
    return run(COMMANDS.get(name, partial(_usage, name)), options)


def _usage(name: str, options: list[str]) -> None:
    if name not in ("-h", "--help"):
        raise RequestError(f"unknown command {name}; choose from {', '.join(COMMANDS)}")
    print(USAGE)


def run(command: Command, argv: list[str]) -> int:
    """Run a command and return its exit code.

    It is 0, 2 for a wrong request, 130 for Ctrl-C, 143 for SIGTERM, or 1. Expected errors are one
    line, with what to do next if the exception has a note of it. Others keep their traceback.
    """
    try:
        with _sigterm(), _messages():
            command(argv)
    except SystemExit as stop:  # of --help
        return int(stop.code or 0)
    except RequestError as error:
        return _stop(2, f"error: {error}", error)
    except (NotFiniteError, StorageError, LostWorkerError) as error:
        return _stop(1, f"error: {error}", error)
    except KeyboardInterrupt as error:
        return _stop(130, "stopped by Ctrl-C", error)
    except TerminatedError as error:
        lost = error.__context__
        if isinstance(lost, LostWorkerError):  # torchrun stops the others during their cleanup
            return _stop(1, f"error: {lost}", lost)
        return _stop(143, "stopped by SIGTERM", error)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        advice = "use a smaller model, smaller images or a smaller batch_size"
        return _stop(1, f"error: out of memory; {advice}", error)
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


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


def _raise_terminated(number: int, frame: Any) -> NoReturn:
    raise TerminatedError


class _Handler(logging.Handler):
    """Prints messages above the progress bar, and goes on if nothing can be printed.

    Attributes:
        failed: Whether a message was lost.
    """

    failed = False

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        stream = sys.stdout
        if record.levelno >= logging.WARNING:
            text = f"warning: {' '.join(text.split())}"
            stream = sys.stderr
        try:
            tqdm.write(text, file=stream)
            stream.flush()
        except OSError:
            self.failed = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # or Python fails again when it flushes at exit


@contextmanager
def _messages() -> Iterator[None]:
    """Print the messages of the library while a command runs, in the main process.

    Raises:
        StorageError: At the end, if messages were lost.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    logger = logging.getLogger("pyro_vae")
    handler = _Handler()
    level = logger.level
    logger.setLevel(logging.INFO if is_main_process() else logging.CRITICAL)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    if handler.failed:
        raise StorageError("the output cannot be written; the files are complete")


def _stop(code: int, line: str, error: BaseException) -> int:
    """Print one line and return the exit code; names in it may hold any letters."""
    if is_main_process() or isinstance(error, StorageError | LostWorkerError):
        printable = "".join(letter if letter.isprintable() else " " for letter in line)
        short = " ".join(printable.split())[:800]
        print("; ".join([short, *getattr(error, "__notes__", [])]), file=sys.stderr)
    return code
