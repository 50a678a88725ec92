"""Fine-pruning: how many features go, and that they stay away."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest

from bdjax import defenses
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.defenses.chain import chain
from bdjax.defenses.fine_pruning import FeaturePruning, fine_pruning
from bdjax.types import Spec, Split

KEY = jax.random.key(0)
FEATURES, CLASSES, ROWS = 12, 3, 60
SPEC = image_spec("given", (1, FEATURES, 1), CLASSES, (0.0,), (1.0,))
BOUNDS = [(0.1, 1.0), (0.3, 1.0), (1.0, 1.0), (1.0, 0.5), (0.5, 0.3), (0.1, 0.0), (0.0, 1.0)]


@dataclasses.dataclass(frozen=True)
class Given:
    """A classifier on features that are given as images."""

    spec: Spec = SPEC

    def init(self, key):
        kernel, bias = jax.random.normal(key, (FEATURES, CLASSES)), jnp.array([0.1, 0.0, -0.1])
        return {
            "params": {"other": jnp.zeros(()), "top": {"kernel": kernel, "bias": bias}},
            "batch_stats": {},
        }

    def apply(self, variables, image, *, train=False, valid=None):
        top = variables["params"]["top"]
        return self.features(variables, image) @ top["kernel"] + top["bias"] + variables["params"][
            "other"
        ], {}

    def features(self, variables, image):
        return image[:, 0, :, 0]


@functools.partial(jax.jit, static_argnums=1)
def update(pruning, model, variables, batch):
    return pruning.update(KEY, model, variables, batch)


def batch_of(features, label) -> Split:
    return Split(jnp.asarray(features[:, None, :, None], jnp.float32), jnp.asarray(label), None)  # pyright: ignore


@pytest.fixture(scope="module", params=range(4))
def given(request):
    """Features of both signs, a classifier that needs some of them, and its labels for most of the images."""
    rng = np.random.default_rng(request.param)
    features = rng.normal(
        rng.normal(0, 1, FEATURES), rng.uniform(0.1, 2, FEATURES), (ROWS, FEATURES)
    )
    variables = Given().init(jax.random.key(request.param))
    label = np.asarray(
        Given().apply(variables, batch_of(features, np.zeros(ROWS, int)).input)[0].argmax(-1)
    )
    label = np.where(rng.random(ROWS) < 0.1, (label + 1) % CLASSES, label).astype(np.int32)
    return features.astype(np.float32), label, variables


def by_hand(features, label, variables, accuracy_drop, max_share, step):
    """Return the pruned features: in plain Python, level by level, of rows that are taken class by class."""
    order = sorted(range(ROWS), key=lambda i: (sum(label[:i] == label[i]), i))
    count = CLASSES * max(1, int(0.2 * ROWS / CLASSES))
    aside, rest = order[:count], order[count:]
    lowest = np.argsort(features[rest].mean(0))
    top = jax.tree.map(np.asarray, variables["params"]["top"])

    def accuracy(level: int) -> float:
        kernel = top["kernel"].copy()
        kernel[lowest[:level]] = 0
        return np.mean((features[aside] @ kernel + top["bias"]).argmax(-1) == label[aside])

    level, size = 0, math.ceil(step * FEATURES)
    while level + size < FEATURES and level + size <= max_share * FEATURES:
        if (accuracy(0) - accuracy(level + size)) / accuracy(0) >= accuracy_drop - 1e-9:
            break
        level += size
    return set(lowest[:level].tolist())


@pytest.mark.parametrize("step", [0.01, 0.2])
def test_the_last_level_before_accuracy_falls_is_kept(given, step):
    """By signed mean from the lowest; classifier bias and all else stay as they were."""
    features, label, variables = given
    for accuracy_drop, max_share in [
        (0.1, 1.0),
        (0.3, 1.0),
        (1.0, 1.0),
        (1.0, 0.5),
        (0.5, 0.3),
        (0.1, 0.0),
        (0.0, 1.0),
    ]:
        pruning = FeaturePruning(accuracy_drop, max_share, step)
        got, info = update(pruning, Given(), variables, batch_of(features, label))
        zero = np.flatnonzero((np.asarray(got["params"]["top"]["kernel"]) == 0).all(-1))
        expected = by_hand(features, label, variables, accuracy_drop, max_share, step)
        assert set(zero.tolist()) == expected
        kernel = np.where(
            np.isin(np.arange(FEATURES), zero)[:, None], 0, variables["params"]["top"]["kernel"]
        )
        assert np.array_equal(got["params"]["top"]["kernel"], kernel)
        assert np.array_equal(got["params"]["top"]["bias"], variables["params"]["top"]["bias"])
        assert info.gradient_evaluations == 0


@pytest.mark.parametrize("right", [10, 20, 30])
def test_a_bound_that_is_met_exactly_counts_as_a_loss(right):
    """A tenth fewer right answers is a tenth, whatever float32 makes of it."""
    losing = [0, right // 10 - 1, right // 10]  # images that turn wrong at each level

    def accuracy(count):
        return (jnp.arange(40) < right - jnp.asarray(losing)[count]).mean()

    assert FeaturePruning()._most(accuracy, 3) == 1


def test_a_step_is_a_hundredth_of_the_features_rounded_up():
    """O33; the last of 86 steps would leave no feature."""
    sizes = [FeaturePruning()._most(lambda count: jnp.ones(()), width) for width in (512, 100)]
    assert sizes == [510, 99]


def test_the_planted_neuron_is_lowest_on_clean_images():
    """Behavioral test 7. Two features fewer would cost a color."""
    start = planted.variables()
    defense = fine_pruning(epochs=0)
    result = defenses.purify(KEY, defense, planted.MODEL, start, planted.holdout())
    before, after = (
        np.asarray(tree["params"]["linear"]["kernel"]) for tree in (start, result.variables)
    )
    assert np.array_equal(after, np.where(np.arange(4)[:, None] == 0, 0, before))
    assert planted.rates(start) == (1.0, 1.0)
    assert planted.rates(result.variables) == (1.0, 0.0)


def test_accuracy_is_measured_aside_only(given):
    """Labels of the rest have no say, but for the place of its rows."""
    features, label, variables = given
    order = np.argsort([sum(label[:i] == label[i]) for i in range(ROWS)], kind="stable")
    rest = order[12:]
    nonsense = features.copy()
    nonsense[rest] = nonsense[rest].mean(0)  # the same ranking from images that say nothing
    pruning = FeaturePruning(0.2, 1.0, 0.01)
    first, second = (
        update(pruning, Given(), variables, batch_of(x, label)) for x in (features, nonsense)
    )
    assert np.array_equal(
        first[0]["params"]["top"]["kernel"] == 0, second[0]["params"]["top"]["kernel"] == 0
    )
    assert first[1].accuracy == second[1].accuracy


# --- what comes after it ---------------------------------------------------------------------------------------------

SMALL = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "augment": "none"}
AFTER = {
    "ft": {"momentum": 0.9, "weight_decay": 0.1},
    "ft_sam": {"momentum": 0.9, "weight_decay": 0.1},
    "sft": {"weight_decay": 0.1, "every": 1},
    "fast_sft": {"every": 1},
    "nft": {},
}


def pruned_and(name: str, keep_pruned: bool = True):
    """Return the classifier's kernel before, after pruning, and after what follows."""
    start = planted.variables()
    start["params"]["linear"]["kernel"] = start["params"]["linear"]["kernel"] / 20
    second = defenses.create(name, **SMALL, **AFTER[name])
    defense = chain(fine_pruning(epochs=0, accuracy_drop=1.0, max_share=0.25), second, keep_pruned)
    model = dataclasses.replace(
        planted.MODEL, module=planted.Net(widths=(4, 4) if name == "nft" else (4,), norm=True)
    )
    fresh = model.init(KEY)
    start = {**fresh, "params": {**fresh["params"], "linear": start["params"]["linear"]}}
    result = defenses.purify(KEY, defense, model, start, planted.holdout())
    assert np.isfinite(result.history[-1].loss)
    return (np.asarray(tree["params"]["linear"]["kernel"]) for tree in (start, result.variables))


