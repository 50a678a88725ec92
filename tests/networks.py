"""Small networks that have what the library's own do not: no batch norm, misleading names, every kind of layer."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bdjax import models, registry
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.models._layers import BatchNorm, Dense, LinenModel, conv
from bdjax.tasks.single_label import SingleLabel
from bdjax.types import Model, Spec

# These take every method; one of another file may be refused what it has no layers for.
ALL_ROUND = ("preact_resnet18", "small_cnn", "vit_s_16")
# These are made of what another is made of, and held to PyTorch's numbers: what takes long is not done with them too.
_ALIKE = {"resnet18", "resnet34", "resnet50", "vgg16_bn", "vgg19", "vgg19_bn"}
# `test_transformers_and_inceptions` and `test_without_batch_norm` do it with short forms.
_ALIKE |= {"vit_b_16", "convnext_tiny", "googlenet", "inception_v3"}
# `test_mobile_and_dense_networks` does it with a short network of the same blocks.
_ALIKE |= {"mobilenet_v2", "mobilenet_v3_large", "densenet121", "densenet161"}
_ALIKE |= {f"efficientnet_b{number}" for number in range(4)}
KINDS = [name for name in models.names() if name not in _ALIKE]
TINY = image_spec("tiny", (6, 6, 2), 3, (0.5, 0.4), (0.25, 0.2))


def options_of(name: str) -> set[str]:
    return set(inspect.signature(registry.factory("bdjax.models", name)).parameters) - {"spec"}


def spec_for(name: str, spec: Spec) -> Spec:
    """The specification, of images of 32×32 or 75×75 where a network refuses smaller ones."""
    larger = (dataclasses.replace(spec, shape=(side, side, *spec.shape[2:])) for side in (32, 75))
    for sized in (spec, *larger):
        with contextlib.suppress(InputError):
            models.create(name, sized)
            return sized
    raise AssertionError(f"{name} takes no images")


def create(name: str, spec: Spec, **options: Any) -> Model:
    """A network of ``bdjax/models/`` with those of the options that it has, and as shallow as it can be."""
    own = options_of(name)
    options = {"depth": 10, "blocks": 1, "patch": 8, **options}
    if "heads" in own and "width" in options:
        options["width"] *= 4  # layer norm leaves of two channels only which one is larger
    return models.create(name, spec, **{key: options[key] for key in options if key in own})


class Backwards(nn.Module):
    """Two convolutions, their batch norms and a dense layer, named against the alphabet."""

    @nn.compact
    def __call__(self, x, *, train: bool, valid=None):
        x = conv(3, 3, stride=2, name="z")(x)
        x = nn.relu(BatchNorm(name="y")(x, train=train, valid=valid))
        x = conv(4, 3, name="x")(x)
        x = nn.relu(BatchNorm(name="w")(x, train=train, valid=valid))
        return Dense(3, name="a")(x.mean((1, 2)))


class Wrapped(nn.Module):
    """The same, compiled or rematerialized as a whole."""

    wrap: Any

    @nn.compact
    def __call__(self, x, *, train: bool, valid=None):
        del train, valid
        return self.wrap(Inner)(name="inner")(x)


class Inner(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Backwards(name="network")(x, train=False)


class Plain(nn.Module):
    """Convolutions with biases and two dense layers; no batch norm."""

    @nn.compact
    def __call__(self, x, *, train: bool, valid=None):
        del train, valid
        x = nn.relu(nn.Conv(3, (3, 3), name="first")(x))
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="deeper")(x))
        x = nn.relu(Dense(5, name="hidden")(x.mean((1, 2))))
        return Dense(3, name="classifier")(x)


class Layer(nn.Module):
    """One layer, flattened, without parameters of its own."""

    layer: Any

    def __call__(self, x, *, train: bool, valid=None):
        del train, valid
        x = self.layer(x.mean((1, 2)) if isinstance(self.layer, Dense) else x)
        return x.reshape(x.shape[0], -1)


def of_layer(layer: Any, spec: Spec, dtype: str = "float32") -> LinenModel:
    """A network that is one layer; each of its numbers is a class."""
    image = jnp.zeros((1, *spec.shape))
    out, _ = jax.eval_shape(
        lambda: Layer(layer).init_with_output(jax.random.key(0), image, train=False)
    )
    return LinenModel(
        Layer(layer), dataclasses.replace(spec, task=SingleLabel(out.shape[-1])), dtype
    )


def backwards() -> LinenModel:
    return LinenModel(Backwards(), TINY)


def plain() -> LinenModel:
    return LinenModel(Plain(), TINY)


def random_variables(model, seed: int = 0):
    """Variables such as training makes them, without compiling an initialization."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        value = rng.uniform(-1, 1, leaf.shape) / np.sqrt(max(np.prod(leaf.shape[:-1]), 1))
        positive = path[-1].key in ("scale", "var")
        return jnp.asarray(1 + 0.3 * value if positive else value, leaf.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


@dataclasses.dataclass(frozen=True)
class Linear:
    """Two matrices, so that its gradients are known by hand; it takes images as they are."""

    spec: Spec
    features_count: int = 4

    def init(self, key):
        first_key, last_key = jax.random.split(key)
        first = jax.random.normal(first_key, (int(np.prod(self.spec.shape)), self.features_count))
        last = jax.random.normal(last_key, (self.features_count, self.spec.num_classes))
        return {"params": {"z": {"kernel": first}, "a": {"kernel": last}}, "batch_stats": {}}

    def apply(self, variables, image, *, train=False, valid=None):
        del train, valid
        return self.features(variables, image) @ variables["params"]["a"]["kernel"], variables[
            "batch_stats"
        ]

    def features(self, variables, image):
        return image.reshape(image.shape[0], -1) @ variables["params"]["z"]["kernel"]
