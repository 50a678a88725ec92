"""What every data set and its task keep to. The folder is the list: a new file is tested as soon as it is there."""

from __future__ import annotations

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import data, registry
from bdjax.checks import InputError
from bdjax.data.sources import _dataset
from bdjax.poison import poison_test
from bdjax.runs import config, schema
from bdjax.tasks import metrics
from bdjax.types import Dataset, Modality, PoisonedSplit, Split, Task

ROWS = 8  # on which methods are tried


@pytest.fixture(params=data.names())
def name(request) -> str:
    return request.param


@functools.cache
def load(name: str) -> Dataset:
    if not data.is_ready(name):
        pytest.skip("it has to be downloaded")
    return data.load(name)


def outputs(dataset: Dataset, seed: int = 0) -> jax.Array:
    logits = np.random.default_rng(seed).normal(size=(ROWS, dataset.spec.num_classes))
    return jnp.asarray(logits, jnp.float32)


def some(dataset: Dataset) -> Split:
    return Split(*(jnp.asarray(array[:ROWS]) for array in dataset.test))


# --- the data --------------------------------------------------------------------------------------------------------


def test_it_is_a_data_set_of_its_name(name):
    dataset = load(name)
    assert isinstance(dataset, Dataset)
    assert dataset.spec.name == name
    assert hash(dataset.spec) == hash(load(name).spec)
    assert isinstance(dataset.spec.modality, Modality)
    assert isinstance(dataset.spec.task, Task)
    assert len(dataset.spec.class_names) in (0, dataset.spec.num_classes)


def test_its_arrays_are_what_its_specification_says(name):
    dataset = load(name)
    _dataset.check(name, dataset)
    for split in (dataset.train, dataset.test):
        assert split.input.dtype == np.uint8
        assert split.label.dtype in (np.int32, bool)
        assert split.valid.dtype == bool
        assert np.asarray(split.valid).all()
        assert len(split.label) > ROWS
        worked_on = dataset.spec.modality.load(jnp.asarray(split.input[:ROWS]))
        normalized = dataset.spec.modality.normalize(worked_on)
        assert normalized.shape == worked_on.shape
        assert np.isfinite(normalized).all()


def test_it_is_the_same_each_time(name):
    load(name)
    assert data.fingerprint(data.load(name)) == data.fingerprint(load(name))


def test_what_suits_it_is_a_config_and_its_docstring_one_sentence_at_least(name):
    resolved = config.resolve({"data": name})
    for section, values in data.defaults(name).items():
        assert set(values) <= set(schema.merge({}, resolved.to_dict())[section]), section
    assert (inspect.getdoc(registry.factory("bdjax.data.sources", name)) or "").count(".") >= 1


# --- its task --------------------------------------------------------------------------------------------------------


def test_its_metrics_have_the_roles_that_are_needed_and_what_they_are_made_of(name):
    task = load(name).spec.task
    assert {metric.role for metric in task.metrics} >= set(metrics.NEEDED)
    assert {metric.role for metric in task.metrics} <= set(metrics.ROLES)
    assert len(set(metrics.names(task.metrics))) == len(task.metrics)
    assert metrics.described(metric.plain() for metric in task.metrics) == task.metrics


def test_losses_are_finite_for_each_row_and_compile(name):
    dataset, label = load(name), some(load(name)).label
    task = dataset.spec.task
    for loss in (task.loss, task.negative_log_likelihood):
        assert loss(outputs(dataset), label).shape == (ROWS,)
        slope = jax.jit(jax.grad(lambda x, loss=loss: loss(x, label).sum()))(outputs(dataset))
        assert np.isfinite(slope).all()
    assert np.isfinite(task.loss(outputs(dataset), label, 0.1)).all()


def test_answers_are_judged_between_0_and_1_and_groups_are_counted(name):
    dataset, split = load(name), some(load(name))
    task = dataset.spec.task
    answer = task.answer(outputs(dataset))
    right = np.asarray(task.correct(answer, split.label), float)
    assert right.shape == (ROWS,)
    assert ((right >= 0) & (right <= 1)).all()
    hit = task.hit(answer, split.label, split.label)
    assert (hit.shape, hit.dtype) == ((ROWS,), bool)
    assert len(task.shown(np.asarray(answer))) == len(task.shown(np.asarray(split.label))) == ROWS
    group = np.asarray(task.stratum(split.label))
    assert group.shape == (ROWS,)
    assert ((group >= 0) & (group < task.strata)).all()


