"""Variational autoencoders as Pyro programs.

Classes whose names are ambiguous (Normal, Laplace, Linear) are in their modules: `priors`, `posteriors`, `likelihoods`,
`networks` and `schedules`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_vae._public import *
else:
    # The commands import this package before they can handle Ctrl-C, and torch takes seconds to import.
    def __getattr__(name: str) -> Any:
        if name[0] != "_" or name == "__all__":
            public = vars(import_module("pyro_vae._public"))
            globals().update({key: value for key, value in public.items() if key[0] != "_"})
            globals()["__all__"] = [key for key in public if key[0] != "_"]
        if name not in globals():
            raise AttributeError(f"module 'pyro_vae' has no attribute {name!r}")
        return globals()[name]

    def __dir__() -> list[str]:
        return __getattr__("__all__")
