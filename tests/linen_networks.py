"""Networks as people write them, from plain Flax layers: none of bdjax's own, and names as Flax gives them."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import networks

from bdjax.models._layers import LinenModel


class Norms(nn.Module):
    """Convolutions and dense layers, two of each, with Flax's batch norm."""

    @nn.compact
    def __call__(self, x, *, train: bool, valid=None):
        mask = None if valid is None else valid[:, None, None, None]
        for width in (4, 6):
            x = nn.Conv(width, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x, mask=mask))
        return nn.Dense(3)(nn.relu(nn.Dense(5)(x.mean((1, 2)))))


class SetUp(nn.Module):
    """Layers made in `setup`, another kind of norm, and a head that takes in the whole map; it takes no keyword."""

    def setup(self):
        self.stem, self.norm = nn.Conv(4, (3, 3)), nn.LayerNorm()
        self.deeper, self.head = nn.Conv(5, (3, 3)), nn.DenseGeneral(3, axis=(-3, -2, -1))

    def __call__(self, x):
        return self.head(nn.relu(self.deeper(self.norm(self.stem(x)))))


class Pooled(nn.Module):
    """No dense layer: the classifier is a convolution, after the pooling or before it."""

    pooled_first: bool = True

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3, 3))(nn.relu(nn.Conv(4, (3, 3))(x))))
        x = nn.avg_pool(x, x.shape[1:3]) if self.pooled_first else x
        return nn.Conv(3, (1, 1))(x).mean((1, 2))


class Block(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(self.width)(nn.relu(nn.Conv(self.width, (3, 3))(x)))


class Nested(nn.Module):
    """Blocks with layers inside, each compiled, rematerialized or as it is."""

    wrap: Any = tuple  # which is nothing; a class, so that it is hashable

    @nn.compact
    def __call__(self, x):
        block = Block if self.wrap is tuple else self.wrap(Block)
        x = nn.Conv(4, (3, 3))(x)
        for _ in range(2):
            x = block(4)(x)
        return nn.Dense(3)(x.max((1, 2)))


class Doubled(nn.Conv):
    """A convolution that is more than its product with a kernel."""

    def __call__(self, inputs):
        return 2 * super().__call__(inputs)


class Subclass(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=2)(Doubled(4, (3, 3))(x)))
        return nn.Dense(3)(x.mean((1, 2)))


class Attention(nn.Module):
    """A transformer over patches, classified by its first token."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), strides=(3, 3))(x)
        x = x.reshape(x.shape[0], -1, 8)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return nn.Dense(3)(x[:, 0])


class Perceptron(nn.Module):
    """Dense layers alone."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(6)(x.reshape(x.shape[0], -1)))
        return nn.Dense(3)(nn.relu(nn.Dense(5)(x)))


class Normalized(nn.Module):
    """Weight norm: its layers compute with another kernel than that among the parameters."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.WeightNorm(nn.Conv(4, (3, 3)))(x))
        return nn.WeightNorm(nn.Dense(3))(x.mean((1, 2)))


def sequential() -> nn.Sequential:
    return nn.Sequential(
        [nn.Conv(4, (3, 3)), nn.relu, nn.Conv(5, (3, 3)), nn.relu, _mean, nn.Dense(3)]
    )


def _mean(x):
    return x.mean((1, 2))


MODULES: dict[str, nn.Module] = {
    "norms": Norms(),
    "set_up": SetUp(),
    "pooled": Pooled(),
    "convolved": Pooled(pooled_first=False),
    "nested": Nested(),
    "remat": Nested(nn.remat),
    "jit": Nested(nn.jit),
    "subclass": Subclass(),
    "attention": Attention(),
    "perceptron": Perceptron(),
    "normalized": Normalized(),
    "sequential": sequential(),
}
MODELS = {name: LinenModel(module, networks.TINY) for name, module in MODULES.items()}
