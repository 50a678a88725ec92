"""CLP: the bound by hand, which filter comes before which batch norm, and what is zeroed."""

from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import networks
import numpy as np
import planted
import pytest
from quick import quick_jit

from bdjax import defenses, models, structure
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.defenses import clp
from bdjax.defenses._preceding import NONE, preceding_filters
from bdjax.models._layers import BatchNorm, Dense, LinenModel, conv

KEY = jax.random.key(0)
SPEC = image_spec("clp", (8, 8, 2), 3, (0.5, 0.4), (0.25, 0.2))
WIDTH = 16  # of which one can be an outlier of three deviations


class Network(nn.Module):
    """A layer of one's own before a classifier."""

    body: str

    @nn.compact
    def __call__(self, x, *, train: bool, valid=None):
        norm = functools.partial(BatchNorm, parent=self)
        x = getattr(self, self.body)(
            x, lambda name, y: norm(name=name)(y, train=train, valid=valid)
        )
        return Dense(3, name="classifier")(x.mean((1, 2)))

    def plain(self, x, norm):
        return nn.relu(norm("norm", conv(WIDTH, 3, name="conv")(x)))

    def late_shortcut(self, x, norm):
        """Read before the other branch is, which is the first to be read in the alphabet."""
        shortcut = conv(4, 1, name="z")(x)
        return norm("norm", shortcut + conv(4, 3, name="a")(nn.relu(conv(4, 3, name="b")(x))))

    def side_by_side(self, x, norm):
        """Both filters first, and then both norms."""
        first, second = conv(4, 3, name="first")(x), conv(4, 1, name="second")(x)
        return norm("of_first", first) + norm("of_second", second)

    def joined(self, x, norm):
        """Maps of a pooled filter, of a normalized one and of a grouped one."""
        first = nn.avg_pool(nn.relu(conv(4, 3, name="first")(x)), (2, 2), (2, 2))
        second = norm("second_norm", conv(3, 3, stride=2, name="second")(x))
        third = conv(4, 3, stride=2, groups=2, name="third")(x)
        return norm("norm", jnp.concatenate([first, second, third], -1))

    def depthwise(self, x, norm):
        return norm("norm", nn.relu(conv(2, 3, groups=2, name="conv")(x)))

    def turned(self, x, norm):
        """As many channels as columns, in one another's place."""
        return norm("norm", conv(8, 3, name="conv")(x).swapaxes(2, 3))

    def gated(self, x, norm):
        """By one number a channel, made by a later filter."""
        y = conv(4, 3, name="first")(x)
        return norm("norm", y * nn.sigmoid(Dense(4, name="gate")(y.mean((1, 2))))[:, None, None])

    def of_image(self, x, norm):
        return norm("norm", x)

    def pooled(self, x, norm):
        """Dense layers have filters too."""
        return norm("norm", Dense(4, name="hidden")(x.mean((1, 2))))[:, None, None]


def made(body: str):
    model = LinenModel(Network(body), SPEC)
    return model, networks.random_variables(model)


def taken(model, variables) -> dict[str, list[str]]:
    """Return of each norm, by name, which filter each channel comes from."""
    before = preceding_filters(model, variables)
    params = structure.flat(variables["params"])
    names: list[str] = []
    for path in before.kernels:
        names += [f"{'/'.join(path[:-1])} {number}" for number in range(params[path].shape[-1])]
    names.append("")  # at the place of `NONE`
    assert NONE == -1
    return {
        "/".join(path[:-1]): [names[number] for number in numbers]
        for path, numbers in before.channels.items()
    }


def of(name: str, count: int) -> list[str]:
    return [f"{name} {number}" for number in range(count)]


BEFORE = {
    "plain": {"norm": of("conv", WIDTH)},
    "late_shortcut": {"norm": of("a", 4)},
    "side_by_side": {"of_first": of("first", 4), "of_second": of("second", 4)},
    "joined": {
        "second_norm": of("second", 3),
        "norm": [*of("first", 4), *[""] * 3, *of("third", 4)],
    },
    "depthwise": {"norm": of("conv", 2)},
    "turned": {"norm": [""] * 8},
    "gated": {"norm": of("first", 4)},
    "of_image": {"norm": [""] * 2},
    "pooled": {"norm": of("hidden", 4)},
}


