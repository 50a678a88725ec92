"""The one loop, fed to learners that only keep a record, and its promises to the caller."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import defenses, pytree
from bdjax.checks import InputError
from bdjax.data import splits
from bdjax.devices import compilation
from bdjax.train import blame, loop, pace
from bdjax.train.checkpoints import Checkpoints
from bdjax.types import Info, Split

KEY = jax.random.key(0)
ROWS = 20


@pytree.dataclass
class Recorder:
    """Learns nothing: it lists the rows that it is shown, which the test's images carry as their only pixel."""

    batch_size: int = pytree.static(default=5)
    drop_last: bool = pytree.static(default=False)
    epochs: int = pytree.static(default=3)
    breaks_at: int = pytree.static(default=10**6)  # step whose loss is not finite
    breaks_state: bool = pytree.static(default=False)  # or a number in the state

    def init(self, key, model, variables, split):
        data = jax.random.key_data(key)
        return {
            "seen": jnp.full(100, -1),
            "sum": jnp.zeros(()),
            "init_key": data,
            "step": jnp.int32(0),
        }

    def update(self, key, model, state, batch):
        row, step = batch.input.ravel().astype(int), state["step"]
        valid = jnp.ones(row.shape, bool) if batch.valid is None else batch.valid
        place = step * self.batch_size + jnp.arange(row.shape[0])
        broken = step == self.breaks_at
        state = {
            **state,
            "seen": state["seen"].at[place].set(jnp.where(valid, row, -1)),
            "sum": state["sum"] + jnp.where(broken & self.breaks_state, jnp.nan, 0),
            "step": step + 1,
        }
        loss = jnp.where(broken & ~jnp.bool_(self.breaks_state), jnp.inf, step.astype(float))
        return state, Info(loss, valid.mean(), jnp.int32(1))

    def finalize(self, model, state):
        return state


@pytest.fixture(scope="module")
def rows() -> Split:
    return Split(
        np.arange(ROWS, dtype=np.uint8).reshape(-1, 1, 1, 1),
        np.zeros(ROWS, np.int32),
        np.ones(ROWS, bool),
    )


@pytest.fixture(scope="module")
def run(model):
    """Feed a recorder, which looks at no model."""

    def run(learner: Recorder, split: Split, key=KEY, **options) -> loop.Result:
        return loop.run(key, learner, model, {}, split, **options)

    return run


@pytest.fixture
def patient(monkeypatch):
    """However slow this machine, let calls have one epoch, two, four and so on."""
    monkeypatch.setattr(pace, "CALL_SECONDS", 1e6)


def epochs_seen(result: loop.Result, rows_per_epoch: int) -> list[list[int]]:
    seen = np.asarray(result.variables["seen"])
    seen = seen[seen >= 0].reshape(-1, rows_per_epoch)
    return seen.tolist()


# --- order -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [5, 8, 20, 21], ids=["whole", "ragged", "one", "larger"])
def test_every_epoch_shows_every_row_once_in_an_order_of_its_own(run, rows, batch_size):
    orders = epochs_seen(run(Recorder(batch_size), rows), ROWS)
    assert [sorted(order) for order in orders] == [list(range(ROWS))] * 3
    assert len({tuple(order) for order in [*orders, range(ROWS)]}) == 4


def test_drop_last_leaves_out_the_rest(run, rows):
    orders = epochs_seen(run(Recorder(8, drop_last=True), rows), 16)
    assert [len(set(order)) for order in orders] == [16] * 3
    assert len(set().union(*orders)) > 16  # another rest each time


def test_a_step_is_an_even_share_of_the_epoch(run, rows):
    """Twenty rows in batches of eight: seven, seven and six."""
    seen = np.asarray(run(Recorder(8, epochs=1), rows).variables["seen"])[:24].reshape(3, 8)
    assert (seen >= 0).sum(1).tolist() == [7, 7, 6]


