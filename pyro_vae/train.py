"""`python -m pyro_vae.train`: the same as `pyro-vae train`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pyro_vae.cli import main as cli
from pyro_vae.cli.train import train


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return cli.run(train, list(sys.argv[1:] if argv is None else argv))


if __name__ == "__main__":
    sys.exit(main())
