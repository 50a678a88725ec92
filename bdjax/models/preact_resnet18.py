"""Pre-activation ResNet-18 for small images (He et al., Identity Mappings in Deep Residual Networks, 2016)."""

from __future__ import annotations

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from bdjax.models._layers import (
    BatchNorm,
    Dense,
    LinenModel,
    check_images,
    check_options,
    conv,
    pooled,
)
from bdjax.types import Model, Spec


def preact_resnet18(spec: Spec, width: int = 64, dtype: str = "float32") -> Model:
    """Create the backdoor literature's PreAct-ResNet18: 3×3 stem, four stages of two blocks, no norm after the last.

    At width 64 and 10 classes it has 11,171,146 parameters and 3,392 batch-norm channels. The last block's output is
    pooled without batch norm or ReLU, so the 512 penultimate features can be negative; that is how the published
    results were made (BackdoorBench), not how He et al. draw it.

    Args:
      spec: the images' specification; any height and width.
      width: channels of the first stage; the stages have width · (1, 2, 4, 8).
      dtype: in which the layers compute, ``"float32"`` or ``"bfloat16"``; variables, features and logits are float32.

    Raises:
      InputError: ``width`` below 1, an unknown ``dtype``, or a specification of other inputs.
    """
    check_options(width, dtype)
    check_images("preact_resnet18", spec)
    return LinenModel(_PreActResNet(num_classes=spec.num_classes, width=width), spec, dtype)


class _Block(nn.Module):
    features: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool, valid: Array | None) -> Array:
        out = nn.relu(BatchNorm(name="bn1")(x, train=train, valid=valid))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(self.features, 1, stride=self.stride, name="shortcut")(out)
        out = conv(self.features, 3, stride=self.stride, name="conv1")(out)
        out = nn.relu(BatchNorm(name="bn2")(out, train=train, valid=valid))
        return x + conv(self.features, 3, name="conv2")(out)


class _PreActResNet(nn.Module):
    num_classes: int
    width: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool, valid: Bool[Array, " n"] | None = None
    ) -> Float[Array, "n k"]:
        x = conv(self.width, 3, name="conv1")(x)
        for stage in range(4):
            for block in range(2):
                stride = 2 if stage > 0 and block == 0 else 1
                name = f"layer{stage + 1}_{block}"
                x = _Block(self.width * 2**stage, stride, name=name)(x, train=train, valid=valid)
        return Dense(self.num_classes, name="linear")(pooled(x))
