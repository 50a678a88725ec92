"""What every gradient transformation of `bdjax.optim` owes to optax and to its user; the set-ups walk the folder."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdjax import optim, registry
from bdjax.checks import InputError
from bdjax.optim import Schedule, Sgd, schedules
from bdjax.optim.amsgrad import scale_by_amsgrad


class Setup(NamedTuple):
    """How to make a transformation out of one traced float, and what is known of it."""

    make: Callable[..., optax.GradientTransformation]
    values: tuple[float, float]  # of the float; another one should change the result of three steps
    needs_params: bool = True
    descends: bool = True  # or only changes the gradient


PARAMS = {"a": np.array([[1.0, -0.5], [0.25, 2.0]]), "b": np.array([-1.0])}
IMPORTANCE = {name: np.square(x) for name, x in PARAMS.items()}

SETUPS = {
    "sam": Setup(lambda rho: optim.sam(rho), (0.5, 2.0), descends=False),
    "sam.adaptive": Setup(lambda rho: optim.sam(rho, adaptive=True), (0.5, 2.0), descends=False),
    "adversarial_noise": Setup(
        lambda epsilon: optim.adversarial_noise(epsilon, steps=2), (0.5, 0.2), descends=False
    ),
    "scale_by_amsgrad": Setup(
        lambda b1: scale_by_amsgrad(b1), (0.9, 0.5), needs_params=False, descends=False
    ),
    "fisher_trace": Setup(
        lambda eta: optim.fisher_trace(eta, every=2), (0.05, 0.02), descends=False
    ),
    "anchor": Setup(lambda eta: optim.anchor(IMPORTANCE, eta), (0.5, 0.2), descends=False),
    "l1_to_one": Setup(lambda eta: optim.l1_to_one(eta), (0.5, 0.2), descends=False),
    "project": Setup(
        lambda low: optax.chain(optax.sgd(0.05), optim.project(low, 1.75)), (0.5, 0.3)
    ),
    "reduce_on_plateau": Setup(
        lambda factor: schedules.reduce_on_plateau(1, factor=factor, patience=0, threshold=0.9),
        (0.1, 0.5),
        needs_params=False,
        descends=False,
    ),
    "Sgd.transformation": Setup(
        lambda rate: Sgd(rate, weight_decay=0.01).transformation(2), (0.05, 0.02)
    ),
    "Sgd.transformation.cosine": Setup(
        lambda period: Sgd(0.05, schedule=Schedule(kind="cosine", period=period)).transformation(1),
        (50.0, 30.0),
    ),
    "Sgd.transformation.step": Setup(
        lambda factor: Sgd(
            0.05, schedule=Schedule(kind="step", period=2.0, factor=factor)
        ).transformation(1),
        (0.9, 0.8),
    ),
    "Sgd.transformation.plateau": Setup(
        lambda rate: Sgd(rate, schedule=Schedule(kind="plateau")).transformation(1), (0.05, 0.02)
    ),
}


def transformations() -> Iterator[str]:
    """The names of all public functions and methods of the folder that return a gradient transformation."""
    for name in registry.names("bdjax.optim"):
        module = importlib.import_module(f"bdjax.optim.{name}")
        for thing in vars(module).values():
            if getattr(thing, "__module__", None) != module.__name__ or thing.__name__.startswith(
                "_"
            ):
                continue
            members = (
                [thing]
                if inspect.isfunction(thing)
                else [f for f in vars(thing).values() if callable(f)]
            )
            for function in members:
                if "GradientTransformation" in str(
                    getattr(function, "__annotations__", {}).get("return")
                ):
                    yield function.__qualname__


def test_every_transformation_has_a_setup():
    found = set(transformations())
    assert found == {
        ".".join(name.split(".")[: 2 if name.startswith("Sgd") else 1]) for name in SETUPS
    }
    assert "sam" in found


@pytest.fixture(params=SETUPS)
def setup(request) -> Setup:
    return SETUPS[request.param]


def params_of(dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)


def loss(params):
    return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(params))


def step(setup: Setup, value, params, state):
    tx = setup.make(value)
    now, grads = jax.value_and_grad(loss)(params)
    # optax hands every transformation all extra arguments: those of the others are to be passed over
    extra = {"grad_fn": jax.grad(loss), "value": now.astype(jnp.float32), "of_another": 1.0}
    extra["key"] = jax.random.key(0)
    extra["trace_grad_fn"] = jax.grad(lambda params: jnp.square(loss(params)))
    updates, state = optax.with_extra_args_support(tx).update(grads, state, params, **extra)
    return updates, state


def descend(setup: Setup, value, steps: int):
    params = params_of(jnp.float32)
    state = setup.make(value).init(params)
    for _ in range(steps):
        updates, state = step(setup, value, params, state)
        params = optax.apply_updates(
            params, updates if setup.descends else jax.tree.map(lambda g: -0.05 * g, updates)
        )
    return params


def signature(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False)), tree)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_updates_keep_tree_shape_and_dtype_and_the_state_its_own(setup, dtype):
    params = params_of(dtype)
    before = jax.eval_shape(setup.make(setup.values[0]).init, params)
    updates, after = jax.eval_shape(lambda p, s: step(setup, setup.values[0], p, s), params, before)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), updates) == jax.tree.map(
        lambda x: (x.shape, x.dtype), params
    )
    # Else a loop over steps would compile twice, a scan not at all
    assert signature(after) == signature(before)


def test_jit_is_eager_and_another_float_traces_nothing(setup):
    traces = []

    @jax.jit
    def steps(value):
        traces.append(value)
        return descend(setup, value, 3)

    first, second = (steps(value) for value in setup.values)
    assert len(traces) == 1
    assert all(np.abs(first[name] - second[name]).max() > 1e-6 for name in first)
    for name, expected in descend(setup, setup.values[1], 3).items():
        np.testing.assert_allclose(second[name], expected, rtol=1e-5)


def test_a_map_over_the_float_is_a_loop(setup):
    mapped = jax.jit(jax.vmap(lambda value: descend(setup, value, 3)))(jnp.array(setup.values))
    for row, value in enumerate(setup.values):
        for name, expected in descend(setup, value, 3).items():
            np.testing.assert_allclose(mapped[name][row], expected, rtol=1e-5)


def test_it_descends_or_leaves_the_gradient_a_descent_direction(setup):
    value = setup.values[0]
    assert loss(jax.jit(lambda: descend(setup, value, 20))()) < loss(PARAMS)


def test_update_without_params_is_refused_where_they_are_needed(setup):
    tx, grads = optax.with_extra_args_support(setup.make(setup.values[0])), params_of(jnp.float32)
    extra = {"grad_fn": lambda at: at, "trace_grad_fn": lambda at: at, "value": jnp.zeros(())}
    if not setup.needs_params:
        tx.update(grads, tx.init(grads), **extra)
        return
    with pytest.raises(ValueError, match="params"):
        tx.update(grads, tx.init(grads), **extra)


# --- values that mean nothing ----------------------------------------------------------------------------------------

ONES = {"w": jnp.ones(2)}
# Every number that a public function takes: a call with it, and values of the right type that are out of its range.
NUMBERS: dict[tuple[str, str], tuple[Callable[[Any], Any], tuple[float, ...]]] = {
    ("perturbation", "rho"): (lambda x: optim.perturbation(ONES, ONES, x), (-1.0,)),
    ("sam", "rho"): (lambda x: optim.sam(x), (-1.0, -1e-9)),
    ("adversarial_noise", "epsilon"): (lambda x: optim.adversarial_noise(x), (-1.0,)),
    ("adversarial_noise", "alpha"): (lambda x: optim.adversarial_noise(1.0, alpha=x), (-1.0, 1.5)),
    ("adversarial_noise", "steps"): (lambda x: optim.adversarial_noise(1.0, steps=x), (0, 1.5)),
    ("scale_by_amsgrad", "b1"): (lambda x: scale_by_amsgrad(x), (-0.1, 1.0)),
    ("scale_by_amsgrad", "b2"): (lambda x: scale_by_amsgrad(b2=x), (-0.1, 1.0)),
    ("fisher_trace", "eta"): (lambda x: optim.fisher_trace(x), (-1.0,)),
    ("fisher_trace", "every"): (lambda x: optim.fisher_trace(1.0, x), (0, -3, 2.5)),
    ("anchor", "eta"): (lambda x: optim.anchor(ONES, x), (-1.0,)),
    ("anchor", "evaluations"): (lambda x: optim.anchor(ONES, 1.0, evaluations=x), (-1, 1.5)),
    ("l1_to_one", "eta"): (lambda x: optim.l1_to_one(x), (-1.0,)),
    ("cosine", "period"): (lambda x: schedules.cosine(jnp.int32(1), x), (0.0, -1.0)),
    ("step", "size"): (lambda x: schedules.step(jnp.int32(1), x, 0.1), (0.0, -1.0)),
    ("step", "factor"): (lambda x: schedules.step(jnp.int32(1), 1.0, x), (0.0, -1.0)),
    ("reduce_on_plateau", "steps_per_epoch"): (lambda x: schedules.reduce_on_plateau(x), (0, 1.5)),
    ("reduce_on_plateau", "factor"): (
        lambda x: schedules.reduce_on_plateau(1, factor=x),
        (0.0, -1.0),
    ),
    ("reduce_on_plateau", "patience"): (
        lambda x: schedules.reduce_on_plateau(1, patience=x),
        (-1, 1.5),
    ),
    ("reduce_on_plateau", "threshold"): (
        lambda x: schedules.reduce_on_plateau(1, threshold=x),
        (-0.1, 1.0),
    ),
    ("Sgd.transformation", "learning_rate"): (lambda x: Sgd(x).transformation(1), (-1.0,)),
    ("Sgd.transformation", "momentum"): (
        lambda x: Sgd(0.1, momentum=x).transformation(1),
        (-0.1, 1.0),
    ),
    ("Sgd.transformation", "weight_decay"): (
        lambda x: Sgd(0.1, weight_decay=x).transformation(1),
        (-1.0,),
    ),
    ("Sgd.transformation", "steps_per_epoch"): (lambda x: Sgd(0.1).transformation(x), (0, 1.5)),
}
NO_NUMBERS = (float("nan"), float("inf"), "1", None, True, [0.5], 1j, np.array([0.5, np.nan]))


def test_every_number_of_the_folder_is_in_the_list():
    """By the annotations, so that a new function or argument is tested or fails here."""
    numbers = re.compile(r"\b(HParam|float|int|Int\[.*\])")
    found = set()
    for name in set(registry.names("bdjax.optim")) - {"pgd"}:  # whose numbers are its caller's
        module = importlib.import_module(f"bdjax.optim.{name}")
        for function in vars(module).values():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                for option, annotation in function.__annotations__.items():
                    if not function.__name__.startswith("_") and option not in ("return", "count"):
                        found |= (
                            {(function.__name__, option)}
                            if numbers.match(str(annotation))
                            else set()
                        )
    assert found == {key for key in NUMBERS if not key[0].startswith("Sgd")}


@pytest.mark.parametrize(("function", "option"), NUMBERS)
def test_a_number_that_means_nothing_is_refused_where_it_is_given(function, option, monkeypatch):
    # Users have no run-time type checks
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    call, out_of_range = NUMBERS[function, option]
    for value in (*NO_NUMBERS, *out_of_range, *(np.asarray(value) for value in out_of_range)):
        with pytest.raises(InputError, match=rf"^{option} must .*, got "):
            call(value)


@pytest.mark.parametrize(("function", "option"), NUMBERS)
def test_a_traced_number_is_let_through(function, option):
    call, _ = NUMBERS[function, option]
    # Which are compiled in
    if (function, option) in (("reduce_on_plateau", "patience"), ("adversarial_noise", "steps")):
        return
    kind = jnp.int32 if option in ("every", "steps_per_epoch", "evaluations") else jnp.float32

    def traced(value):
        made = call(value)
        return made if isinstance(made, jax.Array | dict) else made.init(ONES)

    jax.eval_shape(traced, jax.ShapeDtypeStruct((), kind))
    # And one that is an array, with a value to check
    call(kind(1) if kind is jnp.int32 else kind(0.5))


@given(rho=st.floats(allow_nan=True, allow_infinity=True, width=32))
def test_any_radius_is_taken_or_refused(rho):
    if np.isfinite(rho) and rho >= 0:
        optim.sam(rho).init(ONES)
    else:
        with pytest.raises(InputError, match="rho must be"):
            optim.sam(rho)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optim.project(1.0, 0.5), "lower must be at most upper, got 1.0 and 0.5"),
        (lambda: optim.project(float("nan"), 1.0), "lower must be a number, got nan"),
        (
            lambda: optim.project(0.0, {"w": np.array([1.0, np.nan])}),
            "upper must be a number, got nan",
        ),
        (lambda: optim.project(None, 1.0), "lower must be a number, got None"),
        (
            lambda: optim.anchor({"v": jnp.ones(2)}, 1.0).init(ONES),
            "importance must be a tree like params",
        ),
        (
            lambda: optim.anchor({"w": jnp.ones(3)}, 1.0).init(ONES),
            r"importance\['w'\] must have the shape \(2,\)",
        ),
        (
            lambda: optim.anchor({"w": -jnp.ones(2)}, 1.0),
            "importance must be finite and 0 or more everywhere",
        ),
    ],
)
def test_bounds_and_trees_that_mean_nothing_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
    optim.project(-jnp.inf, {"w": np.array([np.inf, 1.0])})  # no bound at all
