"""The networks of torchvision without a width of their own, small, in PyTorch."""

from __future__ import annotations

import functools

from torch import nn
from torchvision.models import convnext, inception, vision_transformer
from torchvision.models.googlenet import BasicConv2d, GoogLeNet, Inception, InceptionAux
from torchvision.transforms import Resize


class _GoogLeNetUnit(BasicConv2d):
    """An eighth of the channels, but for the images'."""

    def __init__(self, inputs: int, outputs: int, **options) -> None:
        super().__init__(inputs if inputs == 3 else inputs // 8, outputs // 8, **options)


class _InceptionUnit(inception.BasicConv2d):
    """A sixteenth of the channels, but for the images'."""

    def __init__(self, inputs: int, outputs: int, **options) -> None:
        super().__init__(inputs if inputs == 3 else inputs // 16, outputs // 16, **options)


def make_googlenet(classes: int, *, aux: bool) -> nn.Module:
    blocks = [
        _GoogLeNetUnit,
        functools.partial(Inception, conv_block=_GoogLeNetUnit),
        functools.partial(InceptionAux, conv_block=_GoogLeNetUnit),
    ]
    network = GoogLeNet(classes, aux, init_weights=False, blocks=blocks)
    network.fc = nn.Linear(128, classes)
    if aux:
        for head in (network.aux1, network.aux2):
            head.fc1, head.fc2 = nn.Linear(256, 128), nn.Linear(128, classes)
    return network


def make_inception_v3(classes: int) -> nn.Module:
    letters = ("InceptionA", "InceptionB", "InceptionC", "InceptionD", "InceptionE", "InceptionAux")
    kinds = [getattr(inception, letter) for letter in letters]
    blocks = [functools.partial(kind, conv_block=_InceptionUnit) for kind in kinds]
    blocks = [_InceptionUnit, *blocks]
    network = inception.Inception3(
        classes, aux_logits=False, init_weights=False, inception_blocks=blocks
    )
    network.fc = nn.Linear(128, classes)
    return network


def make_convnext(classes: int) -> nn.Module:
    setting = convnext.CNBlockConfig
    stages = [setting(4, 8, 1), setting(8, 16, 1), setting(16, 32, 3), setting(32, None, 1)]
    return convnext.ConvNeXt(stages, num_classes=classes)


def make_vit(classes: int, side: int) -> nn.Module:
    return vision_transformer.VisionTransformer(side, 4, 2, 2, 8, 32, num_classes=classes)


class Resized(nn.Module):
    """A network on resized images; its keys are those of the network."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network, self.resize = network, Resize((side, side), antialias=True)

    def forward(self, x):
        return self.network(self.resize(x))

    def load_state_dict(self, *args, **options):
        return self.network.load_state_dict(*args, **options)

    def state_dict(self, *args, **options):
        return self.network.state_dict(*args, **options)

    def named_parameters(self, *args, **options):
        return self.network.named_parameters(*args, **options)


def make(form: str, classes: int) -> nn.Module:
    """Return the network of one of the forms of `test_transformers_and_inceptions`."""
    makers = {
        "vit": functools.partial(make_vit, classes, 8),
        "vit, enlarged": lambda: Resized(make_vit(classes, 8), 8),
        "vit, reduced": lambda: Resized(make_vit(classes, 8), 8),
        "convnext": functools.partial(make_convnext, classes),
        "googlenet": functools.partial(make_googlenet, classes, aux=False),
        "googlenet with heads": functools.partial(make_googlenet, classes, aux=True),
        "inception": functools.partial(make_inception_v3, classes),
    }
    return makers[form]()