def test_the_order_is_the_keys(run, rows):
    first, again, other = (
        epochs_seen(run(Recorder(), rows, jax.random.key(seed)), ROWS) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_what_a_learner_draws_at_first_is_not_what_an_epoch_draws(run, rows):
    """As ``split(key)`` gives what ``fold_in(key, 0)`` and ``fold_in(key, 1)`` give, its key must be another."""
    drawn = run(Recorder(), rows).variables["init_key"]
    assert drawn.tolist() != jax.random.key_data(KEY).tolist()


def test_rows_that_are_not_valid_are_never_shown(run, rows):
    valid = np.arange(ROWS) % 4 > 0
    orders = epochs_seen(run(Recorder(), rows._replace(valid=valid)), valid.sum())
    assert [sorted(order) for order in orders] == [np.flatnonzero(valid).tolist()] * 3


# --- report ----------------------------------------------------------------------------------------------------------


def test_history_has_the_means_of_each_epoch(run, rows):
    told = []
    result = run(Recorder(5), rows, on_epoch=told.append)
    assert told == result.history
    assert [row.epoch for row in told] == [1, 2, 3]
    # The recorder's loss is the number of the step
    assert [row.loss for row in told] == [1.5, 5.5, 9.5]
    assert [row.accuracy for row in told] == [1.0] * 3
    assert [row.gradient_evaluations for row in told] == [4] * 3
    assert result.gradient_evaluations == 12
    assert result.run_seconds == sum(row.seconds for row in told) > 0
    assert result.compile_seconds == sum(row.compile_seconds for row in told)
    assert all(type(value) in (int, float) for row in told for value in row)


def test_epochs_that_share_a_call_share_its_seconds_and_are_told_one_by_one(run, rows, patient):
    told = []
    result = run(Recorder(epochs=8), rows, on_epoch=told.append)
    assert told == result.history
    assert [row.epoch for row in told] == list(range(1, 9))
    calls = [told[0:1], told[1:3], told[3:7], told[7:8]]  # each as many as the two before
    assert [len({row.seconds for row in call}) for call in calls] == [1] * 4
    assert [row.loss for row in told] == [1.5 + 4 * number for number in range(8)]


def test_calls_of_several_epochs_are_the_program_and_the_bits_of_calls_of_one(run, rows, patient):
    together = run(Recorder(epochs=8), rows)
    with compilation.count_seconds() as compiling:
        alone = run(Recorder(epochs=8), rows, on_variables=lambda *_: None)
    assert sum(compiling) == 0
    assert len({row.seconds for row in alone.history}) == 8
    assert same(together.variables, alone.variables)
    assert [row[:4] for row in together.history] == [row[:4] for row in alone.history]


def test_variables_are_shown_after_every_epoch(run, rows, patient):
    steps = {}
    run(
        Recorder(epochs=4),
        rows,
        on_variables=lambda epoch, made: steps.update({epoch: int(made()["step"])}),
    )
    assert steps == {1: 4, 2: 8, 3: 12, 4: 16}


def test_divergence_within_a_call_is_named_with_its_epoch(run, rows, patient):
    told = []
    with pytest.raises(loop.Diverged, match="after epoch 6 of 8"):  # of a call of epochs 4 to 7
        run(Recorder(epochs=8, breaks_at=21), rows, on_epoch=told.append)
    assert [row.epoch for row in told] == [1, 2, 3, 4, 5]


def test_no_epochs_give_an_empty_history(run, rows):
    result = run(Recorder(epochs=0), rows)
    assert result.history == []
    assert (result.run_seconds, result.compile_seconds, result.gradient_evaluations) == (
        0.0,
        0.0,
        0,
    )


# --- refusals and bad ends -------------------------------------------------------------------------------------------


def test_a_split_without_a_row_is_refused(run, rows):
    empty = rows._replace(valid=np.zeros(ROWS, bool))
    with pytest.raises(InputError, match="split must have at least 1 image to train on, got 0"):
        run(Recorder(1), empty)
    assert run(Recorder(1, epochs=0), empty).history == []  # nothing to do


@pytest.mark.parametrize("breaks_state", [False, True], ids=["loss", "state"])
def test_a_number_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(
    run, rows, tmp_path, breaks_state
):
    learner = Recorder(breaks_at=9, breaks_state=breaks_state)
    told = []
    checkpoints = Checkpoints(tmp_path, every=0.0)
    with pytest.raises(
        loop.Diverged,
        match=f"after epoch 3 of 3: lower the learning rate; .* of epoch 2, is in {tmp_path}",
    ):
        run(learner, rows, checkpoints=checkpoints, on_epoch=told.append)
    saved = checkpoints.restore(learner.init(KEY, None, {}, rows))
    checkpoints.close()
    assert saved is not None
    assert saved.state["step"] == 8
    assert [row["epoch"] for row in saved.history] == [row.epoch for row in told] == [1, 2]


def test_divergence_in_the_first_epoch_promises_no_checkpoint(run, rows, tmp_path):
    checkpoints = Checkpoints(tmp_path, every=0.0)
    with pytest.raises(loop.Diverged) as error:
        run(Recorder(breaks_at=0), rows, checkpoints=checkpoints)
    checkpoints.close()
    assert "checkpoint" not in str(error.value)


def test_a_huge_learning_rate_diverges(model, variables, split):
    learner = defenses.create("ft", epochs=3, batch_size=32, learning_rate=1e30).learner
    with pytest.raises(
        loop.Diverged, match="the loss is not finite after epoch 1 of 3: lower the learning rate"
    ):
        loop.run(KEY, learner, model, variables, split)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"rho": 3e38},
            r"lower the learning rate \(0.01\), rho \(3e\+38\) or the weight decay \(0.0001\)$",
        ),
        (
            {"rho": 0.0, "weight_decay": 1e30},
            r"lower the learning rate \(0.01\) or the weight decay \(1e\+30\)$",
        ),
    ],
)
def test_whatever_may_be_to_blame_is_named_with_its_value(model, variables, split, options, words):
    learner = defenses.create("ft_sam", epochs=3, batch_size=32, **options).learner
    with pytest.raises(
        loop.Diverged, match=rf"the loss is not finite after epoch \d of 3: {words}"
    ):
        loop.run(KEY, learner, model, variables, split)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sft", {"eta_f": 5.0}, "the learning rate (0.01), eta_f (5) or eta_r (5)"),
        ("nft", {"eta_c": 0.25}, "the learning rate (0.05) or eta_c (0.25)"),
        ("ft", {"weight_decay": 0.0}, "the learning rate (0.01)"),
        (
            "ft_sam",
            {"rho_min": 0.5},
            "the learning rate (0.01), rho (2), rho_min (0.5) or the weight decay (0.0001)",
        ),
    ],
)
def test_what_every_defense_could_lower(name, options, words):
    assert blame.to_lower(defenses.create(name, **options)) == words


