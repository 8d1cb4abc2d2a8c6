"""`python -m pyro_vae.train`: the same as `pyro-vae train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pyro_vae.__main__ as command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    if argv is None:
        argv = sys.argv[1:]
    return command.main(["train", *argv])


if __name__ == "__main__":
    sys.exit(main())
