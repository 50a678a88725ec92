"""AWM: rounds by hand in NumPy, the perturbation and its ball, the one-shot copies, what is frozen, presets."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import networks
import numpy as np
import planted
import pytest
from quick import quick_jit

from bdjax import cli, defenses
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.models._layers import Dense
from bdjax.train import programs
from bdjax.types import Split

KEY = jax.random.key(0)
SPEC = image_spec("flat", (1, 1, 5), 3, (0.0,) * 5, (1.0,) * 5)
MODEL = networks.Linear(SPEC)  # f(x) = x Z A, where A is the classifier's
ROWS, SIZE, PASSES, ROUNDS = 9, 4, 3, 2
HPARAMS = {"alpha": 0.7, "tau": 2.0, "gamma": 0.3, "learning_rate": 0.2, "decay": 0.5}


def split_of(rows: int = ROWS) -> Split:
    image = np.random.default_rng(0).integers(0, 256, (rows, 1, 1, 5), np.uint8)
    label = np.arange(rows, dtype=np.int32) % 3
    return Split(jnp.asarray(image), jnp.asarray(label), jnp.ones(rows, bool))


SPLIT = split_of()


@pytest.fixture(scope="module")
def start():
    return MODEL.init(jax.random.key(3))


def learner_of(**options):
    settings = {**HPARAMS, "ascent_rate": 3.0, "passes": PASSES, "batch_size": SIZE}
    return defenses.create("awm", **{**settings, **options}).learner


# --- rounds by hand --------------------------------------------------------------------------------------------------


def softmax(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def drawn(key):
    """The rows of each step of both phases."""
    _, *keys = jax.random.split(key, 3)
    steps = PASSES * (ROWS // SIZE)
    return [np.asarray(jax.random.randint(own, (steps, SIZE), 0, ROWS)) for own in keys]


def climbed(images, first, last, index):
    """δ by hand: up the cross-entropy of the network's own answers, then into the ball."""
    delta = np.zeros(5)
    for rows in index:
        x = images[rows]
        answer = np.eye(3)[(x @ first @ last).argmax(1)]
        back = softmax((x + delta) @ first @ last) - answer
        delta = delta + 3.0 * (back @ last.T @ first.T).mean(0)
    return delta * min(1, HPARAMS["tau"] / np.abs(delta).sum())


def gradient(x, label, first, last):
    """Of the mean cross-entropy with respect to the first matrix."""
    return x.T @ ((softmax(x @ first @ last) - np.eye(3)[label]) @ last.T) / len(x)


