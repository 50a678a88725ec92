"""DenseNet-121 (Huang et al., Densely Connected Convolutional Networks, 2017)."""

from __future__ import annotations

from bdjax.models._densenet import densenet
from bdjax.types import Model, Spec


def densenet121(spec: Spec, width: int = 64, dtype: str = "float32") -> Model:
    """Create torchvision's DenseNet-121: four dense blocks of 6, 12, 24 and 16 layers, with a growth of 32.

    At width 64 and 10 classes it has 6,964,106 parameters.

    Args:
      spec: the images' specification; a height and a width of 29 pixels or more.
      width: channels of the first convolution; each layer adds half as many.
      dtype: in which the layers compute, ``"float32"`` or ``"bfloat16"``; variables, features and logits are float32.

    Raises:
      InputError: ``width`` below 1, an unknown ``dtype``, smaller images, or a specification of other inputs.
    """
    return densenet("densenet121", spec, (6, 12, 24, 16), width, dtype)
