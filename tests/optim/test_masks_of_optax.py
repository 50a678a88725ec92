"""Parameters that are left out: the masks of `bdjax.optim`, and optax's own wrappers around its transformations."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bdjax import optim
from bdjax.checks import InputError

PARAMS = {"a": jnp.array([1.0]), "b": jnp.array([2.0])}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
ONLY_A, ONLY_B = {"a": True, "b": False}, {"a": False, "b": True}


def bowl(params):
    """½(a² + 3b²); its gradient is (a, 3b), which is (1, 6) at the start."""
    return 0.5 * jnp.sum(params["a"] ** 2) + 1.5 * jnp.sum(params["b"] ** 2)


def quartic(params):
    """A stand-in for the Fisher trace: a⁴ + b⁴, with the gradient (4, 32) at the start."""
    return jnp.sum(params["a"] ** 4) + jnp.sum(params["b"] ** 4)


def updated(tx, params=None, start=None):
    params = PARAMS if params is None else params
    grads, extra = (
        jax.grad(bowl)(params),
        {"grad_fn": jax.grad(bowl), "trace_grad_fn": jax.grad(quartic)},
    )
    updates, _ = optax.with_extra_args_support(tx).update(
        grads, tx.init(params if start is None else start), params, **extra
    )
    return {name: float(x[0]) for name, x in updates.items()}


# --- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "adaptive", "expected"),
    [
        (ONLY_A, False, (1.5, 6)),  # ε = (½, 0)
        (ONLY_B, False, (1, 7.5)),
        (ONLY_B, True, (1, 9)),  # ε = ½ · 4 · 6 / (2 · 6) = 1
        (
            lambda params: {name: x[0] < 1.5 for name, x in {"a": [1], "b": [2]}.items()},
            False,
            (1.5, 6),
        ),
        (
            lambda params: jax.tree.map_with_path(lambda path, x: path[-1].key == "b", params),
            False,
            (1, 7.5),
        ),
    ],
)
def test_sam_perturbs_what_the_mask_says_over_a_norm_of_its_own(mask, adaptive, expected):
    assert tuple(updated(optim.sam(0.5, adaptive=adaptive, mask=mask)).values()) == pytest.approx(
        expected
    )
    jitted = jax.jit(lambda params: optim.sam(0.5, adaptive=adaptive, mask=mask).update(
        jax.grad(bowl)(params), optim.sam(0.5).init(params), params, grad_fn=jax.grad(bowl)
    )[0])  # fmt: skip
    assert tuple(float(x[0]) for x in jitted(PARAMS).values()) == pytest.approx(expected)


def test_a_mask_may_be_a_prefix_and_a_mask_of_everything_is_none():
    params = {"net": PARAMS, "head": {"c": jnp.array([2.0])}}

    def loss(params):
        return bowl(params["net"]) + bowl({"a": params["head"]["c"], "b": jnp.zeros(1)})

    def step(**options):
        return optim.sam(0.5, **options).update(
            jax.grad(loss)(params), optim.sam(0.5).init(params), params, grad_fn=jax.grad(loss)
        )[0]

    head_only = step(mask={"net": False, "head": True})
    assert head_only["head"]["c"].item() == pytest.approx(2.5)
    assert (head_only["net"]["a"].item(), head_only["net"]["b"].item()) == (1, 6)
    jax.tree.map(np.testing.assert_array_equal, step(mask=True), step())


def test_the_trace_is_added_where_the_mask_says():
    plain, masked = (
        updated(optim.fisher_trace(0.5, every=1, mask=mask)) for mask in (None, ONLY_A)
    )
    assert plain == {"a": 3, "b": 22}
    assert masked == {"a": 3, "b": 6}


@pytest.mark.parametrize(
    "make", [lambda mask: optim.sam(0.5, mask=mask), lambda mask: optim.fisher_trace(1, mask=mask)]
)
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ({"a": True}, "mask must be a tree of booleans like the parameters"),
        ({"a": True, "b": 1}, "mask must be of True and False, got int"),
        ({"a": True, "b": "no"}, "mask must be of True and False, got str"),
        ({"a": False, "b": False}, "mask must be True for some of the parameters"),
        (False, "mask must be True for some of the parameters"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused_before_the_first_step(make, mask, message):
    with pytest.raises(InputError, match=message):
        make(mask).init(PARAMS)


# --- optax.masked and optax.partition --------------------------------------------------------------------------------

WRAPPED = {
    "masked": lambda tx: optax.masked(tx, ONLY_A),
    "partition": lambda tx: optax.partition({"x": tx, "y": optax.identity()}, {"a": "x", "b": "y"}),
    "multi_transform": lambda tx: optax.multi_transform(
        {"x": tx, "y": optax.identity()}, {"a": "x", "b": "y"}
    ),
}


@pytest.fixture(params=WRAPPED)
def wrap(request):
    return WRAPPED[request.param]


@pytest.mark.parametrize(
    ("name", "tx"),
    [
        ("optim.sam", optim.sam(0.5)),
        ("optim.sam", optax.chain(optim.sam(0.5, adaptive=True), optax.sgd(0.1))),
        ("optim.fisher_trace", optim.fisher_trace(0.5)),
    ],
)
def test_what_needs_all_parameters_says_so(wrap, name, tx):
    with pytest.raises(
        InputError, match=rf"{name} needs all parameters.* use {name}\(…, mask=…\) before them"
    ):
        wrap(tx).init(PARAMS)


def test_nothing_is_hidden_where_all_have_the_same_label(wrap):
    everything = optax.partition({"x": optim.sam(0.5)}, {"a": "x", "b": "x"})
    assert (
        updated(everything)
        == updated(optim.sam(0.5))
        == updated(optax.masked(optim.sam(0.5), True))
    )


def test_sam_goes_before_a_partition():
    """The parts get the gradient at the perturbed point, each with a rate of its own."""
    parts = optax.partition({"x": optax.sgd(1.0), "y": optax.sgd(0.1)}, {"a": "x", "b": "y"})
    assert updated(optax.chain(optim.sam(0.5, mask=ONLY_A), parts)) == pytest.approx(
        {"a": -1.5, "b": -0.6}
    )


@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (optim.anchor({"a": jnp.ones(1), "b": jnp.ones(1)}, 2.0), 3),
        (optim.l1_to_one(2.0), 1),  # sign(1 − 1) = 0
        (optim.project(0.0, 1.5), 0.5),  # 1 + 1 is beyond
        (
            optim.project(
                {"a": jnp.zeros(1), "b": jnp.zeros(1)}, {"a": jnp.array([1.25]), "b": jnp.ones(1)}
            ),
            0.25,
        ),
    ],
)
def test_what_sees_each_parameter_alone_works_inside(wrap, tx, expected):
    """The gradient of the other, 6, is left as it is."""
    assert updated(wrap(tx), start=ZEROS) == {"a": pytest.approx(expected), "b": 6}


# --- optax.inject_hyperparams ----------------------------------------------------------------------------------------


def test_the_radius_may_be_injected_changed_and_scheduled():
    tx = optax.inject_hyperparams(optim.sam)(rho=0.5, mask=ONLY_A)
    state = tx.init(PARAMS)

    @jax.jit
    def step(state):
        return tx.update(jax.grad(bowl)(PARAMS), state, PARAMS, grad_fn=jax.grad(bowl))

    updates, state = step(state)
    assert updates["a"].item() == 1.5
    state.hyperparams["rho"] = jnp.float32(2)
    assert step(state)[0]["a"].item() == 3
    with pytest.raises(InputError, match="rho must be 0 or more, got -1"):
        optax.inject_hyperparams(optim.sam)(rho=-1.0).init(PARAMS)

    scheduled = optax.inject_hyperparams(optim.sam)(rho=lambda count: 0.5 * count, mask=ONLY_A)
    state, seen = scheduled.init(PARAMS), []
    for _ in range(3):
        updates, state = scheduled.update(
            jax.grad(bowl)(PARAMS), state, PARAMS, grad_fn=jax.grad(bowl)
        )
        seen.append(updates["a"].item())
    assert seen == [1, 1.5, 2]


@pytest.mark.parametrize(
    ("factory", "options"),
    [
        (optim.sam, {"rho": 0.5, "adaptive": True}),
        (optim.fisher_trace, {"eta": 0.5, "every": 1}),
        (optim.anchor, {"importance": PARAMS, "eta": 2.0}),
        (optim.l1_to_one, {"eta": 2.0}),
        (optim.project, {"lower": 0.0, "upper": 1.5}),
    ],
)
def test_every_transformation_equals_its_injected_twin(factory, options):
    injected = optax.inject_hyperparams(factory)(**options)
    assert updated(injected, start=ZEROS) == pytest.approx(updated(factory(**options), start=ZEROS))


@pytest.mark.parametrize(
    ("tx", "name"),
    [(optim.sam(0.5), "grad_fn"), (optim.fisher_trace(0.1), "trace_grad_fn")],
    ids=["sam", "fisher_trace"],
)
def test_a_missing_gradient_function_is_named(tx, name):
    """It is the commonest mistake in a loop that knows nothing of bdjax."""
    with pytest.raises(ValueError, match=rf"^optim\.\w+ needs params and {name}: call "):
        tx.update(PARAMS, tx.init(PARAMS), PARAMS)
