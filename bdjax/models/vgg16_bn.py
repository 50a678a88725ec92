"""VGG-16 with batch norm (Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, 2015)."""

from __future__ import annotations

from bdjax.models._vgg import vgg
from bdjax.types import Model, Spec


def vgg16_bn(spec: Spec, width: int = 64, head: str = "auto", dtype: str = "float32") -> Model:
    """Create torchvision's VGG-16: thirteen 3×3 convolutions with bias and batch norm, five max-pools, and a head.

    At width 64 and 10 classes it has 134,309,962 parameters, and 14,728,266 with the head for small images.

    Args:
      spec: the images' specification; 32 pixels a side or more.
      width: channels of the first stage; the five have width · (1, 2, 4, 8, 8).
      head: "imagenet" is torchvision's, three dense layers with dropout on maps of 7×7, to which an image of 32×32 is
        repeated from 1×1; "cifar" one dense layer on the mean, as in the defenses' papers; "auto" is "cifar" for images
        of up to 64 pixels a side and "imagenet" for larger ones. BackdoorBench has "imagenet" for all.
      dtype: in which the layers compute, ``"float32"`` or ``"bfloat16"``; variables, features and logits are float32.

    Raises:
      InputError: ``width`` below 1, an unknown ``head`` or ``dtype``, or a specification of other inputs or of smaller
        images.
    """
    return vgg("vgg16_bn", spec, (2, 2, 3, 3, 3), width, head, dtype, batch_norm=True)
