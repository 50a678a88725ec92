"""EfficientNet-B0 (Tan and Le, EfficientNet: Rethinking Model Scaling, 2019)."""

from __future__ import annotations

from bdjax.models._efficientnet import Compound, efficientnet
from bdjax.types import Model, Spec


def efficientnet_b0(spec: Spec, width: int = 32, dtype: str = "float32") -> Model:
    """Create torchvision's EfficientNet-B0: 16 inverted residuals in seven stages, with squeeze-and-excitation.

    At width 32 and 10 classes it has 4,020,358 parameters. In training, dropout is 0.2 before the classifier, and
    a block is left out of an image with a probability that grows from 0 at the first block to nearly 0.2 at the last.

    Args:
      spec: the images' specification; any height and width.
      width: channels of the first convolution, to which all others are in proportion, as multiples of 8 (of the width,
        where that is below 8).
      dtype: in which the layers compute, ``"float32"`` or ``"bfloat16"``; variables, features and logits are float32.

    Raises:
      InputError: ``width`` below 1, an unknown ``dtype``, or a specification of other inputs.
    """
    return efficientnet("efficientnet_b0", spec, Compound(32, 1.0, 1.0, 0.2), width, dtype)