def test_two_rounds_are_those_by_hand(start):
    """Adam on both losses and the penalty, at half the rate in the second round; clipped images; masks in [0, 1]."""
    images, label = np.asarray(SPLIT.input, np.float64)[:, 0, 0] / 255, np.asarray(SPLIT.label)
    first, last = (np.asarray(start["params"][name]["kernel"], np.float64) for name in "za")
    learner = learner_of()
    update = quick_jit(lambda state, key: learner.update(key, MODEL, state, SPLIT))
    state = learner.init(KEY, MODEL, start, SPLIT)
    assert set(state.tuned) == {"z"}
    mask, mean, square, taken = np.ones_like(first), np.zeros_like(first), np.zeros_like(first), 0
    clipped, seen = [], []
    for number in range(ROUNDS):
        ascent, descent = drawn(jax.random.key(number))
        delta = climbed(images, mask * first, last, ascent)
        for rows in descent:
            x, wanted, taken = images[rows], label[rows], taken + 1
            moved = np.clip(x + delta, 0, 1)
            clipped.append((moved != x + delta).any())
            grad = HPARAMS["alpha"] * gradient(x, wanted, mask * first, last) * first
            grad += (1 - HPARAMS["alpha"]) * gradient(moved, wanted, mask * first, last) * first
            grad += HPARAMS["gamma"] * np.sign(mask)
            mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad**2
            step = mean / (1 - 0.9**taken) / (np.sqrt(square / (1 - 0.999**taken)) + 1e-8)
            mask = np.clip(mask - 0.2 * 0.5**number * step, 0, 1)
            seen.append(mask)
        state, info = update(state, jax.random.key(number))
        np.testing.assert_allclose(state.tuned["z"]["kernel"], mask, atol=1e-4)
        assert info.gradient_evaluations == 3 * PASSES * (ROWS // SIZE)
    assert any(clipped)
    assert (np.stack(seen) == 0).any()
    assert (np.stack(seen[1:]) == 1).any()
    found = learner.finalize(MODEL, state)
    np.testing.assert_allclose(found["params"]["z"]["kernel"], mask * first, atol=1e-4)
    np.testing.assert_array_equal(found["params"]["a"]["kernel"], start["params"]["a"]["kernel"])


def test_the_perturbation_is_in_its_ball_and_changes_answers(start):
    images, index = jnp.asarray(SPLIT.input), jnp.asarray(drawn(KEY)[0])
    free = learner_of(tau=1e6).perturbation(MODEL, start, images, index)
    bound = learner_of().perturbation(MODEL, start, images, index)
    size = jnp.abs(free).sum()
    assert size > 2
    assert float(jnp.abs(bound).sum()) == pytest.approx(2, rel=1e-5)
    np.testing.assert_allclose(bound, free * 2 / size, rtol=1e-4)
    assert not learner_of(tau=0.0).perturbation(MODEL, start, images, index).any()
    answers = [MODEL.apply(start, images / 255.0 + by)[0].argmax(-1) for by in (0, free)]
    assert (answers[0] != answers[1]).any()


# --- one shot --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "copies", "expected"), [(3, None, 30), (4, None, 4), (3, 0, 3), (4, 2, 12)]
)
def test_copies_are_added_where_there_is_one_image_of_each_class(rows, copies, expected):
    split = split_of(rows)
    image, label = learner_of(copies=copies)._images(KEY, MODEL, split)
    assert image.shape == (expected, 1, 1, 5)
    assert image.dtype == split.input.dtype
    np.testing.assert_array_equal(image[:rows], split.input)
    np.testing.assert_array_equal(label, np.tile(split.label, expected // rows))


# --- a whole network -------------------------------------------------------------------------------------------------


def test_what_clean_images_do_not_need_fades_by_the_penalty_alone():
    """The planted neuron has no gradient on them. The rest, and batch statistics, stay."""
    variables, split = planted.variables(), jax.tree.map(jnp.asarray, planted.holdout())
    trained = quick_jit(programs.trained, static_argnums=2)
    for gamma, rates, left in ((1e-8, (1, 0), 9.0), (0.0, (1, 1), 12.0)):
        learner = defenses.create("awm", epochs=10, gamma=gamma).learner
        found, _ = trained(KEY, learner, planted.MODEL, variables, split)
        assert planted.rates(found) == rates
        kernel = found["params"]["conv1"]["kernel"]
        # 50 steps of half the rate, as Adam divides γ by γ + 10⁻⁸
        assert float(kernel[..., 0].sum()) == pytest.approx(left, rel=1e-3)
        assert found["batch_stats"]["passes"] == 0
        for path in (("conv1", "bias"), ("linear", "kernel"), ("linear", "bias")):
            np.testing.assert_array_equal(
                found["params"][path[0]][path[1]], variables["params"][path[0]][path[1]]
            )


# --- options ---------------------------------------------------------------------------------------------------------


def test_presets_are_the_published_values():
    common = {"gamma": 1e-8, "ascent_rate": 10.0, "passes": 5, "decay": 1.0, "learning_rate": 0.01}
    paper = {"alpha": 0.9, "tau": 1000.0, "epochs": 20, "batch_size": 128, "weight_decay": 0.0}
    assert defenses.create("awm") == defenses.create("awm", **common, **paper)
    one_shot = {**common, **paper, "alpha": 0.99, "tau": 100.0, "batch_size": 32}
    assert defenses.create("awm", preset="one_shot") == defenses.create("awm", **one_shot)
    sft = {**common, **paper, "epochs": 100, "weight_decay": 0.001}
    assert defenses.create("awm", preset="sft") == defenses.create("awm", **sft)


def test_a_network_of_its_classifier_alone_is_refused():
    model = networks.of_layer(Dense(3, name="a"), networks.TINY)
    with pytest.raises(InputError, match="a layer before its classifier, else there is no weight"):
        learner_of().init(KEY, model, networks.random_variables(model), SPLIT)


@pytest.mark.slow  # a run with its control rows: a minute
def test_badnets_on_digits_fades_and_accuracy_stays(tmp_path, no_cache_of_the_user):
    words = "--attack badnets --defense awm --defense.epochs 100 --defense.tau 30"
    words += " --defense.batch_size 128 --defense.learning_rate 0.01 --quiet"  # not those of digits
    assert cli.main(["run", *words.split(), "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*awm*/record.json")
    metrics = json.loads(file.read_text())["metrics"]
    before, after = metrics["before"], metrics["after"]
    assert before["attack_success_rate"] > 0.95
    assert after["attack_success_rate"] < 0.5  # 15 and 32 % with two keys
    assert after["clean_accuracy"] > before["clean_accuracy"] - 0.05
