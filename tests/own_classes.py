"""Classes of a user: the content of the module `mine` of the fixture `folder`."""

import pyro.distributions as dist
import torch

import pyro_vae as pv


class MyPrior(pv.Prior):
    """A prior with tails.

    Arguments:
        latent_dim: Number of latent dimensions.
        params: Degrees of freedom of the tails.
    """

    def __init__(self, latent_dim: int, params: float = 3.0) -> None:
        super().__init__()
        self.df = params
        self.log_scale = torch.nn.Parameter(torch.zeros(latent_dim))

    def forward(self):
        return dist.StudentT(self.df, 0.0, self.log_scale.exp()).to_event(1)


class MyPosterior(pv.Posterior):
    num_params = 2

    def __init__(self, encoder: float = 1.0, data_shape: int = 2) -> None:
        super().__init__()
        self.options = encoder, data_shape

    def forward(self, params):
        loc, log_scale = params.unbind(-2)
        return dist.Laplace(loc, log_scale.exp()).to_event(1)


class MyLikelihood(pv.Likelihood):
    num_params = 1
    pixels = "dequantized"

    def forward(self, params):
        return dist.Cauchy(params.squeeze(-4), 0.1).to_event(3)


class MyEncoder(torch.nn.Module):
    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], width: int = 7):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(),
            torch.nn.Linear(in_shape[1] * in_shape[2], width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, out_shape[0] * out_shape[1]),
            torch.nn.Unflatten(1, out_shape),
        )

    def forward(self, x):
        return self.layers(x)


class MyDecoder(MyEncoder):
    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]):
        torch.nn.Module.__init__(self)
        size = out_shape[0] * out_shape[1] * out_shape[2] * out_shape[3]
        linear = torch.nn.Linear(in_shape[0], size)
        self.layers = torch.nn.Sequential(linear, torch.nn.Unflatten(1, out_shape))


class MyBeta(pv.Schedule):
    def __init__(self, steps: int = 10) -> None:
        self.steps = steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / self.steps)


class MyVAE(pv.VAE):
    pass


class MyError(Exception):
    pass


class BadConstructor(MyPrior):
    def __init__(self, latent_dim: int) -> None:
        raise ValueError("no such luck")


class BadForward(MyPrior):
    def forward(self):
        raise MyError("no such luck")


class BadLater(MyPrior):
    def forward(self):
        if self.training and self.log_scale.abs().sum() > 0:
            raise MyError("no such luck")
        return super().forward()


class BadNetwork(MyEncoder):
    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]):
        super().__init__(in_shape, out_shape)
        torch.nn.Linear("a", "b")


class BadOptimizer(torch.optim.SGD):
    def step(self, closure=None):
        raise MyError("no such luck")


class BadScheduler(torch.optim.lr_scheduler.LRScheduler):
    def get_lr(self):
        if self.last_epoch > 0:
            raise MyError("no such luck")
        return self.base_lrs
