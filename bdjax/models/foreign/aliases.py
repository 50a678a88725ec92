"""Other people's names for the same arrays, as rules that rewrite a whole state dict into torchvision's names.

A state dict is in one spelling as a whole. Which one is found by trying: the one under which the most names are those
of the network.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from bdjax.checks import one_of

Names = dict[str, str]  # the file's name of an array by torchvision's


class _Spelling(NamedTuple):
    """Rules, each applied to every name in turn; ``sign`` is in a name that no other spelling has."""

    name: str
    sign: re.Pattern[str]
    rules: tuple[tuple[re.Pattern[str], str], ...]


def _spelling(name: str, sign: str, *rules: tuple[str, str]) -> _Spelling:
    compiled = [(re.compile(pattern), new) for pattern, new in rules]
    return _Spelling(name, re.compile(sign), tuple(compiled))


_CONVNEXT_BLOCK = (
    (r"\.gamma$", ".layer_scale"),
    (r"\.(?:conv_dw|dwconv)\.", ".block.0."),
    (r"(features\.[1357]\.\d+)\.norm\.", r"\1.block.2."),
    (r"\.(?:mlp\.fc1|pwconv1)\.", ".block.3."),
    (r"\.(?:mlp\.fc2|pwconv2)\.", ".block.5."),
)


def _stages(pattern: str, first: int) -> tuple[tuple[str, str], ...]:
    """Return rules that number ConvNeXt's stages as torchvision does: every other one of ``features``."""
    return tuple((pattern.format(i), f"features.{2 * i + first}.") for i in range(4))


_SPELLINGS = (
    _spelling(
        "bdjax's own",
        r"^layer\d_\d+\.",
        (r"^layer(\d)_(\d+)\.", r"layer\1.\2."),
        (r"^(layer\d\.\d+\.shortcut)\.(weight)$", r"\1.0.\2"),
    ),
    _spelling(
        "kuangliu's ResNet",
        r"\.shortcut\.\d\.|^linear\.",
        (r"\.shortcut\.", ".downsample."),
        (r"^linear\.", "fc."),
    ),
    _spelling(
        "timm's ViT",
        r"^blocks\.\d+\.attn\.qkv\.",
        (r"^cls_token$", "class_token"),
        (r"^pos_embed$", "encoder.pos_embedding"),
        (r"^patch_embed\.proj\.", "conv_proj."),
        (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
        (r"\.attn\.proj\.", ".self_attention.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.3."),
        (r"^norm\.", "encoder.ln."),
        (r"^head\.", "heads.head."),
    ),
    _spelling(
        "torchvision's first ViT",
        r"\.mlp\.linear_[12]\.",
        (r"\.mlp\.linear_1\.", ".mlp.0."),
        (r"\.mlp\.linear_2\.", ".mlp.3."),
    ),
    _spelling(
        "timm's ConvNeXt",
        r"^stages\.\d\.blocks\.\d+\.",
        (r"^stem\.", "features.0."),
        *_stages(r"^stages\.{}\.downsample\.", 0),
        *_stages(r"^stages\.{}\.blocks\.", 1),
        *_CONVNEXT_BLOCK,
        (r"^head\.norm\.", "classifier.0."),
        (r"^head\.fc\.", "classifier.2."),
    ),
    _spelling(
        "the first ConvNeXt",
        r"^downsample_layers\.",
        *_stages(r"^downsample_layers\.{}\.", 0),
        *_stages(r"^stages\.{}\.", 1),
        *_CONVNEXT_BLOCK,
        (r"^norm\.", "classifier.0."),
        (r"^head\.", "classifier.2."),
    ),
    _spelling(
        "torchvision's first DenseNet",
        r"\.denselayer\d+\.(?:norm|conv)\.[12]\.",
        (r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),
    ),
)
_KUANGLIU = ((re.compile(r"\.downsample\."), ".shortcut."), (re.compile(r"^fc\."), "linear."))
EXPORTS = ("torchvision", "kuangliu")


def spellings(names: Iterable[str]) -> Iterator[tuple[str, Names]]:
    """Yield the ways to read a state dict's names: as they are first, then rewritten by each rule that has a sign."""
    names = list(names)
    yield "as they are", {name: name for name in names}
    for spelling in _SPELLINGS:
        if not any(spelling.sign.search(name) for name in names):
            continue
        rewritten = {_rewritten(name, spelling.rules): name for name in names}
        if len(rewritten) == len(names):  # no two became one
            yield spelling.name, rewritten


def matched(names: Collection[str], wanted: Collection[str]) -> Names:
    """Return the file's name for each, in the spelling under which the most are wanted."""
    found = [read for _, read in spellings(names)]
    return max(found, key=lambda read: len(read.keys() & set(wanted)))


def published(name: str) -> str:
    """Return the usual name of an array that a network here calls otherwise: those of ``preact_resnet18``."""
    return _rewritten(name, _SPELLINGS[0].rules)


def exported(name: str, names: str = "torchvision") -> str:
    """Return the name of an array in another spelling than torchvision's.

    Raises:
      InputError: an unknown spelling.
    """
    one_of(EXPORTS, names=names)
    return _rewritten(name, _KUANGLIU) if names == "kuangliu" else name


def _rewritten(name: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, new in rules:
        name = pattern.sub(new, name)
    return name
