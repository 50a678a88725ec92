"""The networks of torchvision at a small width, and of NAD, in PyTorch."""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import resnet, vgg

WIDTH = 4  # of residual networks; VGGs have 2


class ResNet(resnet.ResNet):
    """Torchvision's with stages of other widths."""

    def __init__(self, block, depths, classes: int, *, small_stem: bool) -> None:
        super().__init__(block, depths, num_classes=classes)
        if small_stem:
            self.conv1, self.maxpool = nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False), nn.Identity()
        else:
            self.conv1 = nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.fc = nn.Linear(8 * WIDTH * block.expansion, classes)

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        if planes == 64:
            self.inplanes = WIDTH
        return super()._make_layer(block, planes * WIDTH // 64, blocks, stride, dilate)


def make_vgg(plan: str, classes: int, *, batch_norm: bool, small_head: bool) -> nn.Module:
    width = 2
    scaled = [part if part == "M" else part * width // 64 for part in vgg.cfgs[plan]]
    network = vgg.VGG(vgg.make_layers(scaled, batch_norm), classes, init_weights=False)
    if small_head:
        network.avgpool, network.classifier = nn.Identity(), nn.Linear(8 * width, classes)
    else:
        network.classifier[0] = nn.Linear(8 * width * 49, 64 * width)
        network.classifier[3] = nn.Linear(64 * width, 64 * width)
        network.classifier[6] = nn.Linear(64 * width, classes)
    return network


class WideBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        out = torch.relu(self.bn1(x))
        shortcut = self.convShortcut(out) if hasattr(self, "convShortcut") else x
        return shortcut + self.conv2(torch.relu(self.bn2(self.conv1(out))))


class WideStage(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            WideBlock(inputs, outputs, stride), WideBlock(outputs, outputs, 1)
        )

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    """WRN-16-1 with narrower stages."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False)
        self.block1 = WideStage(WIDTH, WIDTH, 1)
        self.block2 = WideStage(WIDTH, 2 * WIDTH, 2)
        self.block3 = WideStage(2 * WIDTH, 4 * WIDTH, 2)
        self.bn1 = nn.BatchNorm2d(4 * WIDTH)
        self.fc = nn.Linear(4 * WIDTH, classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(torch.relu(self.bn1(x)).mean((2, 3)))


_BLOCKS = {
    "resnet18": (resnet.BasicBlock, [2, 2, 2, 2]),
    "resnet34": (resnet.BasicBlock, [3, 4, 6, 3]),
    "resnet50": (resnet.Bottleneck, [3, 4, 6, 3]),
}
_PLANS = {"vgg16": "D", "vgg19": "E"}


def make(form: str, classes: int) -> nn.Module:
    """Return the network of one of the forms of `test_torchvision`."""
    name, *small = form.split()
    if name in _BLOCKS:
        return ResNet(*_BLOCKS[name], classes, small_stem=bool(small))
    if name.startswith("vgg"):
        plan = _PLANS[name.removesuffix("_bn")]
        return make_vgg(plan, classes, batch_norm=name.endswith("_bn"), small_head=bool(small))
    return WideResNet(classes)
