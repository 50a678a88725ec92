"""ViT-S/16 (Touvron et al., Training Data-Efficient Image Transformers & Distillation through Attention, 2021)."""

from __future__ import annotations

from bdjax.models._vit import vit
from bdjax.types import Model, Spec


def vit_s_16(
    spec: Spec,
    width: int = 384,
    blocks: int = 12,
    heads: int | None = None,
    patch: int = 16,
    resize: int | None = None,
    dtype: str = "float32",
) -> Model:
    """Create ViT-S/16: `vit_b_16` at half the width, with torchvision's names, which has no such network itself.

    On 224×224 pixels with 10 classes it has 21,669,514 parameters.

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
    return vit("vit_s_16", spec, width, blocks, heads, patch, resize, dtype)