@pytest.mark.parametrize("name", AFTER)
def test_pruned_weights_stay_zero_through_what_follows(name):
    """With momentum, decay, SAM's perturbation and both of SFT's penalties; the others move."""
    before, after = pruned_and(name)
    zero = (np.abs(after) < (1e-5 if name == "fast_sft" else 1e-30)).all(-1)
    assert zero.sum() == 1
    assert name == "nft" or not np.allclose(after[~zero], before[~zero], atol=1e-6)


def test_they_grow_again_where_that_is_asked_for():
    _, after = pruned_and("ft", keep_pruned=False)
    assert (after != 0).any(-1).all()


def test_it_is_pruning_and_then_fine_tuning():
    first, second = (
        stage.learner
        for stage in fine_pruning(step=0.02, aside=0.3, epochs=7, learning_rate=0.5).stages
    )
    assert first == FeaturePruning(0.1, 1.0, 0.02, 0.3)
    tuning = defenses.create("ft", epochs=7, learning_rate=0.5).learner
    assert second == dataclasses.replace(tuning, parametrization=second.parametrization)
    assert (first.epochs, first.batch_size) == (1, None)


def test_a_step_of_nothing_is_refused():
    with pytest.raises(InputError, match=r"^step must be above 0"):
        fine_pruning(step=0.0)
