"""Which networks a state dict may be of, as far as its names and shapes say: a function for each family.

Each takes the shapes by torchvision's names, and returns a guess, or None where the family's sign is not there. A guess
is only a proposal: `recognize` tries it against the network itself. A new family is a function and a place in
``FAMILIES``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import TypeAlias

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
Option: TypeAlias = int | str | bool


@dataclasses.dataclass(frozen=True)
class Guess:
    """What a state dict may be.

    Attributes:
      names: of the networks to try; one that is not there is left out.
      choices: sets of options to try with each.
      first, last: names of the first convolution and of the classifier, which say channels and classes.
      image_size: pixels a side for which such a network is usually made.
      exact: the image size is in the weights.
      why: the sign.
      unknown: an option that no weight says, and that another network of the family has otherwise; empty where none is.
    """

    names: tuple[str, ...]
    choices: tuple[Mapping[str, Option], ...]
    first: str
    last: str
    image_size: int
    why: str
    exact: bool = False
    unknown: str = ""


_Depths: TypeAlias = dict[tuple[int, ...], str]
_RESNETS: _Depths = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34"}
_BOTTLENECKS: _Depths = {
    (3, 4, 6, 3): "resnet50",
    (3, 4, 23, 3): "resnet101",
    (3, 8, 36, 3): "resnet152",
}
_VGGS = {8: "vgg11", 10: "vgg13", 13: "vgg16", 16: "vgg19"}  # by the number of convolutions
_DENSENETS: _Depths = {
    (6, 12, 24, 16): "densenet121",
    (6, 12, 36, 24): "densenet161",
    (6, 12, 32, 32): "densenet169",
    (6, 12, 48, 32): "densenet201",
}
_EFFICIENTNETS = tuple(f"efficientnet_b{number}" for number in range(8))
_SMALL, _LARGE = 32, 224  # pixels a side
# Widths of published transformers, whose heads have 64 channels
_OF_USUAL_HEADS = frozenset({192, 384, 768, 1024})


def _count(shapes: Shapes, pattern: str) -> int:
    """Return how many numbers stand at the group of a pattern."""
    found: set[str] = set()
    for name in shapes:
        if (match := re.match(pattern, name)) is not None:
            found.add(match[1])
    return len(found)


def _blocks(shapes: Shapes, pattern: str, stages: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(_count(shapes, pattern.format(stage)) for stage in stages)


def _widths(width: int, published: int, **others: Option) -> tuple[Mapping[str, Option], ...]:
    """Return the options, with the width where it is not the published one."""
    return ({**others, "width": width},) if width != published else (others,)


def _small(classes: int) -> int:
    """Return the image size of the sets that small networks are trained on: 200 classes are Tiny-ImageNet's."""
    return 64 if classes == 200 else _SMALL


