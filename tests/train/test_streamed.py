"""Images that are streamed give what images on the device give, bit for bit, and the device does not wait for them."""

from __future__ import annotations

import functools
import time

import jax
import numpy as np
import pytest
from quick import quick_jit
from small_attacks import create

from bdjax import attacks, defenses, poison
from bdjax.checks import InputError
from bdjax.data import streams
from bdjax.data.streams import Selection, Stream
from bdjax.devices import placement, sharding
from bdjax.train import loop, streamed
from bdjax.train.checkpoints import Checkpoints
from bdjax.types import Split

pytest.importorskip("grain")

KEY, POISON_KEY = jax.random.key(0), jax.random.key(1)
ROW = 8 * 8 * 3
SMALL = ROW * 32  # bytes of a chunk of one step
poison_train = quick_jit(poison.poison_train)


def same(first, second) -> bool:
    leaves = (jax.tree.leaves(tree) for tree in (first, second))
    return all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


def figures(result: loop.Result) -> list[tuple]:
    """Return the history without seconds."""
    return [row[:4] for row in result.history]


@pytest.fixture(scope="module")
def large(split) -> Split:
    """208 images, of which 200 count: batches of 29 and 28, and row numbers that are not places in the order."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (208, *split.input.shape[1:]), dtype=np.uint8)
    return Split(image, rng.integers(0, 4, 208).astype(np.int32), np.arange(208) % 26 > 0)


@pytest.fixture(scope="module")
def attack(spec):
    # Half of what is blended lies between two levels: rounding is put to the test.
    attack = attacks.create("blended", spec=spec, alpha=0.5, poison_rate=0.3)
    return attack, attack.trigger.init(KEY, spec)


@pytest.fixture(scope="module")
def resident(attack, large):
    return poison_train(POISON_KEY, *attack, large)


@pytest.fixture(scope="module")
def stream(attack, large):
    return poison.poison_stream(POISON_KEY, *attack, large)


@pytest.fixture
def in_chunks(monkeypatch):
    """Let an epoch have chunks of so many steps of 32."""

    def of(steps: int) -> None:
        monkeypatch.setattr(
            streamed, "begin", functools.partial(streamed.begin, chunk_bytes=steps * SMALL)
        )

    return of


@pytest.fixture(scope="module")
def learner():
    """Seven steps of 29 and 28 images."""
    return defenses.create("ft", epochs=3, batch_size=32).learner


@pytest.fixture(scope="module")
def expected(learner, model, variables, resident):
    return loop.run(KEY, learner, model, variables, resident.visible)


# --- resident equals streamed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "options"),
    [
        ("ft", 1, {"batch_size": 32}),  # chunks of two steps, then one step
        ("ft", 100, {"batch_size": 32}),
        ("ft", 1, {"batch_size": 200}),
        ("ft_sam", 3, {"batch_size": 32}),
    ],
    ids=["ragged chunks", "one chunk", "one step", "two gradients a step"],
)
def test_resident_equals_streamed(
    model, variables, resident, stream, in_chunks, name, steps, options
):
    in_chunks(steps)
    learner = defenses.create(name, epochs=3, **options).learner
    expected = loop.run(KEY, learner, model, variables, resident.visible)
    got = streamed.run(KEY, learner, model, variables, stream.visible)
    assert same(got.variables, expected.variables)
    assert figures(got) == figures(expected)
    # Whatever is left for the last chunk
    assert [row.compile_seconds for row in got.history[1:]] == [0.0, 0.0]


def test_the_images_that_a_stream_shows_are_those_of_the_order(resident, stream, large):
    """Another order, or another image in its place, would not be the same network: the equality above can fail."""
    plain = Stream(large.input)
    assert not np.array_equal(resident.visible.input, plain.images)
    learner = defenses.create("ft", epochs=1, batch_size=32).learner
    reading = streamed.begin(KEY, learner, stream.visible)
    reading.ahead.close()
    valid = np.flatnonzero(large.valid)
    order = jax.random.permutation(jax.random.split(KEY)[0], 200)
    assert reading.filled is not None
    np.testing.assert_array_equal(reading.index[reading.filled], valid[order])
    assert (reading.steps, reading.size, reading.filled.sum()) == (7, 29, 200)


def test_a_stream_that_nothing_is_done_to(learner, model, variables, large):
    expected = loop.run(KEY, learner, model, variables, large)
    got = streamed.run(KEY, learner, model, variables, large._replace(input=Stream(large.input)))
    assert same(got.variables, expected.variables)


@pytest.mark.parametrize("first", [loop, streamed], ids=["resident first", "streamed first"])
def test_either_way_continues_the_other(
    expected, learner, model, variables, resident, stream, tmp_path, first
):
    def feed(module, **options):
        split = resident.visible if module is loop else stream.visible
        checkpoints = Checkpoints(tmp_path, every=0.0)
        try:
            return module.run(
                KEY, learner, model, variables, split, checkpoints=checkpoints, **options
            )
        finally:
            checkpoints.close()

    with pytest.raises(loop.Stopped):
        feed(first, should_stop=lambda: True)
    continued = feed(loop if first is streamed else streamed)
    assert same(continued.variables, expected.variables)
    assert figures(continued) == figures(expected)


def test_eight_devices_share_each_batch(expected, learner, model, variables, stream, in_chunks):
    in_chunks(2)  # four chunks of two steps
    got = streamed.run(
        KEY, learner, model, variables, stream.visible, mesh=sharding.batch_mesh(8, 32)
    )
    for leaf, one in zip(
        *(jax.tree.leaves(result.variables) for result in (got, expected)), strict=True
    ):
        assert leaf.sharding.is_fully_replicated
        np.testing.assert_allclose(leaf, one, atol=1e-4, rtol=1e-4)
    assert [row.compile_seconds for row in got.history[1:]] == [0.0, 0.0]


# --- the poison ------------------------------------------------------------------------------------------------------


# Every kind of trigger: a formula, one that draws, parts, several images at once, a network, and a label map
@pytest.mark.parametrize(
    ("name", "label_map"),
    [
        ("badnets", "all_to_one"),
        ("badnets", "all_to_all"),
        ("wanet", "all_to_one"),
        ("combined", "all_to_one"),
        ("lc", "all_to_one"),
        ("lira", "all_to_one"),
    ],
)
def test_rows_of_a_stream_are_poisoned_as_the_whole_split_is(spec, large, name, label_map):
    attack, state = create(name, spec, poison_rate=0.3, label_map=label_map)
    whole, stream = (
        make(POISON_KEY, attack, state, large) for make in (poison_train, poison.poison_stream)
    )
    assert same(
        (whole.original_label, whole.is_poisoned), (stream.original_label, stream.is_poisoned)
    )
    assert same(whole.visible[1:], stream.visible[1:])
    change = quick_jit(lambda change, image, row: change(image, row))
    for rows in (np.arange(208), np.array([207, 3, 3, 50]), np.flatnonzero(whole.is_poisoned)[:5]):
        rows = np.resize(rows, 208)  # as many, for one program
        images = change(stream.visible.input.change, large.input[rows], rows)
        np.testing.assert_array_equal(images, whole.visible.input[rows])


def test_an_unknown_rounding_is_refused(attack, large):
    with pytest.raises(InputError, match="rounding must be one of nearest, truncate; got 'up'"):
        poison.poison_stream(POISON_KEY, *attack, large, rounding="up")


# --- waiting ---------------------------------------------------------------------------------------------------------


class Slow:
    """Images of which a chunk takes its time."""

    def __init__(self, images: np.ndarray, seconds: float):
        self._images, self._seconds = images, seconds
        self.shape, self.dtype, self.nbytes = images.shape, images.dtype, images.nbytes

    def __getitem__(self, rows):
        time.sleep(self._seconds)
        return self._images[rows]


def one_epoch(image, learner, model, variables, large, wait: float = 0.0) -> streamed.Waits:
    split = large._replace(input=Stream(image))
    state = jax.tree.map(jax.numpy.array, learner.init(KEY, model, variables, large))
    reading = streamed.begin(KEY, learner, split, chunk_bytes=SMALL)
    time.sleep(wait)
    return streamed.epoch(reading, learner, model, state, split)[2]


def test_waiting_is_counted(model, variables, large):
    learner = defenses.create("ft", epochs=1, batch_size=32).learner
    one_epoch(large.input, learner, model, variables, large)  # compiles
    slow = one_epoch(Slow(large.input, 0.3), learner, model, variables, large)
    assert 0.5 < slow.starving <= slow.reading < 3.0  # four chunks, two at a time: 0.6 seconds


def test_what_was_read_ahead_is_not_waited_for(model, variables, large):
    # Four chunks of two steps, as many as are read ahead
    learner = defenses.create("ft", epochs=1, batch_size=32).learner
    assert streams.AHEAD == 4
    one_epoch(large.input, learner, model, variables, large)
    waits = one_epoch(Slow(large.input, 0.3), learner, model, variables, large, wait=1.0)
    assert waits.reading < 0.2


def test_an_image_that_cannot_be_read_ends_the_run(model, variables, large):
    class Damaged(Slow):
        def __getitem__(self, rows):
            if 77 in rows:
                raise InputError("image 77 is damaged.")
            return super().__getitem__(rows)

    learner = defenses.create("ft", epochs=1, batch_size=32).learner
    with pytest.raises(InputError, match="image 77 is damaged"):
        streamed.run(
            KEY, learner, model, variables, large._replace(input=Stream(Damaged(large.input, 0.0)))
        )


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "fine_pruning",
            {"batch_size": 32},
            "what takes all images at once cannot be streamed|looks at all images",
        ),
        (
            "sft",
            {"batch_size": 32},
            "what looks at all images before its first step cannot be streamed; keep them on",
        ),
    ],
)
def test_what_cannot_be_streamed_is_refused_before_anything_is_compiled(
    model, variables, stream, monkeypatch, name, options, words
):
    learner = defenses.create(name, epochs=1, **options).stages[0].learner
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    with pytest.raises(InputError, match=words):
        streamed.run(KEY, learner, model, variables, stream.visible)


def test_missing_grain_names_the_extra(model, variables, stream, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "grain", None)
    with pytest.raises(
        InputError, match=r"^streaming needs the extra 'data' .*pip install 'bdjax\[data\]'"
    ):
        streamed.check(
            defenses.create("ft", batch_size=32).learner, model, variables, stream.visible
        )


# --- where the images are --------------------------------------------------------------------------------------------


def test_the_place_is_chosen_by_size_and_can_be_forced(large):
    held = 4 * large.input.nbytes  # half of it holds the images and their poisoned copy
    assert placement.choose_place("auto", large, memory=held) == "device"
    assert placement.choose_place("auto", large, memory=held - 1) == "host"
    assert placement.choose_place("auto", large) == "device"
    for place in ("device", "host", "disk"):
        assert placement.choose_place(place, large, memory=1) == place


def test_rows_that_are_left_out_are_never_read(large):
    selection = Selection(large.input, np.array([5, 3, 9]))
    assert (selection.shape, selection.dtype, selection.nbytes, len(selection)) == (
        (3, 8, 8, 3),
        np.uint8,
        3 * ROW,
        3,
    )
    np.testing.assert_array_equal(selection[np.array([2, 0])], large.input[[9, 5]])
    np.testing.assert_array_equal(
        Selection(selection, np.array([1]))[np.array([0])], large.input[[3]]
    )


def test_chunks_come_in_order_and_are_read_before_they_are_asked_for():
    seen = []

    class Noted(Slow):
        def __getitem__(self, rows):
            seen.append(rows.tolist())
            return self._images[rows]

    ahead = streams.ReadAhead(Noted(np.arange(40), 0.0), np.arange(40).reshape(20, 2)[::-1])
    deadline = time.monotonic() + 10
    while len(seen) < streams.AHEAD and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(seen) == [[32, 33], [34, 35], [36, 37], [38, 39]]
    assert [chunk.tolist() for chunk in ahead] == np.arange(40).reshape(20, 2)[::-1].tolist()
    ahead.close()
