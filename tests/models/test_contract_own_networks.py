"""A network of one's own: every defense and analysis takes it, or says in one sentence what it lacks."""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import linen_networks
import numpy as np
import planted
import pytest
import subjects
from linen_networks import MODELS, MODULES
from networks import TINY, random_variables
from quick import quick_jit
from small_defenses import STAGES, create, fed, signature

from bdjax import defenses, registry, structure
from bdjax.checks import InputError
from bdjax.models._layers import LinenModel
from bdjax.parametrizations import NeuronMasks, PrunedFilters, SingularValues
from bdjax.runs.subject import Subject
from bdjax.structure import FactoredKernel
from bdjax.train import loop
from bdjax.types import Split

KEY = jax.random.key(0)
IMAGES = jnp.asarray(np.random.default_rng(0).random((5, *TINY.shape), np.float32))
# The same network with the same variables, but for the class of its last layer.
TWIN = LinenModel(planted.Net(dense=nn.Dense), planted.SPEC)
# What a defense or an analysis cannot do with a network, by both their names.
WRAPPED = "must end in a layer of 4 features; its last one, Dense_0, is wrapped in another"
REFUSED = {
    ("fine_pruning", "normalized"): WRAPPED,
    ("nft", "normalized"): "must have two batch norms or three kernels at least",
    ("grad_prune", "perceptron"): "must have a convolution before its classifier",
}


@pytest.fixture(params=MODELS)
def name(request) -> str:
    return request.param


def tiny_split(rows: int = 24) -> Split:
    image = np.random.default_rng(1).integers(0, 256, (rows, *TINY.shape), dtype=np.uint8)
    return Split(image, np.arange(rows, dtype=np.int32) % 3, np.ones(rows, bool))


# --- what is found of it ---------------------------------------------------------------------------------------------


def test_features_are_what_the_classifier_takes_in(name):
    """Features times the last kernel, averaged over the positions where it is a convolution, are the logits."""
    model = MODELS[name]
    variables = random_variables(model)
    if name == "normalized":
        with pytest.raises(InputError, match=WRAPPED):
            jax.eval_shape(model.features, variables, IMAGES)
        return
    path = structure.classifier(model, variables)
    features = quick_jit(model.features)(variables, IMAGES)
    kernel, bias = (
        structure.flat(variables["params"])[(*path[:-1], part)] for part in ("kernel", "bias")
    )
    assert features.shape == (5, kernel.shape[-2])
    if name != "set_up":  # where the mean over the positions does not decide the logits
        logits = quick_jit(model.apply)(variables, IMAGES)[0]
        np.testing.assert_allclose(
            features @ kernel.reshape(-1, 3) + bias, logits, rtol=1e-4, atol=1e-4
        )


def test_the_output_of_every_layer_is_seen_and_shifted(name):
    model = MODELS[name]
    variables = random_variables(model)

    @quick_jit
    def probed(shift):
        outputs = {}
        for path in structure.execution_order(model, variables):
            if path[-1] == "kernel" and name != "normalized" and not path[0].startswith("JitBlock"):
                logits, outputs[path] = model.probe(variables, IMAGES, path, shift)
        return outputs, logits if outputs else None

    (still, logits), (moved, changed) = probed(0.0), probed(0.5)
    for path, output in still.items():
        assert (
            output.shape[-1] == structure.flat(variables["params"])[path].shape[-1]
            or output.ndim == 4
        )
        assert (moved[path] != output).all()
    if still:  # the last is the classifier's, whose output the logits are, or the mean of
        np.testing.assert_allclose(changed, logits + 0.5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("normalized", ("Dense_0", "kernel")),
        *[("jit", (f"JitBlock_{i}", "Conv_0", "kernel")) for i in range(2)],
    ],
)
def test_a_layer_that_cannot_be_told_from_others_is_refused(name, path):
    """Blocks that are compiled with `nn.jit` share a program: a shift of the one would shift the other too."""
    model = MODELS[name]
    with pytest.raises(
        InputError, match=f"neither in nn.jit nor wrapped in another; got {'/'.join(path)}"
    ):
        jax.eval_shape(lambda: model.probe(random_variables(model), IMAGES, path))


def test_factored_kernels_give_the_same_logits(name):
    """Also where a layer is not simply the product with its kernel, which must then be given whole."""
    model, singular = MODELS[name], SingularValues()
    variables = random_variables(model)

    @quick_jit
    def both(variables):
        shifts, frozen = singular.init(model, variables)
        shifts = jax.tree.map(lambda x: x + 0.1, shifts)
        factored = singular.factored(shifts, frozen)
        assert any(isinstance(leaf, FactoredKernel) for leaf in structure.flat(factored).values())
        params = (singular.apply(shifts, frozen), factored)
        return tuple(model.apply({**variables, "params": of}, IMAGES)[0] for of in params)

    whole, parts = both(variables)
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-4)


def test_masks_and_pruned_filters_leave_the_classifier_alone():
    model = MODELS["convolved"]
    variables = random_variables(model)
    classifier = structure.classifier(model, variables)
    assert classifier == ("Conv_2", "kernel")
    for parametrization in (NeuronMasks(), PrunedFilters()):
        assert classifier not in structure.flat(parametrization.init(model, variables)[0])