def resnet(shapes: Shapes) -> Guess | None:
    """Recognize ResNets by ``layer1.0.conv1`` and ``fc``: depth by the blocks, the stem by the first kernel."""
    if not {"conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "fc.weight"} <= shapes.keys():
        return None
    blocks = _blocks(shapes, r"layer{}\.(\d+)\.", (1, 2, 3, 4))
    known = _BOTTLENECKS if "layer1.0.conv3.weight" in shapes else _RESNETS
    width, _, *kernel = shapes["conv1.weight"]
    stem = "imagenet" if kernel == [7, 7] else "cifar"
    size = _LARGE if stem == "imagenet" else _small(shapes["fc.weight"][0])
    why = f"residual blocks {blocks} and a stem of {'×'.join(map(str, kernel))}"
    names = (known[blocks],) if blocks in known else ()
    choices = _widths(width, 64, stem=stem)
    return Guess(names, choices, "conv1.weight", "fc.weight", size, why)


def preact_resnet(shapes: Shapes) -> Guess | None:
    """Recognize the backdoor literature's PreAct-ResNet18: a batch norm before the first block's convolution."""
    needed = {"conv1.weight", "layer1.0.bn1.weight", "layer1.0.conv1.weight", "linear.weight"}
    if not needed <= shapes.keys() or "bn1.weight" in shapes:
        return None
    blocks = _blocks(shapes, r"layer{}\.(\d+)\.", (1, 2, 3, 4))
    names = ("preact_resnet18",) if blocks == (2, 2, 2, 2) else ()
    size = _small(shapes["linear.weight"][0])
    why = f"pre-activation blocks {blocks} and a classifier called linear"
    choices = _widths(shapes["conv1.weight"][0], 64)
    return Guess(names, choices, "conv1.weight", "linear.weight", size, why)


def wide_resnet(shapes: Shapes) -> Guess | None:
    """Recognize wide ResNets by ``block1.layer.0``: depth 6n + 4, and the factor by the first block's width."""
    if not {"conv1.weight", "block1.layer.0.conv1.weight", "fc.weight"} <= shapes.keys():
        return None
    depth = 6 * _count(shapes, r"block1\.layer\.(\d+)\.") + 4
    width = shapes["conv1.weight"][0]
    factor = shapes["block1.layer.0.conv1.weight"][0] // max(width, 1)
    choices = _widths(width, 16, depth=depth, factor=factor)
    size = _small(shapes["fc.weight"][0])
    why = f"three stages of wide blocks, depth {depth} and factor {factor}"
    return Guess(("wrn_16_1",), choices, "conv1.weight", "fc.weight", size, why)


def vgg(shapes: Shapes) -> Guess | None:
    """Recognize VGG by a chain of convolutions ``features``: depth by their number, the head by its name."""
    weights = [name for name in shapes if re.fullmatch(r"features\.\d+\.weight", name)]
    convolutions = [name for name in weights if len(shapes[name]) == 4]
    if "features.0.weight" not in convolutions or len(convolutions) not in _VGGS:
        return None
    heads = ("classifier.6.weight", "classifier.0.weight", "classifier.weight")
    last = next((name for name in heads if name in shapes), "")
    if not last:
        return None
    large = last == heads[0]
    normed = len(shapes.get("features.1.weight", ())) == 1
    name = _VGGS[len(convolutions)] + ("_bn" if normed else "")
    width = shapes["features.0.weight"][0]
    choices = _widths(width, 64, head="imagenet" if large else "cifar")
    size = _LARGE if large else _small(shapes[last][0])
    why = f"{len(convolutions)} convolutions in a row, {'with' if normed else 'without'} batch norm"
    return Guess((name,), choices, "features.0.weight", last, size, why)


def mobilenet(shapes: Shapes) -> Guess | None:
    """Recognize MobileNetV2 (torchvision's form and kuangliu's) and V3 by their first blocks."""
    if {"conv1.weight", "layers.0.conv3.weight", "linear.weight"} <= shapes.keys():
        choices = _widths(shapes["conv1.weight"][0], 32, form="cifar")
        last, why = "linear.weight", "inverted residual blocks in the form for small images"
        size = _small(shapes[last][0])
        return Guess(("mobilenet_v2",), choices, "conv1.weight", last, size, why)
    first = "features.0.0.weight"
    if first not in shapes or len(shapes[first]) != 4:
        return None
    width = shapes[first][0]
    if {"features.1.conv.0.0.weight", "classifier.1.weight"} <= shapes.keys():
        choices = _widths(width, 32, form="imagenet")
        why = "inverted residual blocks of three convolutions"
        return Guess(("mobilenet_v2",), choices, first, "classifier.1.weight", _LARGE, why)
    if {"features.1.block.0.0.weight", "classifier.3.weight"} <= shapes.keys():
        names = ("mobilenet_v3_large", "mobilenet_v3_small")
        why = "inverted residual blocks and a head of two layers"
        return Guess(names, _widths(width, 16), first, "classifier.3.weight", _LARGE, why)
    return None


def small_mobilenet(shapes: Shapes) -> Guess | None:
    """Recognize the defenses' papers' MobileNetV2 for small images by its first block of three convolutions."""
    first, last = "conv1.weight", "linear.weight"
    if not {first, last, "conv2.weight", "layers.0.conv3.weight"} <= shapes.keys():
        return None
    choices = _widths(shapes[first][0], 32, form="cifar")
    why = "inverted residual blocks in one row"
    return Guess(("mobilenet_v2",), choices, first, last, _small(shapes[last][0]), why)


def efficientnet(shapes: Shapes) -> Guess | None:
    """Recognize EfficientNets by squeeze-and-excitation in the first stage."""
    first, last = "features.0.0.weight", "classifier.1.weight"
    if not {first, last, "features.1.0.block.1.fc1.weight"} <= shapes.keys():
        return None
    blocks = _blocks(shapes, r"features\.{}\.(\d+)\.block\.", tuple(range(1, 8)))
    choices = ({}, {"width": shapes[first][0]})
    why = f"stages of {blocks} blocks with squeeze-and-excitation"
    return Guess(_EFFICIENTNETS, choices, first, last, _LARGE, why)


def densenet(shapes: Shapes) -> Guess | None:
    """Recognize DenseNets by the number of layers in each dense block."""
    first, last = "features.conv0.weight", "classifier.weight"
    if not {first, last, "features.denseblock1.denselayer1.conv1.weight"} <= shapes.keys():
        return None
    blocks = _blocks(shapes, r"features\.denseblock{}\.denselayer(\d+)\.", (1, 2, 3, 4))
    names = (_DENSENETS[blocks],) if blocks in _DENSENETS else ()
    width = shapes[first][0]
    choices = _widths(width, 96 if names == ("densenet161",) else 64)
    return Guess(names, choices, first, last, _LARGE, f"dense blocks of {blocks} layers")


def inception(shapes: Shapes) -> Guess | None:
    """Recognize GoogLeNet and Inception-V3 by their first mixed module."""
    last = "fc.weight"
    first = "conv1.conv.weight"
    if {first, last, "inception3a.branch1.conv.weight"} <= shapes.keys():
        choices = _with_heads(shapes, _widths(shapes[first][0], 64))
        return Guess(("googlenet",), choices, first, last, _LARGE, "GoogLeNet's inception3a")
    first = "Conv2d_1a_3x3.conv.weight"
    if {first, last, "Mixed_5b.branch1x1.conv.weight"} <= shapes.keys():
        choices = _with_heads(shapes, _widths(shapes[first][0], 32))
        return Guess(("inception_v3",), choices, first, last, 299, "Inception's module Mixed_5b")
    return None


def _with_heads(
    shapes: Shapes, choices: tuple[Mapping[str, Option], ...]
) -> tuple[Mapping[str, Option], ...]:
    """Put auxiliary heads first where they are there: no prediction needs them, but they go back with the rest."""
    if not any(name.startswith(("aux1.", "AuxLogits.")) for name in shapes):
        return choices
    return (*({**options, "aux": True} for options in choices), *choices)


def vit(shapes: Shapes) -> Guess | None:
    """Recognize vision transformers: patch, width and image size are in the weights."""
    first, last, positions = "conv_proj.weight", "heads.head.weight", "encoder.pos_embedding"
    if not {first, last, positions, "class_token"} <= shapes.keys():
        return None
    width, _, patch, _ = (*shapes[first], 1, 1, 1, 1)[:4]
    side = round((max(shapes[positions][1:2], default=1) - 1) ** 0.5) * patch
    depth = _count(shapes, r"encoder\.layers\.encoder_layer_(\d+)\.")
    options: dict[str, Option] = {} if depth == 12 else {"blocks": depth}
    if patch != 16:
        options["patch"] = patch
    name = "vit_s_16" if width == 384 else "vit_b_16"
    choices = _widths(width, 384 if width == 384 else 768, **options)
    # How many heads there are is nowhere in the weights
    usual = width in _OF_USUAL_HEADS
    heads = "heads of 64 channels, as all published ones have" if usual else "no word of the heads"
    why = f"{depth} transformer layers of width {width}, patches of {patch} pixels, {heads}"
    unknown = "" if usual else "heads"
    return Guess((name,), choices, first, last, side or _LARGE, why, exact=True, unknown=unknown)


def convnext(shapes: Shapes) -> Guess | None:
    """Recognize ConvNeXts by the layer scale."""
    first, last = "features.0.0.weight", "classifier.2.weight"
    if not {first, last, "features.1.0.layer_scale"} <= shapes.keys():
        return None
    blocks = _blocks(shapes, r"features\.{}\.(\d+)\.block\.", (1, 3, 5, 7))
    number = blocks[0]
    names = ("convnext_tiny",) if blocks == (number, number, 3 * number, number) else ()
    others: dict[str, Option] = {} if number == 3 else {"blocks": number}
    choices = _widths(shapes[first][0], 96, **others)
    return Guess(names, choices, first, last, _LARGE, f"stages of {blocks} blocks with layer scale")


def small_cnn(shapes: Shapes) -> Guess | None:
    """Recognize bdjax's own network of three convolutions."""
    needed = {f"{name}{number}.weight" for name in ("conv", "bn") for number in (1, 2, 3)}
    if not {*needed, "linear.weight"} <= shapes.keys():
        return None
    choices = _widths(shapes["conv1.weight"][0], 16)
    last, why = "linear.weight", "three convolutions, each with batch norm"
    return Guess(("small_cnn",), choices, "conv1.weight", last, _SMALL, why)


Family: TypeAlias = Callable[[Shapes], Guess | None]
FAMILIES: tuple[Family, ...] = (
    resnet,
    preact_resnet,
    wide_resnet,
    vgg,
    mobilenet,
    small_mobilenet,
    efficientnet,
    densenet,
    inception,
    vit,
    convnext,
    small_cnn,
)