@pytest.mark.parametrize("body", BEFORE)
def test_each_channel_has_the_filter_that_puts_it_out(body):
    model = LinenModel(Network(body), SPEC)
    assert taken(model, jax.eval_shape(model.init, KEY)) == BEFORE[body]


def test_of_preact_resnet18_it_is_never_the_shortcut():
    """In execution order, where the order of registration has the shortcut before three of its batch norms."""
    model = models.create("preact_resnet18", SPEC, width=2)
    found = taken(model, jax.eval_shape(model.init, KEY))
    names = {norm: filters[0].split()[0] for norm, filters in found.items()}
    assert len(names) == 16
    assert names["layer1_0/bn1"] == "conv1"
    for stage in range(1, 5):
        for block in range(2):
            assert names[f"layer{stage}_{block}/bn2"] == f"layer{stage}_{block}/conv1"
        assert names[f"layer{stage}_1/bn1"] == f"layer{stage}_0/conv2"
        if stage > 1:
            assert names[f"layer{stage}_0/bn1"] == f"layer{stage - 1}_1/conv2"


def test_a_program_that_is_called_twice_is_read_twice():
    """A rectifier is one compiled program, whose variables are those of each call."""
    model = LinenModel(planted.Net(widths=(4, 6, 4), norm=True), planted.SPEC)
    assert taken(model, jax.eval_shape(model.init, KEY)) == {
        f"bn{number}": of(f"conv{number}", width) for number, width in [(1, 4), (2, 6), (3, 4)]
    }


# --- the bound -------------------------------------------------------------------------------------------------------


SHAPES = [(3, 3, 5, 7), (1, 1, 6, 4), (7, 7, 2, 3), (2, 2, 2, 3, 4), (5, 3), (2, 2, 2, 1)]


@pytest.fixture(scope="module")
def spectral_norms():
    return quick_jit(lambda kernels: list(map(clp.spectral_norms, kernels)))


@pytest.mark.parametrize("factor", [1, 1e-25, 0])
def test_it_is_the_largest_singular_value_of_each_filter(spectral_norms, factor):
    """Also of what weight decay left of a filter, whose square is 0."""
    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=shape).astype(np.float32) for shape in SHAPES]
    got = spectral_norms([np.float32(factor) * kernel for kernel in kernels])
    for kernel, norms in zip(kernels, got, strict=True):
        filters = np.moveaxis(kernel.reshape(-1, *kernel.shape[-2:]), -1, 0)
        expected = factor * np.linalg.svd(filters, compute_uv=False)[:, 0]
        np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_it_is_o13_of_1_to_8(spectral_norms):
    """As a matrix of two channels by four places; with γ = 2 and a variance of 4, the bound is the norm."""
    kernel = np.arange(1, 9, dtype=np.float32).reshape(2, 4).T.reshape(2, 2, 2, 1)
    kernels = [np.zeros(shape, np.float32) for shape in SHAPES[:-1]]
    np.testing.assert_allclose(spectral_norms([*kernels, kernel])[-1], [14.22740741], rtol=1e-6)


@functools.cache
def update_of(model):
    """Return CLP's only step, compiled once for every u."""

    def update(u, variables):
        learner = defenses.create("clp").learner
        learner = dataclasses.replace(learner, u=u)
        return learner.update(KEY, model, variables, None)[0]  # pyright: ignore

    return quick_jit(update)


def by_hand(variables, u: float):
    """Return which channels of the plain network are outliers, in NumPy."""
    params = jax.tree.map(np.asarray, variables["params"])
    rows = params["conv"]["kernel"].reshape(9, 2, WIDTH)
    norms = np.array([np.linalg.norm(rows[..., k], 2) for k in range(WIDTH)])
    variance = np.asarray(variables["batch_stats"]["norm"]["var"])
    bounds = norms * np.abs(params["norm"]["scale"]) / np.sqrt(variance)
    return bounds > bounds.mean() + u * bounds.std(ddof=1)


