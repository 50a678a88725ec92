"""A network with one planted backdoor neuron, and what looks at it."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bdjax import pytree
from bdjax.data.modalities.images import image_spec
from bdjax.defenses._triggered import Images
from bdjax.models._layers import BatchNorm, Dense, LinenModel
from bdjax.types import Split

SPEC = image_spec("planted", (8, 8, 3), 3, (0.0,) * 3, (1.0,) * 3)
TARGET = 0


class Net(nn.Module):
    """Convolutions with bias, pooling and a classifier; the training passes are counted as batch statistics."""

    widths: tuple[int, ...] = (4,)
    norm: bool = False
    classes: int = 3
    dense: Any = Dense

    @nn.compact
    def __call__(self, x: Any, *, train: bool, valid: Any = None) -> Any:
        passes = self.variable("batch_stats", "passes", lambda: jnp.zeros(()))
        if train and not self.is_initializing():
            passes.value = passes.value + 1
        for number, width in enumerate(self.widths, 1):
            x = nn.Conv(
                width, (2, 2), strides=(1, 1), padding=((0, 0), (0, 0)), name=f"conv{number}"
            )(x)
            if self.norm:
                x = BatchNorm(name=f"bn{number}")(x, train=train, valid=valid)
            x = nn.relu(x)
        return self.dense(self.classes, name="linear")(x.mean((1, 2)))


@pytree.dataclass
class Corner:
    """A white patch of two by two pixels; it counts no key and keeps the type."""

    def __call__(self, key: Any, image: Any) -> Any:
        del key
        white = 255 if image.dtype == jnp.uint8 else 1
        return image.at[:, -2:, -2:].set(white)


MODEL = LinenModel(Net(), SPEC)


def variables() -> dict[str, Any]:
    """Channel 0 fires on the white patch alone and feeds the target's logit; channel k + 1 sees color k."""
    kernel, bias = np.zeros((2, 2, 3, 4), np.float32), np.zeros(4, np.float32)
    kernel[..., 0], bias[0] = 1, -9
    linear = np.zeros((4, 3), np.float32)
    linear[0, TARGET] = 2000
    for color in range(3):
        kernel[:, :, color, color + 1] = 0.25
        linear[color + 1, color] = 20
    params = {
        "conv1": {"kernel": kernel, "bias": bias},
        "linear": {"kernel": linear, "bias": np.zeros(3, np.float32)},
    }
    return {"params": jax.tree.map(jnp.asarray, params), "batch_stats": {"passes": jnp.zeros(())}}


def holdout(rows: int = 30, seed: int = 0) -> Split:
    """Dim images of three colors, which are the classes."""
    rng, label = np.random.default_rng(seed), np.arange(rows, dtype=np.int32) % 3
    color = np.where(np.eye(3)[label] > 0, 110, 30)[:, None, None]
    image = np.clip(color + rng.integers(-15, 15, (rows, *SPEC.shape)), 0, 127)
    return Split(image.astype(np.uint8), label, np.ones(rows, bool))


def images(rows: int = 12, seed: int = 0) -> Images:
    """Clean and triggered images with their labels."""
    image, label, _ = jax.tree.map(jnp.asarray, holdout(rows, seed))
    return Images(image, Corner()(None, image), label)


def rates(variables: Any) -> tuple[float, float]:
    """Return the accuracy, and the attack's success on images of other classes."""
    clean, triggered, label = images(30, seed=1)
    guess = [MODEL.apply(variables, image / 255.0)[0].argmax(-1) for image in (clean, triggered)]
    return float((guess[0] == label).mean()), float((guess[1] == TARGET)[label != TARGET].mean())
