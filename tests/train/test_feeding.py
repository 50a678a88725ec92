"""Batches that are prepared an epoch at a time are those of the step, to the bit, in every program that feeds them."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import Net

from bdjax import defenses
from bdjax.checks import InputError
from bdjax.data import splits
from bdjax.devices import placement, sharding
from bdjax.models._layers import LinenModel
from bdjax.train import feeding, group, grouped, loop, programs, resident, streamed
from bdjax.train.feeding import STEPWISE, Feeding
from bdjax.train.supervised import supervised
from bdjax.types import PreparedLearner, Split

KEY = jax.random.key(0)
LEARNERS = {
    "plain": lambda: supervised(epochs=3, batch_size=16),
    "sam": lambda: defenses.create("ft_sam", epochs=3, batch_size=16).learner,
    "sft": lambda: defenses.create("sft", epochs=3, batch_size=16).learner,
    "fast_sft": lambda: defenses.create("fast_sft", epochs=3, batch_size=16).learner,
    "nft": lambda: defenses.create("nft", epochs=3, batch_size=16).learner,
}
QUICK = {"xla_backend_optimization_level": 0}
FROM_THE_HOST = re.compile(r"callback|infeed|outfeed|is_host_transfer=true")


@pytest.fixture(scope="module")
def model(spec):
    """A network that compiles in half the time of a real one."""
    return LinenModel(Net(widths=(4, 6), norm=True, classes=spec.num_classes), spec)


@pytest.fixture(scope="module")
def variables(model):
    return model.init(KEY)


@pytest.fixture(scope="module")
def odd(split) -> Split:
    """Two batches of 15 rows and one of 14."""
    return splits.take(split, np.arange(44))


def same(first, second) -> bool:
    leaves = (jax.tree.leaves(tree) for tree in (first, second))
    return all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


# --- the same bits ---------------------------------------------------------------------------------------------------


def test_prepared_batches_change_no_bit(model, variables, odd):
    learner = LEARNERS["sam"]()
    found = [
        loop.run(KEY, learner, model, variables, odd, prepare=prepare)
        for prepare in ("step", "epoch")
    ]
    assert same(found[0].variables, found[1].variables)
    assert [row[:4] for row in found[0].history] == [row[:4] for row in found[1].history]


def test_what_is_prepared_is_cropped_and_flipped_in_eight_bits(model, split):
    learner = supervised()
    assert isinstance(learner, PreparedLearner)
    batch = Split(jnp.asarray(split.input), jnp.asarray(split.label), None)  # type: ignore[arg-type]
    prepared = learner.prepare(KEY, model, batch)
    assert prepared.input.dtype == jnp.uint8
    assert not np.array_equal(prepared.input, split.input)
    assert prepared.label is batch.label


def test_prepared_batches_over_devices_are_those_of_one(model, variables, odd):
    learner, mesh = LEARNERS["plain"](), sharding.batch_mesh(4, 16)
    found = [
        loop.run(KEY, learner, model, variables, odd, prepare=p, mesh=mesh)
        for p in ("step", "epoch")
    ]
    for first, second in zip(*(jax.tree.leaves(result.variables) for result in found), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)


def test_steps_that_are_written_out_are_the_same_up_to_rounding(model, variables, odd):
    learner = LEARNERS["plain"]()
    found = [loop.run(KEY, learner, model, variables, odd, unroll=unroll) for unroll in (1, 2)]
    for first, second in zip(*(jax.tree.leaves(result.variables) for result in found), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)


# --- the choice ------------------------------------------------------------------------------------------------------


def test_a_cpu_prepares_each_step_unless_told_otherwise(split):
    assert feeding.choose("auto", 1, supervised(), split) == STEPWISE
    assert feeding.choose("epoch", 4, supervised(), split) == Feeding(prepared=True, unroll=4)


def test_an_accelerator_prepares_an_epoch_where_there_is_room(split, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    need = 4 * split.input.nbytes / placement.EPOCH_SHARE
    monkeypatch.setattr(placement, "device_bytes", lambda: int(2.5 * need))
    assert feeding.choose("auto", 1, supervised(), split, points=2).prepared
    assert not feeding.choose("auto", 1, supervised(), split, points=3).prepared
    assert not feeding.choose("step", 1, supervised(), split).prepared


def test_what_cannot_be_prepared_is_left_to_the_step(split):
    # It mixes images, and so rounds
    assert feeding.choose("epoch", 1, LEARNERS["nft"](), split) == STEPWISE


@pytest.mark.parametrize(
    ("prepare", "unroll", "words"),
    [
        ("epochs", 1, "prepare must be one of auto, step, epoch; got 'epochs'"),
        ("auto", 0, "unroll must be 1 or more, got 0"),
        ("auto", 65, "unroll must be at most 64, got 65"),
        ("auto", "all", "unroll must be auto or a whole number; got 'all'"),
    ],
)
def test_what_says_nothing_is_refused(prepare, unroll, words):
    with pytest.raises(InputError, match=words):
        feeding.check(prepare, unroll)


# --- what is compiled ------------------------------------------------------------------------------------------------


def of_loop(learner, model, variables, split, state):
    span = programs.span(range(1))
    return programs.train_epochs.lower(
        KEY, learner, model, state, split, span, feeding=Feeding(prepared=True)
    )


def of_group(learner, model, variables, split, state):
    points = [group.Point(KEY, learner, variables, split)] * 2
    several = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), state)
    return grouped.epochs.lower(
        programs.span(range(1)), group.stack(points), several, "loop", model, None, STEPWISE
    )


def of_stream(learner, model, variables, split, state):
    several = jax.tree.map(
        lambda x: x[:32].reshape(2, 16, *x.shape[1:]), split._replace(valid=None)
    )
    span = programs.span(range(2))
    return streamed._take_steps.lower(KEY, span, learner, model, state, several, size=16, mesh=None)


PROGRAMS = [(name, of_loop) for name in LEARNERS]
PROGRAMS += [("sam", of_group), ("sam", of_stream)]


@pytest.mark.parametrize(("name", "lower"), PROGRAMS)
def test_the_whole_state_is_donated_and_nothing_asks_the_host(name, lower, model, variables, split):
    learner = LEARNERS[name]()
    split = jax.device_put(split)
    state = jax.eval_shape(lambda: learner.init(KEY, model, variables, split))
    text = lower(learner, model, variables, split, state).compile(compiler_options=QUICK).as_text()
    (aliases,) = re.findall(r"input_output_alias=\{(.*?)\}, entry", text)
    assert aliases.count("alias)") == len(jax.tree.leaves(state))
    assert not FROM_THE_HOST.search(text)


def test_a_call_takes_nothing_from_the_host(model, variables, odd, monkeypatch):
    """But which epochs: the learner's numbers and the key are on the device before the first call."""
    learner, call, calls = LEARNERS["sam"](), programs.train_epochs, []

    def guarded(key, learner, model, state, split, span, **options):
        span = jax.device_put(span)
        with jax.transfer_guard("disallow" if calls else "allow"):  # compiling brings constants
            calls.append(span)
            return call(key, learner, model, state, split, span, **options)

    monkeypatch.setattr(programs, "train_epochs", guarded)
    loop.run(KEY, learner, model, variables, odd)
    assert len(calls) > 1
    monkeypatch.setattr(resident, "_once", lambda tree, mesh: tree)
    calls[:] = calls[:1]
    with pytest.raises(RuntimeError, match="Disallowed host-to-device transfer"):
        loop.run(KEY, learner, model, variables, odd)
