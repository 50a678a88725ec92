"""ABL: the flipped gradient, what is isolated, what unlearning does to it; and a run, a sweep and a resumed one."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from quick import quick_jit
from settings import bare

from bdjax import cli, defenses
from bdjax.checks import InputError
from bdjax.defenses.abl import Ascent, AscentBelow, abl, measured
from bdjax.optim import Schedule
from bdjax.runs import config as configs
from bdjax.runs import plans, schema
from bdjax.train import loop
from bdjax.types import Split

KEY = jax.random.key(0)


@pytest.mark.parametrize(("loss", "sign"), [(0.2, -1), (1.0, 1), (0.5, 0)])
def test_below_gamma_the_gradient_is_turned_round(loss, sign):
    """O17: the derivative of sign(L − γ) L."""
    chain, grads = AscentBelow(0.5)(bare()), jnp.array([2.0, -3.0])
    got, _ = chain.update(grads, chain.init(grads), grads, value=jnp.float32(loss))
    np.testing.assert_array_equal(got, sign * grads)


def test_unlearning_goes_uphill():
    chain, grads = Ascent()(bare()), jnp.array([2.0, -3.0])
    np.testing.assert_array_equal(chain.update(grads, chain.init(grads), grads)[0], -grads)


@pytest.fixture(scope="module")
def unlearned():
    """The second stage on images of which one in nine has the trigger and the attacker's label."""
    clean, poisoned = planted.images(24), planted.images(3, seed=1)
    image = jnp.concatenate([clean.clean, poisoned.triggered])
    label = jnp.concatenate([clean.label, jnp.zeros(3, clean.label.dtype)])
    split = Split(image, label, jnp.ones(27, bool))
    options = {
        "epochs": 0,
        "unlearning_epochs": 4,
        "unlearning_rate": 1e-3,
        "weight_decay": 0.0,
        "batch_size": 9,
    }
    learner = abl(isolate=3 / 27, **options).stages[1].learner
    start = planted.variables()
    kernel = start["params"]["linear"]["kernel"] / 30  # so that no loss is nothing
    start["params"]["linear"]["kernel"] = kernel
    losses = quick_jit(lambda variables: measured(planted.MODEL, variables, split)[0])
    result = loop.run(KEY, learner, planted.MODEL, start, split)
    return losses(start), losses(result.variables), result


def test_what_is_learned_best_is_isolated_and_its_loss_rises(unlearned):
    before, after, result = unlearned
    isolated = np.argsort(before, stable=True)[:3]
    assert (after[isolated] > before[isolated]).all()
    assert result.gradient_evaluations == 4  # three images are one batch
    assert [row.epoch for row in result.history] == [1]


def test_the_stages_see_the_training_set_and_the_first_trains_anew():
    made = abl()
    assert [(stage.sees, stage.starts) for stage in made.stages] == [
        ("training", "scratch"),
        ("training", "victim"),
    ]
    isolation, unlearning = (stage.learner for stage in made.stages)
    assert (isolation.epochs, isolation.augment, isolation.sgd.schedule) == (20, "none", Schedule())
    assert (unlearning.tuning.epochs, unlearning.unlearning.epochs, unlearning.isolate) == (
        60,
        20,
        0.01,
    )
    assert unlearning.unlearning.sgd.learning_rate == 1e-4


# --- runs ------------------------------------------------------------------------------------------------------------

SMALL = "--model.width 4 --training.epochs 2 --defense.batch_size 128 --defense.epochs 1 --data.train_count 400"
ABL = f"{SMALL} --defense abl --defense.isolation_epochs 3 --defense.unlearning_epochs 1 --defense.augment none"


def records(out) -> dict[str, dict]:
    return {
        file.parent.name: json.loads(file.read_text()) for file in out.glob("*abl*/record.json")
    }


def test_a_run_gives_it_what_the_attacker_delivers():
    config = configs.resolve(schema.overrides(ABL.split()))
    plan = plans.prepare(config)
    delivered = plans.poison_training(plan)
    assert delivered.is_poisoned.sum() > 0
    seen = plans.given(plan, plan.defense.sees).training
    assert isinstance(seen, Split)
    jax.tree.map(np.testing.assert_array_equal, seen, delivered.visible)


@pytest.mark.slow  # a run with its control rows, and a sweep of three groups: half a minute
def test_a_run_that_was_cut_between_its_stages_goes_on_and_a_sweep_has_the_same_record(
    tmp_path, no_cache_of_the_user
):
    """Through the loop, its checkpoints, the groups of a sweep and the records that all defenses share."""
    words = [*ABL.split(), "--quiet", "--checkpoint-seconds", "0"]
    assert cli.main(["run", *words, "--out", str(tmp_path / "run")]) == 0
    ((run_id, whole),) = records(tmp_path / "run").items()
    (tmp_path / "run" / run_id / "record.json").unlink()
    shutil.rmtree(tmp_path / "run" / run_id / "checkpoints-1")
    assert cli.main(["run", *words, "--out", str(tmp_path / "run")]) == 0
    over = ["--over", "defense.gamma=0.5,0.25", "--form", "loop"]
    assert cli.main(["sweep", *words, *over, "--out", str(tmp_path / "sweep")]) == 0
    swept = records(tmp_path / "sweep")
    assert len(swept) == 2
    for again in (*records(tmp_path / "run").values(), swept[run_id]):
        assert again["metrics"] == whole["metrics"]
        assert again["cost"]["gradient_evaluations"] == whole["cost"]["gradient_evaluations"]
    assert whole["cost"]["epochs"] == 3 + 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--attack", "wanet"),
            r"^defense must see a training set, and this attack delivers a network",
        ),
        (
            ("--attack", "badnets", "--data-on"),
            r"^defense must see the training set on the device; got data_on = 'host'",
        ),
    ],
)
def test_where_there_is_no_training_set_to_see_it_is_refused(words, message):
    on_host = words[-1] == "--data-on"
    config = configs.resolve(schema.overrides([*ABL.split(), *words[:2]]))
    with pytest.raises(InputError, match=message):
        plans.prepare(config, data_on="host" if on_host else "auto")


def test_a_share_that_isolates_everything_is_refused():
    with pytest.raises(InputError, match=r"^isolate must be at least 0 and below 1"):
        abl(isolate=1.0)
    assert defenses.sees("abl") == ("training",)
