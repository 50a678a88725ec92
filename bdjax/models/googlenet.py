"""GoogLeNet with torchvision's names (Szegedy et al., Going Deeper with Convolutions, 2015)."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from bdjax.models._dropout import Dropout
from bdjax.models._form import check_side
from bdjax.models._inception import Unit, share
from bdjax.models._layers import Dense, LinenModel, check_images, check_options, pooled
from bdjax.models._pooling import max_pool
from bdjax.models._sequential import Sequential
from bdjax.types import Model, Spec

_WIDTH = 64
_SMALLEST = 15  # pixels a side: fewer leave nothing to the third pooling
# Channels of each block: 1×1; 3×3, before and after; 3×3 in place of 5×5, before and after; 1×1 of the pooled.
_STAGES = {
    "3": {"a": (64, 96, 128, 16, 32, 32), "b": (128, 128, 192, 32, 96, 64)},
    "4": {
        "a": (192, 96, 208, 16, 48, 64),
        "b": (160, 112, 224, 24, 64, 64),
        "c": (128, 128, 256, 24, 64, 64),
        "d": (112, 144, 288, 32, 64, 64),
        "e": (256, 160, 320, 32, 128, 128),
    },
    "5": {"a": (256, 160, 320, 32, 128, 128), "b": (384, 192, 384, 48, 128, 128)},
}
_HEADS = {"4a": "aux1", "4d": "aux2"}  # after which block

_normal = nn.initializers.normal(0.01)
_unit = partial(Unit, kernel_init=_normal)
_dense = partial(Dense, kernel_init=_normal)


def googlenet(spec: Spec, width: int = 64, aux: bool = False, dtype: str = "float32") -> Model:
    """Create torchvision's GoogLeNet: nine Inception blocks with batch norm (ε = 0.001), pooling, dropout, dense.

    At 10 classes it has 5,610,154 parameters, or 9,960,638 with both auxiliary heads. Where the paper has a 5×5
    convolution, torchvision has a 3×3 one, and so has this.

    Departure. In training torchvision also returns the auxiliary heads' logits, whose losses users add at a weight of
    0.3. Here the heads are never computed: their variables are kept for files that have them, and only weight decay
    moves them.

    Args:
      spec: the images' specification; 15 pixels a side or more.
      width: channels of the first convolution; all others follow, rounded down.
      aux: whether the variables hold the auxiliary heads.
      dtype: in which the layers compute, ``"float32"`` or ``"bfloat16"``; variables, features and logits are float32.

    Raises:
      InputError: ``width`` below 1, an unknown ``dtype``, or a specification of other inputs or of smaller images.
    """
    check_options(width, dtype)
    check_images("googlenet", spec)
    check_side("googlenet", spec, _SMALLEST)
    return LinenModel(_GoogLeNet(spec.num_classes, width, aux), spec, dtype)


class _GoogLeNet(nn.Module):
    num_classes: int
    width: int
    aux: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        x = self._stem(x, train=train, valid=valid)
        for stage, blocks in _STAGES.items():
            for letter, channels in blocks.items():
                block = _Block(channels, self.width, name=f"inception{stage}{letter}")
                x = block(x, train=train, valid=valid)
                head = _HEADS.get(stage + letter)
                if head and self.aux and self.is_initializing():
                    _Head(self.num_classes, self.width, name=head)(x)
            if stage != "5":
                x = max_pool(x, 3 if stage == "3" else 2, 2, ceil_mode=True)
        x = Dropout(0.2)(pooled(x), train=train)
        return _dense(self.num_classes, name="fc")(x)

    def _stem(self, x: Array, *, train: bool, valid: Array | None) -> Array:
        middle, last = share(64, self.width, _WIDTH), share(192, self.width, _WIDTH)
        x = _unit(self.width, 7, 2, name="conv1")(x, train=train, valid=valid)
        x = max_pool(x, 3, 2, ceil_mode=True)
        x = _unit(middle, 1, name="conv2")(x, train=train, valid=valid)
        x = _unit(last, 3, name="conv3")(x, train=train, valid=valid)
        return max_pool(x, 3, 2, ceil_mode=True)


class _Block(nn.Module):
    """Four branches on the same maps, side by side."""

    channels: tuple[int, ...]
    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None
    ) -> Float[Array, "n h w d"]:
        sizes = [share(channels, self.width, _WIDTH) for channels in self.channels]
        one, before, three, before_five, five, after = sizes
        branches = (
            _unit(one, 1, name="branch1"),
            Sequential((partial(_unit, before, 1), partial(_unit, three, 3)), name="branch2"),
            Sequential((partial(_unit, before_five, 1), partial(_unit, five, 3)), name="branch3"),
            Sequential((_neighborhood, partial(_unit, after, 1)), name="branch4"),
        )
        return jnp.concatenate([branch(x, train=train, valid=valid) for branch in branches], -1)


class _Head(nn.Module):
    """An auxiliary head, which has variables and no use."""

    num_classes: int
    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> None:
        maps = jnp.zeros((1, 4, 4, x.shape[-1]), x.dtype)  # as large as what it pools to
        out = _unit(share(128, self.width, _WIDTH), 1, name="conv")(maps, train=False)
        out = _dense(share(1024, self.width, _WIDTH), name="fc1")(out.reshape(1, -1))
        _dense(self.num_classes, name="fc2")(out)


def _neighborhood(x: Array) -> Array:
    return max_pool(x, 3, 1, 1)
