"""Training steps of the same network in PyTorch, as the same work: gather, crop, flip, normalize, loss, SGD or FT-SAM.

Run as a program it takes steps that are described on its standard input, a line of JSON each, in a process of its own:
two libraries that each bring their own CUDA, and what one of them crashes of, need not meet.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from accelerator.torch_ways import CHANNELS_LAST, NCHW, Way

PADDING = 4
MEAN, STD = 0.5, 0.25
RHO = 0.01
_FORMATS = {NCHW: torch.contiguous_format, CHANNELS_LAST: torch.channels_last}
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1, self.bn2 = _batch_norm(inputs), _batch_norm(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(x))
        x = x if self.shortcut is None else self.shortcut(out)
        return x + self.conv2(functional.relu(self.bn2(self.conv1(out))))


class PreActResNet18(nn.Module):
    """The layers of `bdjax.models.preact_resnet18`: no batch norm after the last block."""

    def __init__(self, width: int = 64, classes: int = 10):
        """Make the layers."""
        super().__init__()
        channels = [width * 2**stage for stage in range(4) for _ in range(2)]
        inputs = [width, *channels[:-1]]
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        sizes = zip(inputs, channels, strict=True)
        self.blocks = nn.Sequential(
            *(_Block(before, after, 2 if before != after else 1) for before, after in sizes)
        )
        self.linear = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of normalized images."""
        return self.linear(self.blocks(self.conv1(x)).mean((2, 3)))


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    layer.num_batches_tracked = (
        None  # which bdjax does not count, and which would be a kernel for each layer
    )
    return layer


class Learner:
    """A network, its optimizer and what a step is made of, compiled or not; plain and SAM steps share them."""

    def __init__(self, width: int, way: Way, weight_decay: float = 5e-4):
        """Make a network of random weights."""
        self.way, self._format = way, _FORMATS[way.layout]
        self.network = PreActResNet18(width).to(way.device, memory_format=self._format)
        self.parameters, self.statistics = (
            list(self.network.parameters()),
            list(self.network.buffers()),
        )
        self._optimizer = torch.optim.SGD(
            self.parameters, lr=0.01, momentum=0.9, weight_decay=weight_decay, fused=True
        )
        self._kept = [
            [torch.empty_like(x) for x in tree] for tree in (self.parameters, self.statistics)
        ]
        compile_ = (
            functools.partial(torch.compile, fullgraph=True, dynamic=False)
            if way.compiled
            else _as_it_is
        )
        self.augmented, self._loss = compile_(self._augmented), compile_(self._loss_of)

    def plain(self, image: Tensor, label: Tensor) -> Tensor:
        """Take a step of SGD and return loss and accuracy."""
        report = self._differentiated(image, label)
        self._optimizer.step()
        return report

    def sam(self, image: Tensor, label: Tensor, rho: float = RHO) -> Tensor:
        """Take a step of FT-SAM: the gradient of a second pass at θ + ε, which leaves the running statistics alone."""
        report = self._differentiated(image, label)
        with torch.no_grad():
            for kept, values in zip(self._kept, (self.parameters, self.statistics), strict=True):
                torch._foreach_copy_(kept, values)
            torch._foreach_add_(self.parameters, self._perturbation(rho))
        self._differentiated(image, label)
        with torch.no_grad():
            for kept, values in zip(self._kept, (self.parameters, self.statistics), strict=True):
                torch._foreach_copy_(values, kept)
        self._optimizer.step()
        return report

    def _differentiated(self, image: Tensor, label: Tensor) -> Tensor:
        self._optimizer.zero_grad()
        loss, accuracy = self._loss(image, label)
        loss.backward()
        return torch.stack([loss.detach(), accuracy])

    def _perturbation(self, rho: float) -> Any:
        """Return ε = ρ T² g / ‖T g‖₂, T = diag(|θ|)."""
        grads = [x.grad for x in self.parameters]
        scaled = torch._foreach_mul(torch._foreach_abs(self.parameters), grads)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(scaled)))
        epsilon = torch._foreach_mul(torch._foreach_mul(self.parameters, self.parameters), grads)
        torch._foreach_mul_(epsilon, rho / (norm + 1e-12))
        return epsilon

    def _loss_of(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        narrow = self.way.dtype != "float32"
        with torch.autocast(self.way.device, _TYPES[self.way.dtype], enabled=narrow):
            logits = self.network(image)
        logits = logits.float()
        return functional.cross_entropy(logits, label), (logits.argmax(1) == label).float().mean()

    def _augmented(self, image: Tensor) -> Tensor:
        """Return uint8 images [n, h, w, c], cropped after padding, flipped and normalized, in the network's layout."""
        rows, height, width, _ = image.shape
        here = {"device": image.device}
        padded = functional.pad(image, (0, 0, PADDING, PADDING, PADDING, PADDING))
        top, left = torch.randint(0, 2 * PADDING + 1, (2, rows, 1), **here)
        columns, flips = torch.arange(width, **here), torch.rand(rows, 1, **here) < 0.5
        across = torch.where(flips, width - 1 - columns, columns) + left
        down = torch.arange(height, **here) + top
        number = torch.arange(rows, **here)[:, None, None]
        return self.normalized(padded[number, down[:, :, None], across[:, None, :]])

    def normalized(self, image: Tensor) -> Tensor:
        """Return uint8 images [n, h, w, c] as the network takes them."""
        values = (image.float() / 255 - MEAN) / STD
        return values.permute(0, 3, 1, 2).contiguous(memory_format=self._format)


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


class Steps:
    """Steps over random images that lie on the device, to be called again and again; a call waits for its results."""

    def __init__(self, learner: Learner, sam: bool, batch_size: int, steps: int):
        """Make the images."""
        way = learner.way
        self._learner, self._step = learner, learner.sam if sam else learner.plain
        self._batch_size, rows = batch_size, batch_size * steps
        self._image = torch.randint(0, 256, (rows, 32, 32, 3), dtype=torch.uint8, device=way.device)
        self._label = torch.randint(0, 10, (rows,), device=way.device)

    def __call__(self) -> tuple[float, float]:
        """Take the steps in a fresh random order, and return the means of loss and accuracy."""
        way = self._learner.way
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = way.tf32
        order = torch.randperm(len(self._label), device=way.device)
        reports = []
        for index in order.split(self._batch_size):
            image = self._learner.augmented(self._image[index])
            reports.append(self._step(image, self._label[index]))
        loss, accuracy = torch.stack(reports).mean(0).tolist()  # which waits for the device
        return loss, accuracy


@functools.cache
def learner(width: int, way: Way) -> Learner:
    """Return the one learner of a width and a way, so that what it compiles serves plain steps and SAM's."""
    torch.backends.cudnn.benchmark = True  # XLA tries its kernels out, too
    if way.compiled:
        torch._dynamo.config.recompile_limit = 64  # one function for all sizes, types and layouts
    if way.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("PyTorch sees no GPU")
    return Learner(width, way)


@functools.cache
def steps(width: int, batch_size: int, count: int, sam: bool, way: Way) -> Steps:
    """Return the steps of one description."""
    return Steps(learner(width, way), sam, batch_size, count)


def serve() -> None:
    """Take the steps that each line of standard input describes, and answer with a line on standard output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), file=answers, flush=True)


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    try:
        way = Way(**asked.pop("way"))
        loss, _ = steps(**asked, way=way)()
        return {"version": torch.__version__, "loss": loss}
    except Exception as error:  # one way that fails must not cost the others
        torch.cuda.empty_cache()
        return {"error": f"{type(error).__name__}: {error}"[:300]}


if __name__ == "__main__":
    serve()