# --- defenses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "name"),
    [
        *((stage, "norms") for stage in STAGES),
        *itertools.product(
            ("fine_pruning", "nft", "grad_prune"), ("set_up", "pooled", "attention", "perceptron")
        ),
        *itertools.product(("fine_pruning", "fast_sft", "nft"), ("normalized", "sequential")),
        ("fine_pruning", "jit"),
        ("fine_pruning", "remat"),
    ],
)
def test_every_defense_takes_it(stage, name):
    """Two epochs' shapes and types; nothing is compiled."""
    model, defense = MODELS[name], create(stage, batch_size=16)
    holdout = jax.tree.map(jnp.asarray, tiny_split())

    def purify(variables):
        for stage in defense.stages:
            learner, seen = fed(stage, holdout)
            state = learner.init(KEY, model, stage.begin(KEY, model, variables), seen)
            if learner.epochs:
                state, _ = loop.epoch(KEY, learner, model, state, seen)
            variables = learner.finalize(model, state)
        return variables

    before = jax.eval_shape(lambda: model.init(KEY))
    if (stage, name) in REFUSED:
        with pytest.raises(InputError, match=REFUSED[stage, name]):
            jax.eval_shape(purify, before)
    else:
        assert signature(jax.eval_shape(purify, before)) == signature(before)


@pytest.mark.parametrize("stage", ["fine_pruning", "fast_sft"])
def test_the_class_of_a_layer_changes_no_number(stage):
    holdout, defense = planted.holdout(), create(stage, batch_size=15, epochs=1).stages[0].learner
    ours, twins = (
        defenses.run(KEY, defense, model, planted.variables(), holdout)
        for model in (planted.MODEL, TWIN)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, twins)
    assert not np.array_equal(
        ours["params"]["linear"]["kernel"], planted.variables()["params"]["linear"]["kernel"]
    )


@pytest.mark.parametrize("name", ["pooled", "set_up"])
def test_fine_pruning_zeroes_the_inputs_of_a_classifier_that_is_a_convolution(name):
    """Those of the lowest means, as many as accuracy bears, measured with the whole network."""
    model, split = MODELS[name], tiny_split(60)
    variables = random_variables(model)
    path = structure.classifier(model, variables)
    image = jnp.asarray(split.input)

    def accuracy(variables, rows=slice(None)):
        return float(
            (model.apply(variables, image[rows] / 255.0)[0].argmax(-1) == split.label[rows]).mean()
        )

    pruning = (
        defenses.create("fine_pruning", accuracy_drop=0.3, step=0.2, epochs=0).stages[0].learner
    )
    pruned = defenses.run(KEY, pruning, model, variables, split)
    kernel = structure.flat(pruned["params"])[path]
    gone = np.asarray(
        (kernel == 0).all(tuple(axis for axis in range(kernel.ndim) if axis != kernel.ndim - 2))
    )
    mean = np.asarray(model.features(variables, image[12:] / 255.0).mean(0))
    order = np.argsort(mean)
    assert set(np.flatnonzero(gone)) == set(order[: gone.sum()])
    aside = slice(12)  # a fifth: the first rows in the order of their number within their class
    measured = []
    for count in range(5):
        flat = structure.flat(variables["params"])
        flat[path] = flat[path].at[..., order[:count], :].set(0)
        measured.append(accuracy({**variables, "params": structure.nested(flat)}, aside))
    bearable = [count for count in range(5) if min(measured[: count + 1]) > 0.7 * measured[0]]
    assert gone.sum() == max(bearable)


# --- analyses --------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "features": {"images": 24},
    "grad_cam": {"images": 2},
    "history": {"every": 4},
    "perturbations": {"batch_size": 8},
    "rho_gradients": {"rho": "0,1", "batch_size": 8},
    "smoothness": {"every": 4, "images": 4, "draws": 2},
    "spectrum": {"images": 4, "steps": 3},
    "tac": {"images": 9},
}
ANALYSES = registry.names("bdjax.analysis")


def measured(analysis: str, subject: Subject) -> dict[str, np.ndarray]:
    return registry.create("bdjax.analysis", analysis, **OPTIONS.get(analysis, {})).measure(subject)


@pytest.mark.parametrize("analysis", [name for name in ANALYSES if name != "masks"])
def test_every_analysis_takes_it(analysis):
    """With the same findings as for the network of bdjax's own layers."""
    subject = subjects.backdoored()
    twins = measured(analysis, subject._replace(model=TWIN))
    # Which see the logits alone
    if analysis in ("history", "smoothness", "spectrum", "gradient_norms"):
        assert all(
            np.isfinite(values).all() for values in twins.values() if values.dtype.kind == "f"
        )
        return
    ours = measured(analysis, subject)
    assert set(ours) == set(twins)
    for part, values in ours.items():
        if np.issubdtype(values.dtype, np.number) and part not in (
            "victim_points",
            "defended_points",
        ):
            np.testing.assert_allclose(twins[part], values, rtol=1e-3, atol=1e-4, err_msg=part)


