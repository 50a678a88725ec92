"""Whatever a row's input and label are, arrays or trees of arrays, each feeder gathers, divides and sends them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import pytree
from bdjax.data.streams import Stream
from bdjax.devices import sharding
from bdjax.train import group, loop, streamed
from bdjax.train.feeder import Feeder
from bdjax.train.grouped import Grouped
from bdjax.train.resident import Resident
from bdjax.types import Info, Split

KEY = jax.random.key(0)
ROWS, CLASSES, EPOCHS = 23, 5, 2  # 22 of them count: batches of eight, seven and seven
CLIP = (3, 2, 2, 1)  # frames, height, width, channels


@pytree.dataclass
class Recorder:
    """Lists the numbers of the rows that it is shown, which their clips, masks and labels carry, as each of these."""

    batch_size: int = pytree.static(default=8)
    drop_last: bool = pytree.static(default=False)
    epochs: int = pytree.static(default=EPOCHS)
    prepares = True

    def init(self, key, model, variables, split):
        steps = 3 * self.epochs
        return {"seen": jnp.full((steps, 3, self.batch_size), -1), "step": jnp.int32(0)}

    def update(self, key, model, state, batch):
        return self.learn(key, model, state, self.prepare(key, model, batch))

    def prepare(self, key, model, batch):
        return batch._replace(input=jax.tree.map(lambda x: x + 1, batch.input))

    def learn(self, key, model, state, batch):
        clip = batch.input["clip"] if isinstance(batch.input, dict) else batch.input
        assert clip.shape[1:] == CLIP
        length = (
            batch.input["length"] - 1 if isinstance(batch.input, dict) else clip[:, 0, 0, 0, 0] - 1
        )
        label = batch.label @ 2 ** jnp.arange(CLASSES)
        numbers = jnp.stack([clip[:, -1, -1, -1, -1].astype(int) - 1, length.astype(int), label])
        numbers = jnp.where(batch.valid, numbers, -1)
        seen = state["seen"].at[state["step"], :, : label.shape[0]].set(numbers)
        mean = numbers.mean()
        return {"seen": seen, "step": state["step"] + 1}, Info(mean, mean, jnp.int32(1))

    def finalize(self, model, state):
        return state


@pytest.fixture(scope="module")
def clips() -> Split:
    """Rows whose number is each of their pixels, and the classes that they have, in binary."""
    clip = np.broadcast_to(
        np.arange(ROWS, dtype=np.uint8)[:, None, None, None, None], (ROWS, *CLIP)
    )
    classes = (np.arange(ROWS)[:, None] >> np.arange(CLASSES)) % 2 > 0
    return Split(np.ascontiguousarray(clip), classes, np.arange(ROWS) != 4)


@pytest.fixture(scope="module")
def tree(clips) -> Split:
    """The same, and beside each clip its length."""
    return clips._replace(input={"clip": clips.input, "length": np.arange(ROWS, dtype=np.int32)})


def seen(variables) -> np.ndarray:
    """Return the numbers of the rows of each epoch, by clip, by length and by label."""
    found = np.asarray(variables["seen"]).transpose(1, 0, 2).reshape(3, EPOCHS, -1)
    return np.stack([[row[row >= 0] for row in epochs] for epochs in found])


@pytest.fixture(scope="module")
def expected(model, tree) -> np.ndarray:
    found = seen(loop.run(KEY, Recorder(), model, {}, tree, prepare="step").variables)
    for by in found:
        assert [sorted(epoch) for epoch in by] == [[n for n in range(ROWS) if n != 4]] * EPOCHS
    assert (found == found[:1]).all()  # a row keeps what belongs to it
    assert (found[0, 0] != found[0, 1]).any()
    return found


@pytest.mark.parametrize("options", [{"prepare": "epoch"}, {"mesh": 4}], ids=["prepared", "mesh"])
def test_a_resident_split_may_be_a_tree(expected, model, tree, options):
    mesh = sharding.batch_mesh(options.pop("mesh", 1), 8)
    result = loop.run(KEY, Recorder(), model, {}, tree, mesh=mesh, **options)
    np.testing.assert_array_equal(seen(result.variables), expected)


def test_points_of_a_group_may_have_trees(expected, model, tree):
    split = loop.valid_rows(tree)
    points = [group.Point(key, Recorder(), {}, split) for key in (jax.random.key(1), KEY)]
    results = [
        out.result(point, model)
        for out, point in zip(group.run(points, model), points, strict=True)
    ]
    np.testing.assert_array_equal(seen(results[1].variables), expected)
    assert (seen(results[0].variables) != expected).any()


def test_clips_with_several_labels_are_streamed(expected, model, clips):
    pytest.importorskip("grain")
    split = clips._replace(input=Stream(clips.input))
    for mesh in (None, sharding.batch_mesh(4, 8)):
        result = streamed.run(KEY, Recorder(), model, {}, split, mesh=mesh)
        np.testing.assert_array_equal(seen(result.variables), expected)


def test_there_are_three_feeders(model, tree, clips):
    learner, split = Recorder(), loop.valid_rows(tree)
    made = [
        Resident(KEY, learner, model, {}, tree),
        streamed.Streamed(KEY, learner, model, {}, clips._replace(input=Stream(clips.input))),
        Grouped([group.Point(KEY, learner, {}, split)], model),
    ]
    assert all(isinstance(feeder, Feeder) for feeder in made)
    resident, stream, several = (jax.tree.map(lambda x: x.shape, feeder.like()) for feeder in made)
    assert (
        resident
        == stream
        == jax.tree.map(lambda x: x[1:], several, is_leaf=lambda x: isinstance(x, tuple))
    )
