"""One run over eight virtual devices gives what one device gives."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bdjax import defenses
from bdjax.checks import InputError
from bdjax.data import splits
from bdjax.devices import sharding
from bdjax.train import loop
from bdjax.train.checkpoints import Checkpoints

KEY = jax.random.key(0)
DEVICES = 8


@pytest.fixture(scope="module")
def mesh():
    return sharding.batch_mesh(DEVICES, 32)


@pytest.fixture(scope="module", params=["ft", "ft_sam"])
def learner(request):
    """Supervised learning with and without a second gradient, and with draws that ask how many rows a batch has."""
    augment = {"ft": "standard", "ft_sam": "mixup"}[request.param]
    return defenses.create(request.param, epochs=3, batch_size=32, augment=augment).learner


@pytest.fixture(scope="module")
def odd(split):
    """45 rows: a batch of 23 and one of 22, neither of which eight devices divide."""
    return splits.take(split, np.arange(45))


@pytest.fixture(scope="module")
def spread(learner, model, variables, odd, mesh) -> loop.Result:
    return loop.run(KEY, learner, model, variables, odd, mesh=mesh)


def test_eight_devices_give_the_result_of_one(spread, learner, model, variables, odd):
    """Batch statistics are those of the whole batch: with three rows a device they would be far off."""
    one = loop.run(KEY, learner, model, variables, odd)
    for got, expected in zip(
        *(jax.tree.leaves(result.variables) for result in (spread, one)), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4)
    assert [row.loss for row in spread.history] == pytest.approx(
        [row.loss for row in one.history], rel=1e-4
    )


def test_the_result_is_whole_on_every_device(spread):
    for leaf in jax.tree.leaves(spread.variables):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.devices()) == DEVICES


def test_each_device_gets_its_share_of_a_batch(split, mesh):
    batch = split._replace(valid=None)
    image, label, valid = jax.jit(lambda batch: sharding.split_batch(batch, mesh))(batch)
    assert {shard.data.shape for shard in image.addressable_shards} == {(48 // DEVICES, 8, 8, 3)}
    assert {shard.data.shape for shard in label.addressable_shards} == {(48 // DEVICES,)}
    assert valid is None
    np.testing.assert_array_equal(image, split.input)


def test_one_host_works_on_all_rows_of_a_batch(mesh):
    assert sharding.rows_here(None, 32) == sharding.rows_here(mesh, 32) == slice(0, 32)


@pytest.mark.parametrize("rows", [45, 5])
def test_a_batch_that_the_devices_do_not_divide_is_divided_all_the_same(split, mesh, rows):
    """No device works on more than its share, and no sum counts what the compiler pads."""
    few = splits.take(split, np.arange(rows))

    def total(batch):
        image = sharding.split_batch(batch._replace(valid=None), mesh).input.astype(np.float32)
        return (image * image).sum((1, 2, 3)).sum()

    compiled = jax.jit(total).lower(few).compile()
    assert f"f32[{-(-rows // DEVICES)},8,8,3]" in compiled.as_text()
    assert compiled(few) == pytest.approx((few.input.astype(float) ** 2).sum(), rel=1e-5)


def test_rows_that_make_the_shares_equal(mesh):
    assert [sharding.even(mesh, size) for size in (1, 8, 23)] == [8, 8, 24]
    assert sharding.even(None, 23) == 23


def test_only_the_first_epoch_compiles(spread):
    assert [row.compile_seconds for row in spread.history[1:]] == [0.0, 0.0]


def test_a_continued_run_is_bit_identical(spread, learner, model, variables, odd, mesh, tmp_path):
    def feed(**options):
        checkpoints = Checkpoints(tmp_path, every=0.0)
        try:
            return loop.run(
                KEY, learner, model, variables, odd, checkpoints=checkpoints, mesh=mesh, **options
            )
        finally:
            checkpoints.close()

    with pytest.raises(loop.Stopped):
        feed(should_stop=lambda: True)
    continued = feed()
    assert [row.compile_seconds for row in continued.history[1:]] == [0.0, 0.0]
    for got, expected in zip(
        *(jax.tree.leaves(result.variables) for result in (continued, spread)), strict=True
    ):
        np.testing.assert_array_equal(got, expected)
        assert got.sharding.is_fully_replicated


def test_one_device_needs_no_mesh():
    assert sharding.batch_mesh(1, 7) is None


def test_a_mesh_of_some_devices():
    mesh = sharding.batch_mesh(2, 6)
    assert mesh is not None
    assert list(mesh.devices.flat) == jax.devices()[:2]


@pytest.mark.parametrize(
    ("devices", "batch_size", "words"),
    [
        (9, 18, "devices must be at most 8, the number of devices here; got 9"),
        (8, 20, "batch_size must be a multiple of devices = 8; got 20"),
    ],
)
def test_what_does_not_fit_is_refused(devices, batch_size, words):
    with pytest.raises(InputError, match=words):
        sharding.batch_mesh(devices, batch_size)