@pytest.mark.parametrize("u", [0.0, 1.0, 3.0, 5.0])
def test_outliers_lose_scale_and_shift_and_nothing_else_changes(u):
    """Behavioral test 8. A negative scale counts by its size."""
    model, variables = made("plain")
    kernel = variables["params"]["conv"]["kernel"].at[..., 3].multiply(8)
    variables["params"]["conv"]["kernel"] = kernel
    variables["params"]["norm"]["scale"] = variables["params"]["norm"]["scale"].at[3].multiply(-1)
    expected = by_hand(variables, u)
    assert (expected.sum() == 0) == (u == 5.0)
    assert u != 3.0 or list(np.flatnonzero(expected)) == [3]
    result = update_of(model)(u, variables)
    for part in ("scale", "bias"):
        was = np.asarray(variables["params"]["norm"].pop(part))
        assert np.array_equal(result["params"]["norm"].pop(part), np.where(expected, 0, was))
    jax.tree.map(np.testing.assert_array_equal, result, variables)


@pytest.fixture(scope="module")
def outliers():
    """Return which of a few bounds are outliers, in one program: NaN fills them up to eleven."""
    outlying = quick_jit(clp.outlying)

    def found(bounds, u):
        filled = np.full(11, np.nan, np.float32)
        filled[: len(bounds)] = bounds
        return np.flatnonzero(outlying(filled, np.float32(u))).tolist()

    return found


def test_the_threshold_is_that_of_a_sample(outliers):
    """O13: mean 1.8 and deviation 1.788854. And ten channels have no outlier of three deviations, eleven have."""
    bounds = [1, 1, 1, 1, 5]
    assert outliers(bounds, 1.788) == [4]
    assert outliers(bounds, 1.789) == []
    assert outliers([1] + [0] * 9, 3.0) == []
    assert outliers([1] + [0] * 10, 3.0) == [0]


def test_what_has_no_filter_is_neither_counted_nor_pruned(outliers):
    assert outliers([1, 1, np.nan, 1, 1, 5], 1.788) == [5]
    assert outliers([], 0.0) == []
    assert outliers([2.0], 0.0) == []


def test_a_variance_of_zero_hides_no_outlier():
    model, variables = made("plain")
    variables["params"]["conv"]["kernel"] = (
        variables["params"]["conv"]["kernel"].at[..., 3].multiply(8).at[..., 5].set(0)
    )
    statistics = variables["batch_stats"]["norm"]
    statistics["var"] = statistics["var"].at[5].set(0)
    result = update_of(model)(3.0, variables)
    assert np.flatnonzero(result["params"]["norm"]["scale"] == 0).tolist() == [3]


def test_without_batch_norm_filters_go_with_their_biases():
    model = networks.plain()
    variables = networks.random_variables(model)
    variables["params"]["deeper"]["kernel"] = (
        variables["params"]["deeper"]["kernel"].at[..., 1].multiply(10)
    )
    result = update_of(model)(1.4, variables)
    for part in ("kernel", "bias"):
        was = np.asarray(variables["params"]["deeper"].pop(part))
        kept = np.arange(4) != 1
        assert np.array_equal(result["params"]["deeper"].pop(part), np.where(kept, was, 0))
    jax.tree.map(np.testing.assert_array_equal, result, variables)


class Unscaled(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool, valid=None):
        x = nn.BatchNorm(not train, use_scale=False)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(3)(x.mean((1, 2)))


class Classifier(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.mean((1, 2)))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Unscaled(), r"the network's batch norms must have scales \(use_scale=True\)"),
        (Network("of_image"), "and take in what a kernel puts out"),
        (Classifier(), "the network must have a layer before its classifier"),
    ],
)
def test_a_network_that_has_nothing_to_bound_is_refused(module, words):
    model = LinenModel(module, SPEC)
    with pytest.raises(InputError, match=words):
        jax.eval_shape(
            functools.partial(clp.lipschitz_bounds, model), jax.eval_shape(model.init, KEY)
        )


def test_a_planted_neuron_is_found_when_its_kernel_is_loud():
    """Behavioral test 7: it fires on the white patch alone, hears it five times as loud, and is gone."""
    start = planted.variables()
    kernel, bias = start["params"]["conv1"]["kernel"], start["params"]["conv1"]["bias"]
    start["params"]["conv1"] = {
        "kernel": kernel.at[..., 0].multiply(5),
        "bias": bias.at[0].multiply(5),
    }
    result = update_of(planted.MODEL)(1.4, start)
    assert planted.rates(start) == (1.0, 1.0)
    assert planted.rates(result) == (1.0, 0.0)


def test_no_image_is_asked_for():
    assert defenses.sees("clp") == ("nothing",)
