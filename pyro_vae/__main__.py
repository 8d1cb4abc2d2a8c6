"""`python -m pyro_vae`: the same as `pyro-vae`."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Ctrl-C is one line during the imports too, which take seconds.
    """
    try:
        from pyro_vae.cli.main import main

        return main(argv)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
