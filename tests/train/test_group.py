"""Several points in one program are what each of them is alone: in every form, over devices, when one diverges."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from planted import Net

from bdjax import defenses
from bdjax.checks import InputError
from bdjax.data import splits
from bdjax.devices import compilation, footprint
from bdjax.models._layers import LinenModel
from bdjax.train import forms, group, grouped, loop, programs
from bdjax.train.checkpoints import Checkpoints
from bdjax.train.group import Point

RATES = (0.01, 0.02, 0.04)
EPOCHS = 2
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "reduce-scatter",
    "collective-broadcast",
)


@pytest.fixture(scope="module")
def model(spec):
    """A network that compiles in half the time of a real one."""
    return LinenModel(Net(widths=(4, 6), norm=True, classes=spec.num_classes), spec)


@pytest.fixture(scope="module")
def make(model, variables, split):
    """Points that differ in key, learning rate and data, with a batch of 23 rows and one of 22."""

    def points(rates=RATES, epochs=EPOCHS, name="ft"):
        learners = [
            defenses.create(name, learning_rate=rate, epochs=epochs, batch_size=32).learner
            for rate in rates
        ]
        odd = splits.take(split, np.arange(45))
        rolled = [
            odd._replace(input=np.roll(odd.input, number, axis=0)) for number in range(len(rates))
        ]
        return [
            Point(jax.random.key(number), learner, variables, data)
            for number, (learner, data) in enumerate(zip(learners, rolled, strict=True))
        ]

    return points


@pytest.fixture(scope="module")
def variables(model):
    return model.init(jax.random.key(0))


@pytest.fixture(scope="module")
def alone(make, model):
    """Each point by the loop of a single run."""
    return [loop.run(p.key, p.learner, model, p.variables, p.split) for p in make()]


def results(outcomes, points, model):
    return [outcome.result(point, model) for outcome, point in zip(outcomes, points, strict=True)]


def assert_same(together, alone, atol=0.0):
    for one, other in zip(together, alone, strict=True):
        for got, expected in zip(
            jax.tree.leaves(one.variables), jax.tree.leaves(other.variables), strict=True
        ):
            np.testing.assert_allclose(got, expected, atol=atol, rtol=0)
        assert [row.loss for row in one.history] == pytest.approx(
            [row.loss for row in other.history], abs=10 * atol
        )
        assert one.gradient_evaluations == other.gradient_evaluations


def test_points_differ(alone):
    losses = [result.history[-1].loss for result in alone]
    assert len(set(losses)) == len(RATES)


@pytest.mark.parametrize(("form", "atol"), [("loop", 0.0), ("vmap", 1e-5), ("map:2", 1e-5)])
def test_a_group_on_one_device_is_its_points_one_by_one(form, atol, make, model, alone):
    points = make()
    assert_same(results(group.run(points, model, form=form), points, model), alone, atol)


@pytest.mark.parametrize(
    ("devices", "batch_devices", "form"), [(8, 1, "loop"), (2, 1, "vmap"), (4, 2, "loop")]
)
def test_a_group_over_devices_is_its_points_one_by_one(
    devices, batch_devices, form, make, model, alone
):
    """Three points on eight devices: five copies are computed and dropped."""
    points = make()
    mesh = group.point_mesh(devices, batch_devices)
    assert_same(results(group.run(points, model, form=form, mesh=mesh), points, model), alone, 1e-4)


@pytest.mark.parametrize("form", ["loop", "vmap"])
def test_devices_that_share_points_do_not_talk(form, make, model):
    mesh = group.point_mesh(8)
    stacked = grouped.place(group.stack(make()), mesh)
    state = grouped.init(stacked, "loop", model, mesh)
    text = (
        grouped.epochs.lower(programs.span(range(1)), stacked, state, form, model, mesh)
        .compile()
        .as_text()
    )
    assert not [word for word in COLLECTIVES if word in text]
    assert "num_partitions=8" in text


def test_a_point_that_diverges_leaves_the_others_alone(make, model, alone):
    points = make(rates=(RATES[0], 1e30, RATES[2]))
    outcomes = group.run(points, model)
    assert isinstance(outcomes[1], loop.Diverged)
    assert "not finite after epoch 1 of 2: lower the learning rate (1e+30)" in str(outcomes[1])
    kept = [0, 2]
    assert_same([outcomes[i].result(points[i], model) for i in kept], [alone[i] for i in kept])


def test_where_all_diverge_all_are_told(make, model):
    outcomes = group.run(make(rates=(1e30, 1e30, 1e30)), model)
    assert all(isinstance(outcome, loop.Diverged) for outcome in outcomes)


def test_another_value_compiles_nothing(make, model, alone):
    group.run(make(), model)
    with compilation.count_seconds() as seconds:
        (first, *_) = group.run(make(rates=(0.5, 0.25, 0.125)), model)
    assert sum(seconds) == 0
    assert first.history[-1].loss != alone[0].history[-1].loss


def test_seconds_are_shared(make, model):
    outcomes = group.run(make(), model)
    assert len({row.seconds for outcome in outcomes for row in outcome.history[:1]}) == 1
    rows = []
    again = group.run(make(), model, on_epoch=rows.append)
    assert again[0].history[0].seconds == pytest.approx(rows[0].seconds / 3)
    assert rows[-1].loss == pytest.approx(np.mean([outcome.history[-1].loss for outcome in again]))


@pytest.mark.parametrize(("form", "mesh_of"), [("loop", None), ("vmap", (8, 1))])
def test_a_cut_group_continues_in_any_form_and_on_any_mesh(
    form, mesh_of, make, model, alone, tmp_path
):
    points = make()
    with Checkpoints(tmp_path, every=0.0) as checkpoints, pytest.raises(loop.Stopped):
        group.run(points, model, checkpoints=checkpoints, should_stop=lambda: True)
    mesh = None if mesh_of is None else group.point_mesh(*mesh_of)
    with Checkpoints(tmp_path, every=0.0) as checkpoints:
        assert checkpoints.epoch == 1
        outcomes = group.run(points, model, form=form, mesh=mesh, checkpoints=checkpoints)
    assert_same(results(outcomes, points, model), alone, 0.0 if mesh is None else 1e-4)


def test_a_checkpoint_of_other_points_is_refused(make, model, tmp_path):
    with Checkpoints(tmp_path, every=0.0) as checkpoints:
        group.run(make(), model, checkpoints=checkpoints)
    with (
        Checkpoints(tmp_path, every=0.0) as checkpoints,
        pytest.raises(InputError, match="cannot be read; delete it"),
    ):
        group.run(make(rates=RATES[:2]), model, checkpoints=checkpoints)


def test_without_epochs_nothing_changes(make, model, variables):
    points = make(epochs=0)
    for result in results(group.run(points, model), points, model):
        assert not result.history
        jax.tree.map(np.testing.assert_array_equal, result.variables, variables)


def test_points_of_different_structure_are_refused(make, model):
    points = [*make(), make(epochs=EPOCHS + 1)[0]]
    with pytest.raises(InputError, match="points must share one structure"):
        group.run(points, model)


@pytest.mark.parametrize("form", ["auto", "map", "map:0", "map:x", "VMAP"])
def test_an_unknown_form_is_refused(form, make, model):
    with pytest.raises(InputError, match="form must be auto, loop, vmap, or map:k"):
        group.run(make(), model, form=form)


@pytest.mark.parametrize(
    ("devices", "batch_devices", "words"),
    [(9, 1, "devices must be at most 8"), (8, 3, "batch_devices must divide devices = 8; got 3")],
)
def test_a_mesh_that_cannot_be_is_refused(devices, batch_devices, words):
    with pytest.raises(InputError, match=words):
        group.point_mesh(devices, batch_devices)


# --- choosing a form -------------------------------------------------------------------------------------------------


def test_a_short_job_takes_the_loop_at_once(make, model):
    choice = group.choose(make(), model)
    assert (choice.form, list(choice.seconds)) == ("loop", ["loop"])


def test_a_single_point_is_not_measured(make, model):
    assert group.choose(make()[:1], model) == ("loop", {})
    assert group.choose(make(), model, group.point_mesh(4)) == ("loop", {})
    assert group.choose(make(epochs=0), model) == ("loop", {})


@pytest.mark.parametrize("best", ["loop", "vmap"])
def test_a_long_job_takes_what_was_fastest(best, make, model, monkeypatch):
    def time(few, form, model, mesh):
        assert few.split.label.shape == (3, 45)  # no more than three batches of 23
        return 1.0, 0.5 if form == best else 0.7

    monkeypatch.setattr(forms, "_time", time)
    choice = group.choose(make(epochs=100), model)
    assert choice.form == best
    assert choice.seconds == {
        form: pytest.approx(0.25 if form == best else 0.35) for form in ("loop", "vmap")
    }


def test_what_does_not_fit_is_not_taken(make, model, monkeypatch):
    monkeypatch.setattr(forms, "_SHORT", 0.0)
    monkeypatch.setattr(forms, "fits", lambda compiled, sharing: False)
    assert group.choose(make(), model) == ("loop", {})


def test_memory_is_compared_with_the_device(make, model, monkeypatch):
    stacked = grouped.place(group.stack(make()), None)
    state = grouped.init(stacked, "loop", model, None)
    compiled = grouped.epochs.lower(
        programs.span(range(1)), stacked, state, "loop", model, None
    ).compile()
    assert group.fits(compiled, 1)
    monkeypatch.setattr(footprint.os, "sysconf", lambda name: 100)  # bytes a page, pages
    assert not group.fits(compiled, 1)
    monkeypatch.delattr(footprint.os, "sysconf")  # Windows does not tell
    assert group.fits(compiled, 1)
