"""Layers that draw in training, from Flax's stream "dropout"; without a key they leave their input as it is."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Float


class Dropout(nn.Module):
    """Set values to zero with a probability, and divide the others by 1 − rate; in training alone.

    Attributes:
      rate: the probability, in [0, 1].
      shared: the axes along which all values have the same fate.
    """

    rate: float
    shared: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, x: Float[Array, "n *d"], *, train: bool) -> Float[Array, "n *d"]:
        # `LinenModel` skips Flax's layer where it has no key, whoever wrote the network.
        return nn.Dropout(self.rate, broadcast_dims=self.shared)(x, deterministic=not train)


class StochasticDepth(nn.Module):
    """Set whole rows to zero with a probability, and divide the others by 1 − rate; in training alone.

    Of Huang et al., Deep Networks with Stochastic Depth, 2016; torchvision's mode "row".
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "n *d"], *, train: bool) -> Float[Array, "n *d"]:
        return Dropout(self.rate, tuple(range(1, x.ndim)))(x, train=train)