def test_counts_have_every_metric_in_range_and_leave_out_rows_that_are_not_valid(name):
    dataset, clean = load(name), some(load(name))
    task = dataset.spec.task
    attack = config.build_attack(config.resolve({"data": name}), dataset.spec)
    triggered = poison_test(
        jax.random.key(0), attack, attack.trigger.init(jax.random.key(0), dataset.spec), clean
    )
    first, second = (task.answer(outputs(dataset, seed)) for seed in (0, 1))

    def counted(clean: Split, triggered: PoisonedSplit):
        return jax.jit(task.count)(first, second, clean, triggered)

    values = counted(clean, triggered)
    for metric in task.metrics:
        if metric.role != metrics.RATING:
            assert 0 <= float(getattr(values, metric.name)) <= 1
        if metric.part:
            rate = getattr(values, metric.part) / getattr(values, metric.total)
            assert float(getattr(values, metric.name)) == pytest.approx(float(rate))
    assert set(metrics.totals(task.metrics)) <= set(values._fields)

    kept = jnp.arange(ROWS) < ROWS // 2
    fewer = clean._replace(valid=clean.valid & kept)
    visible = triggered.visible._replace(valid=triggered.visible.valid & kept)
    half = counted(fewer, triggered._replace(visible=visible))
    assert int(half.clean_total) == ROWS // 2
    assert int(half.attack_total) == int(visible.valid.sum())


def test_a_guess_is_said_of_its_metrics_only(name):
    task, label = load(name).spec.task, np.asarray(load(name).test.label)
    chance = task.chance(label)
    assert set(chance) <= set(metrics.names(task.metrics))
    assert all(0 <= share <= 1 for share in chance.values())
    utility = metrics.first(task.metrics, metrics.UTILITY).name
    if utility != metrics.first(metrics.SINGLE_LABEL, metrics.UTILITY).name:
        assert utility in chance  # which the number of classes does not say


# --- what is refused -------------------------------------------------------------------------------------------------


def arrays(**changed: np.ndarray) -> _dataset.Arrays:
    image, label = np.zeros((6, 4, 4, 1), np.uint8), np.arange(6, dtype=np.int32) % 2
    return _dataset.Arrays(**{**_dataset.Arrays(image, label, image, label)._asdict(), **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_image": np.zeros((6, 4, 4, 1))}, "mine: train_image must be uint8 .n, h, w, c., got float64"),
        ({"test_image": np.zeros((6, 4, 4), np.uint8)}, r"test_image must be uint8 .*of shape \(6, 4, 4\)"),
        ({"test_image": np.zeros((6, 5, 4, 1), np.uint8)}, r"shape \(4, 4, 1\), got \(5, 4, 1\) in its test"),
        ({"train_label": np.arange(5)}, r"as many inputs as labels and marks in its train split, got \(6, 5, 5\)"),
        ({"train_label": np.arange(6)}, "labels that are numbers from 0 to 1, got int64 .* from 0 to 5"),
        ({"test_label": np.zeros(6)}, "labels that are numbers from 0 to 1, got float64"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(changed, message):
    with pytest.raises(InputError, match=message):
        _dataset.check("mine", _dataset.build("mine", arrays(**changed), ("a", "b")))


def test_what_is_no_data_set_is_refused():
    with pytest.raises(InputError, match=r"what mine returns must be a bdjax\.types\.Dataset, got"):
        _dataset.check("mine", None)  # pyright: ignore
    scenes = data.load("digits_scenes")
    wrong = scenes._replace(test=scenes.test._replace(label=np.zeros(500, np.int32)))  # pyright: ignore
    with pytest.raises(InputError, match=r"labels that are bools \[n, 10\], got int32"):
        _dataset.check("digits_scenes", wrong)
