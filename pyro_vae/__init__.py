"""Variational autoencoders as Pyro programs.

The public names are in `__init__.pyi`; the first use of one imports its module. Classes whose
names are ambiguous (Normal, Laplace, Linear) are in their modules: `priors`, `posteriors`,
`likelihoods`, `networks` and `schedules`.
"""

import lazy_loader

__version__ = "0.3.0.dev0"

# The commands import this package before they can handle Ctrl-C, and torch takes seconds to import.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
