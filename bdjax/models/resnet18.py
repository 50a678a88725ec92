"""ResNet-18 (He et al., Deep Residual Learning for Image Recognition, 2016)."""

from __future__ import annotations

from bdjax.models._residual import BasicBlock, resnet
from bdjax.types import Model, Spec


def resnet18(spec: Spec, width: int = 64, stem: str = "auto", dtype: str = "float32") -> Model:
    """Create torchvision's ResNet-18: four stages of two blocks of two convolutions.

    At width 64 and 10 classes it has 11,181,642 parameters, and 11,173,962 with the stem for small images.

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
    return resnet("resnet18", spec, BasicBlock, (2, 2, 2, 2), width, stem, dtype)
