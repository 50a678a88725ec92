"""ResNet-34 (He et al., Deep Residual Learning for Image Recognition, 2016)."""

from __future__ import annotations

from bdjax.models._residual import BasicBlock, resnet
from bdjax.types import Model, Spec


def resnet34(spec: Spec, width: int = 64, stem: str = "auto", dtype: str = "float32") -> Model:
    """Create torchvision's ResNet-34: four stages of 3, 4, 6 and 3 blocks of two convolutions.

    At width 64 and 10 classes it has 21,289,802 parameters, and 21,282,122 with the stem for small images.

    Args:
      spec: the images' specification; any height and width.
      width: channels of the first stage; the stages have width · (1, 2, 4, 8).
      stem: "imagenet" is a 7×7 convolution with stride 2 and a max-pool, as in torchvision; "cifar" a 3×3 convolution
        without either, as in the defenses' papers; "auto" is "cifar" for images of up to 64 pixels a side and
        "imagenet" for larger ones. BackdoorBench has "imagenet" for all.
      dtype: in which the layers compute, ``"float32"`` or ``"bfloat16"``; variables, features and logits are float32.

    Raises:
      InputError: ``width`` below 1, an unknown ``stem`` or ``dtype``, or a specification of other inputs.
    """
    return resnet("resnet34", spec, BasicBlock, (3, 4, 6, 3), width, stem, dtype)
