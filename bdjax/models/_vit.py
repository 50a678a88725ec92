"""Vision transformers with torchvision's names (Dosovitskiy et al., An Image Is Worth 16×16 Words, 2021)."""

from __future__ import annotations

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bdjax.checks import InputError, integer
from bdjax.models._conv import conv
from bdjax.models._gelu import gelu
from bdjax.models._layer_norm import LayerNorm
from bdjax.models._layers import Dense, LinenModel, check_images, check_options
from bdjax.models._sequential import Sequential
from bdjax.types import Model, Spec

_HEAD = 64  # channels of a head of attention in all published forms

_zeros = nn.initializers.zeros
_xavier = nn.initializers.xavier_uniform()
_tiny = nn.initializers.normal(1e-6)


def vit(
    name: str,
    spec: Spec,
    width: int,
    blocks: int,
    heads: int | None,
    patch: int,
    resize: int | None,
    dtype: str,
) -> Model:
    """Create a vision transformer; the arguments are those of `vit_b_16`."""
    check_options(width, dtype)
    check_images(name, spec)
    integer(1, blocks=blocks, patch=patch)
    if resize is not None:
        integer(1, resize=resize)
    heads = _heads(width, heads)
    _check_patches(spec, patch, resize)
    module = _VisionTransformer(spec.num_classes, width, blocks, heads, patch, resize)
    return LinenModel(module, spec, dtype)


def _heads(width: int, heads: int | None) -> int:
    """Return the number of heads: as asked for, or one for each 64 channels if they divide into such."""
    if heads is None:
        return 1 if width % _HEAD else width // _HEAD
    integer(1, heads=heads)
    if width % heads:
        raise InputError(f"heads must divide the width, {width}; got {heads}.")
    return heads


def _check_patches(spec: Spec, patch: int, resize: int | None) -> None:
    """Refuse patches that do not cover the images exactly."""
    height, width = spec.shape[:2] if resize is None else (resize, resize)
    if height % patch or width % patch:
        images = f"the images of {spec.name}, {height}×{width} pixels"
        if resize is not None:
            images = f"the resized images, {height}×{width} pixels"
        other = "choose another patch, or resize the images in the network (resize=224)"
        raise InputError(f"patch must divide both sides of {images}; got {patch}: {other}.")


class _VisionTransformer(nn.Module):
    num_classes: int
    width: int
    blocks: int
    heads: int
    patch: int
    resize: int | None

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n k"]:
        if self.resize is not None:
            x = _resized(x, self.resize)
        x = self._embedded(x)
        x = _Encoder(self.blocks, self.heads, name="encoder")(x)
        # The last layer computes in float32, as it does in all networks
        token = x[:, 0].astype(jnp.promote_types(x.dtype, jnp.float32))
        return _Heads(self.num_classes, name="heads")(token)

    def _embedded(self, x: Float[Array, "n h w c"]) -> Float[Array, "n t d"]:
        """Return one token for each patch, row by row, after one that is the same for all images."""
        normal = nn.initializers.normal(1 / math.sqrt(self.patch**2 * x.shape[-1]))
        embed = partial(conv, self.width, self.patch, stride=self.patch, padding=0, bias=True)
        x = embed(kernel_init=normal, name="conv_proj")(x).reshape(x.shape[0], -1, self.width)
        token = self.param("class_token", _zeros, (1, 1, self.width))
        first = jnp.broadcast_to(token, (x.shape[0], 1, self.width)).astype(x.dtype)
        return jnp.concatenate([first, x], 1)


class _Encoder(nn.Module):
    blocks: int
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        place = self.param("pos_embedding", nn.initializers.normal(0.02), (1, *x.shape[1:]))
        x = (x + place).astype(x.dtype)
        x = _Layers(self.blocks, self.heads, name="layers")(x)
        return LayerNorm(name="ln")(x)


class _Layers(nn.Module):
    blocks: int
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        for number in range(self.blocks):
            x = _Block(self.heads, name=f"encoder_layer_{number}")(x)
        return x


class _Block(nn.Module):
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        width = x.shape[-1]
        x = x + _Attention(self.heads, name="self_attention")(LayerNorm(name="ln_1")(x))
        dense = partial(Dense, kernel_init=_xavier, bias_init=_tiny)
        # Position 2 is a dropout, which torchvision's networks leave at a rate of 0
        layers = (partial(dense, 4 * width), gelu, _same, partial(dense, width))
        return x + Sequential(layers, name="mlp")(LayerNorm(name="ln_2")(x), train=False)


class _Attention(nn.Module):
    """softmax(Q Kᵀ / √d) V for each head, with Q, K and V from one dense layer, as PyTorch keeps them."""

    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "n t d"]) -> Float[Array, "n t d"]:
        shape = (*x.shape[:2], self.heads, x.shape[-1] // self.heads)
        projected = Dense(3 * x.shape[-1], _xavier, _zeros, name="in_proj")(x)
        query, key, value = (each.reshape(shape) for each in jnp.split(projected, 3, -1))
        scores = jnp.einsum("nqhd,nkhd->nhqk", query, key)
        wide = scores.astype(jnp.promote_types(x.dtype, jnp.float32))
        weight = jax.nn.softmax(wide / math.sqrt(shape[-1])).astype(x.dtype)
        mixed = jnp.einsum("nhqk,nkhd->nqhd", weight, value).reshape(x.shape)
        return Dense(x.shape[-1], bias_init=_zeros, name="out_proj")(mixed)


class _Heads(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
        return Dense(self.num_classes, _zeros, _zeros, name="head")(x)


def _resized(x: Float[Array, "n h w c"], side: int) -> Float[Array, "n side side c"]:
    """Resize bilinearly, with antialiasing where images become smaller, as torchvision does."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    shape = (x.shape[0], side, side, x.shape[-1])
    return jax.image.resize(wide, shape, "bilinear").astype(x.dtype)


def _same(x: Array) -> Array:
    return x
