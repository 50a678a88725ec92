"""DenseNet-161 (Huang et al., Densely Connected Convolutional Networks, 2017)."""

from __future__ import annotations

from bdjax.models._densenet import densenet
from bdjax.types import Model, Spec


def densenet161(spec: Spec, width: int = 96, dtype: str = "float32") -> Model:
    """Create torchvision's DenseNet-161: four dense blocks of 6, 12, 36 and 24 layers, with a growth of 48.

    At width 96 and 10 classes it has 26,494,090 parameters.

    Args:
      spec: the images' specification; a height and a width of 29 pixels or more.
      width: channels of the first convolution; each layer adds half as many.
      dtype: in which the layers compute, ``"float32"`` or ``"bfloat16"``; variables, features and logits are float32.

    Raises:
      InputError: ``width`` below 1, an unknown ``dtype``, smaller images, or a specification of other inputs.
    """
    return densenet("densenet161", spec, (6, 12, 36, 24), width, dtype)
