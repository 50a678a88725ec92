"""ViT-B/16 (Dosovitskiy et al., An Image Is Worth 16×16 Words: Transformers for Image Recognition at Scale, 2021)."""

from __future__ import annotations

from bdjax.models._vit import vit
from bdjax.types import Model, Spec


def vit_b_16(
    spec: Spec,
    width: int = 768,
    blocks: int = 12,
    heads: int | None = None,
    patch: int = 16,
    resize: int | None = None,
    dtype: str = "float32",
) -> Model:
    """Create torchvision's ViT-B/16: patches as tokens, twelve blocks of attention, classified by a token of its own.

    On 224×224 pixels with 10 classes it has 85,806,346 parameters. The positions are learned for one size of images, so
    weights for 224×224 need images of that size or ``resize=224``, which is how BackdoorBench takes 32×32 ones; they
    are not interpolated to others.

    Args:
      spec: the images' specification; both sides are multiples of ``patch``, unless the images are resized.
      width: of the embedding, in channels; the hidden layers have four times as many.
      blocks: of attention, one after the other.
      heads: of attention, a divisor of ``width``; None is one for each 64 channels, and one in all of a width that 64
        does not divide.
      patch: pixels a side of a patch.
      resize: pixels a side to which the network resizes its images, bilinearly and with antialiasing; None leaves them.
      dtype: in which the layers compute, ``"float32"`` or ``"bfloat16"``; variables, features and logits are float32.

    Raises:
      InputError: a number below 1, ``heads`` that do not divide ``width``, a ``patch`` that does not divide the images,
        an unknown ``dtype``, or a specification of other inputs.
    """
    return vit("vit_b_16", spec, width, blocks, heads, patch, resize, dtype)
