"""What is tuned in networks without batch norm: layer norms, dense layers and the projections of attention."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import TINY, random_variables
from quick import quick_jit
from small_defenses import create, fed, signature

from bdjax import models, structure
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.models._dense import Dense
from bdjax.models._layers import LinenModel
from bdjax.parametrizations import NeuronMasks, PrunedFilters, SingularValues
from bdjax.structure import Path
from bdjax.train import programs
from bdjax.types import Split

KEY = jax.random.key(0)


@functools.cache
def network(name: str):
    if name == "vit":
        spec = image_spec("tiny", (8, 8, 3), 4, (0.5,) * 3, (0.25,) * 3)
        model = models.create("vit_s_16", spec, width=6, blocks=1, heads=2, patch=4)
    else:
        spec = image_spec("tiny", (32, 32, 3), 4, (0.5,) * 3, (0.25,) * 3)
        model = models.create("convnext_tiny", spec, width=4, blocks=1)
    return model, random_variables(model)


def names(paths) -> list[str]:
    return ["/".join(path) for path in paths]


LAYER = "encoder/layers/encoder_layer_0/"
IN_PROJECTION: Path = (*LAYER.split("/")[:-1], "self_attention", "in_proj", "kernel")


class Halves(nn.Module):
    """A gate beside its values in one layer; and one whose output is split along another axis."""

    @nn.compact
    def __call__(self, x):
        value, gate = jnp.split(nn.Dense(6, name="both")(x.mean((1, 2))), 2, -1)
        first, second = jnp.split(Dense(4, name="rows")(jnp.stack([value * gate] * 2)), 2)
        return Dense(3, name="head")((first + second)[0])


class Sums(nn.Module):
    """A layer whose output is split only after another flat map was added to it."""

    @nn.compact
    def __call__(self, x):
        x = x.mean((1, 2))
        more = jnp.concatenate([x, x], -1)
        value, gate = jnp.split(Dense(2 * x.shape[-1], name="both")(x) + more, 2, -1)
        return Dense(3, name="head")(value * gate)


def test_kernels_side_by_side_are_found_by_what_becomes_of_their_product():
    model, variables = network("vit")
    assert structure.fused(model, variables) == {IN_PROJECTION: (6, 6, 6)}
    assert structure.fused(*network("convnext")) == {}
    halves = LinenModel(Halves(), TINY)
    assert structure.fused(halves, random_variables(halves)) == {("both", "kernel"): (3, 3)}
    sums = LinenModel(Sums(), TINY)
    assert structure.fused(sums, random_variables(sums)) == {}


@pytest.mark.parametrize("wrap", [nn.jit, nn.remat])
def test_they_are_found_in_programs_that_a_network_calls(wrap):
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return wrap(Halves)(name="inner")(x)

    model = LinenModel(Outer(), TINY)
    found = structure.fused(model, random_variables(model))
    assert found == {("inner", "both", "kernel"): (3, 3)}


def test_each_of_them_has_singular_values_of_its_own():
    """The largest first; a shift of one changes the projection that it is of, and no other."""
    model, variables = network("vit")
    shifts, frozen = SingularValues().init(model, variables)
    kernel = structure.flat(variables["params"])[IN_PROJECTION]
    parts = np.split(np.asarray(kernel), 3, -1)
    expected = np.concatenate([np.linalg.svd(part, compute_uv=False) for part in parts])
    found = structure.flat(frozen["factors"])[IN_PROJECTION]
    np.testing.assert_allclose(found.scale, expected, atol=1e-5)
    np.testing.assert_allclose(found.multiplied(), kernel, atol=1e-5)
    flat = structure.flat(shifts)
    flat[IN_PROJECTION] = flat[IN_PROJECTION].at[6].add(-0.5)  # the first of the keys
    moved = SingularValues().apply(structure.nested(flat), frozen)
    after = np.split(np.asarray(structure.flat(moved)[IN_PROJECTION]), 3, -1)
    assert [bool((a != b).any()) for a, b in zip(after, parts, strict=True)] == [0, 1, 0]
    values = np.linalg.svd(after[1], compute_uv=False)
    np.testing.assert_allclose(
        sorted(values), sorted(expected[6:12] - [0.5, 0, 0, 0, 0, 0]), atol=1e-5
    )


def test_masks_are_on_layer_norms_and_on_all_kernels_but_the_first_and_the_classifiers():
    model, variables = network("vit")
    masks, frozen = NeuronMasks(alpha=1.0, beta=1.0).init(model, variables)
    expected = [
        "ln_1/scale", "self_attention/in_proj/kernel", "self_attention/out_proj/kernel",
        "ln_2/scale", "mlp/0/kernel", "mlp/3/kernel",
    ]  # fmt: skip
    expected = [*(LAYER + name for name in expected), "encoder/ln/scale"]
    depth = {"/".join(path): float(at) for path, at in structure.flat(frozen["depth"]).items()}
    assert depth == dict(zip(expected, range(1, 8), strict=True))
    sizes = {"/".join(path): leaf.shape for path, leaf in structure.flat(masks).items()}
    assert sizes[expected[0]] == (6,)
    assert sizes[expected[1]] == (18,)
    assert sizes[expected[4]] == (24,)

    model, variables = network("convnext")
    found = names(structure.flat(NeuronMasks().init(model, variables)[0]))
    assert "features/0/1/scale" in found
    assert "features/1/0/block/0/kernel" in found
    assert not {"features/0/0/kernel", "classifier/2/kernel"} & set(found)
    assert len(found) == 10 + 13 + 11 - 2  # convolutions, dense layers and norms


def test_filters_are_of_dense_layers_where_only_the_first_layer_is_a_convolution():
    model, variables = network("vit")
    kept, _ = PrunedFilters().init(model, variables)
    blocks = ["self_attention/in_proj", "self_attention/out_proj", "mlp/0", "mlp/3"]
    expected = {"conv_proj/kernel", *(f"{LAYER}{name}/kernel" for name in blocks)}
    assert set(names(structure.flat(kept))) == expected
    model, variables = network("convnext")
    kept, _ = PrunedFilters().init(model, variables)
    assert set(structure.flat(kept)) == set(structure.convolutions(variables["params"]))


def test_a_classifier_alone_has_no_filters():
    class Alone(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Dense(3)(x.mean((1, 2)))

    model = LinenModel(Alone(), TINY)
    with pytest.raises(InputError, match="must have a layer before its classifier"):
        PrunedFilters().init(model, random_variables(model))


def test_factored_kernels_give_the_same_logits_in_attention_and_depthwise_convolutions():
    for name in ("vit", "convnext"):
        model, variables = network(name)
        image = jnp.asarray(np.random.default_rng(0).random((3, *model.spec.shape)), jnp.float32)

        @quick_jit
        def both(variables, image, model=model):
            shifts, frozen = SingularValues().init(model, variables)
            shifts = jax.tree.map(lambda x: x + 0.1, shifts)
            parts = SingularValues().factored(shifts, frozen)
            whole = SingularValues().apply(shifts, frozen)
            return [model.apply({**variables, "params": p}, image)[0] for p in (parts, whole)]

        np.testing.assert_allclose(*both(variables, image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", ["nft", "fine_pruning", "ft_sam"])
def test_defenses_take_a_convnext(stage):
    """Shapes and types of an epoch; nothing is compiled."""
    model, _ = network("convnext")
    label = np.arange(8, dtype=np.int32) % 4
    holdout = Split(jnp.zeros((8, 32, 32, 3), jnp.uint8), jnp.asarray(label), jnp.ones(8, bool))

    def purify(variables):
        for part in create(stage, batch_size=8).stages:
            learner, seen = fed(part, holdout)
            state = learner.init(KEY, model, part.begin(KEY, model, variables), seen)
            if learner.epochs:
                state, _ = programs.epoch(KEY, learner, model, state, seen)
            variables = learner.finalize(model, state)
        return variables

    before = jax.eval_shape(model.init, KEY)
    assert signature(jax.eval_shape(purify, before)) == signature(before)