def test_masks_are_found_in_it():
    model = MODELS["norms"]
    victim = random_variables(model)
    defended = jax.tree.map(lambda x: 0.5 * x, victim)
    subject = subjects.backdoored()._replace(model=model, victim=victim, defended=defended)
    found = measured("masks", subject)
    assert found["layers"].tolist() == ["BatchNorm_1"]
    np.testing.assert_allclose(found["mask"], 0.5 * np.ones(6))


@pytest.mark.parametrize(
    ("name", "layer"), [("convolved", "Conv_0"), ("pooled", "Conv_0"), ("set_up", "deeper")]
)
def test_the_last_convolution_is_not_the_classifier(name, layer):
    model = LinenModel(MODULES[name], planted.SPEC)
    variables = random_variables(model)
    subject = subjects.backdoored()._replace(model=model, victim=variables, defended=variables)
    assert measured("weight_norms", subject)["layer"] == layer


def test_grad_cam_wants_maps():
    model = LinenModel(MODULES["set_up"], planted.SPEC)
    variables = random_variables(model)
    subject = subjects.backdoored()._replace(model=model, victim=variables, defended=variables)
    cam = registry.create("bdjax.analysis", "grad_cam", images=2, layer="head")
    with pytest.raises(
        InputError, match=r"layer must put out maps \[n, h, w, k\] for Grad-CAM; head puts out"
    ):
        cam.measure(subject)


# --- what no network here can be -------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Whatever a network should not do."""

    what: str

    @nn.compact
    def __call__(self, x, train: bool = False):
        flat = x.reshape(x.shape[0], -1)
        if self.what == "noise":
            return nn.Dense(3)(flat + jax.random.normal(self.make_rng("noise"), flat.shape))
        if self.what == "dropout":
            return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(flat))
        if self.what == "statistics":
            return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(flat))
        if self.what == "scaleless":
            return nn.Dense(3)(nn.BatchNorm(use_running_average=True, use_scale=False)(flat))
        if self.what == "state":
            self.variable("cache", "last", lambda: jnp.zeros(()))
        if self.what == "parameters":
            return flat[:, :3]
        if self.what == "raw":
            return flat @ self.param("w", nn.initializers.ones, (flat.shape[-1], 3))
        if self.what == "own":
            return flat @ self.param("kernel", nn.initializers.ones, (flat.shape[-1], 3))
        if self.what == "pair":
            return nn.Dense(3)(flat), flat
        return nn.Dense(4)(flat)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "state",
            "must keep its variables in the collections params and batch_stats alone; it has cache",
        ),
        ("parameters", "must have parameters"),
        ("statistics", "module must take the keyword valid, as it keeps running statistics"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_when_it_is_made(what, message):
    model = LinenModel(Odd(what), TINY)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(model.init, KEY)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "noise",
            "must draw random numbers from the stream dropout alone, for which apply takes a key",
        ),
        ("classes", r"must return one logit for each class, of shape \(5, 3\) here; got \(5, 4\)"),
        ("pair", "must return one logit for each class, of shape .5, 3. here; got tuple"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused_when_it_is_used(what, message):
    model = LinenModel(Odd(what), TINY)
    variables = model.init(KEY)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(lambda: model.apply(variables, IMAGES, train=True))


def test_dropout_draws_from_the_key_and_is_left_out_without_one():
    model = LinenModel(Odd("dropout"), TINY)
    variables = random_variables(model)
    one, again, other = (
        model.apply(variables, IMAGES, train=True, key=jax.random.key(seed))[0]
        for seed in (0, 0, 1)
    )
    without, evaluated = (model.apply(variables, IMAGES, train=train)[0] for train in (True, False))
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(without, evaluated)
    assert (one != other).any()
    assert (one != without).any()
    np.testing.assert_array_equal(model.apply(variables, IMAGES, key=KEY)[0], evaluated)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("raw", "must have a layer whose weights are named kernel; it reads w"),
        ("own", "must end in a layer of 72 features; its last one, Odd, takes in"),
    ],
)
def test_features_need_a_layer(what, message):
    model = LinenModel(Odd(what), TINY)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(model.features, model.init(KEY), IMAGES)


def test_a_batch_norm_without_scales_cannot_be_masked():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, *, train, valid=None):
            del valid
            for _ in range(3):
                x = nn.BatchNorm(use_running_average=not train, use_scale=False)(
                    nn.Conv(3, (1, 1))(x)
                )
            return x.mean((1, 2))

    model = LinenModel(Net(), TINY)
    with pytest.raises(InputError, match="batch norms must have scales to be masked"):
        NeuronMasks().init(model, random_variables(model))


def test_a_module_must_be_hashable():
    class Listed(nn.Module):
        widths: list[int]

        def __call__(self, x):
            return x

    with pytest.raises(
        InputError, match="module must be hashable, with tuples in place of lists; Listed is not"
    ):
        LinenModel(Listed([1]), TINY)
    assert LinenModel(linen_networks.sequential(), TINY) == LinenModel(
        linen_networks.sequential(), TINY
    )