def test_of_several_points_the_range_is_named():
    points = [defenses.create("ft_sam", rho=rho) for rho in (1.0, 1e10)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *points)
    assert (
        blame.to_lower(stacked)
        == "the learning rate (0.01), rho (1 to 1e+10) or the weight decay (0.0001)"
    )


def test_a_run_stops_when_asked_and_is_not_asked_after_the_last_epoch(run, rows, tmp_path, patient):
    checkpoints, asked = Checkpoints(tmp_path, every=1000.0), []

    def should_stop() -> bool:
        asked.append(checkpoints.epoch)
        return len(asked) == 2

    # The second call has two epochs
    with pytest.raises(loop.Stopped, match="stopped after epoch 3 of 4"):
        run(Recorder(epochs=4), rows, checkpoints=checkpoints, should_stop=should_stop)
    assert asked == [None, None]
    assert checkpoints.epoch == 3  # however young the last checkpoint
    run(Recorder(epochs=4), rows, checkpoints=checkpoints, should_stop=should_stop)
    assert len(asked) == 2
    assert checkpoints.epoch == 4
    checkpoints.close()


# --- a real network --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learner():
    return defenses.create("ft", epochs=3, batch_size=32).learner


@pytest.fixture(scope="module")
def result(learner, model, variables, split):
    return loop.run(KEY, learner, model, variables, split)


def same(first, second) -> bool:
    leaves = (jax.tree.leaves(tree) for tree in (first, second))
    return all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


def test_the_given_variables_are_not_consumed(result, variables, model):
    assert same(variables, model.init(jax.random.key(0)))  # the fixture's own key
    assert not same(variables, result.variables)


def test_an_epoch_consumes_its_state(learner, model, variables, split):
    state = jax.tree.map(jnp.array, learner.init(KEY, model, variables, split))
    loop.train_epoch(KEY, learner, model, state, jax.device_put(split), mesh=None)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.tuned))


def test_the_same_key_gives_the_same_bits_and_another_key_others(
    result, learner, model, variables, split
):
    assert same(result.variables, loop.run(KEY, learner, model, variables, split).variables)
    other = loop.run(jax.random.key(1), learner, model, variables, split)
    assert not same(result.variables["params"], other.variables["params"])


def test_padding_a_split_changes_nothing(result, learner, model, variables, split):
    padded = splits.pad(split, 50)
    assert len(padded.label) == 50
    again = loop.run(KEY, learner, model, variables, padded)
    assert same(result.variables, again.variables)


def test_only_the_first_epoch_compiles(result):
    assert [row.compile_seconds for row in result.history[1:]] == [0.0, 0.0]
    assert all(math.isfinite(row.loss) for row in result.history)
