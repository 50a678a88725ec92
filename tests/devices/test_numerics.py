"""How a run computes: the precision of its products, and kernels that may not vary."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.checks import InputError
from bdjax.devices import compilation, flags, numerics

PRECISIONS = {"float32": "HIGHEST", "tensorfloat32": "HIGH", "bfloat16": "DEFAULT"}


def product(x):
    return x @ x


@pytest.fixture(autouse=True)
def told_anew():
    numerics._tell_that_it_is_ignored.cache_clear()


@pytest.mark.parametrize(("name", "of_xla"), PRECISIONS.items())
def test_a_precision_reaches_all_products_of_a_network(name, of_xla, model, variables):
    """Also those of its gradient, which are made from them."""
    image = jax.ShapeDtypeStruct((2, 8, 8, 3), "float32")

    def loss(variables, image):
        return model.apply(variables, image)[0].sum()

    with numerics.in_force(name):
        text = jax.jit(jax.grad(loss)).lower(variables, image).as_text()
    precisions = re.findall(r"precision<(\w+)>|precision (\w+)|precision = \[(\w+), (\w+)\]", text)
    assert {name for found in precisions for name in found if name} == {of_xla}


def test_another_precision_is_another_program_and_what_asks_for_one_itself_keeps_it():
    traced = []
    function = jax.jit(lambda x: traced.append(1) or x @ x)
    for name in (None, "float32", None, "float32", "tensorfloat32"):
        with numerics.in_force(name):
            function(jnp.ones((2, 2)))
    assert len(traced) == 3
    with numerics.in_force("bfloat16"), jax.default_matmul_precision("highest"):
        assert "HIGHEST" in str(jax.make_jaxpr(product)(jnp.ones((2, 2))))


def test_none_leaves_jaxs_own_setting_in_force():
    with jax.default_matmul_precision("highest"), numerics.in_force():
        assert jax.config.jax_default_matmul_precision == "highest"


def test_a_cpu_computes_the_same_bits_and_it_is_said_once(caplog, model, variables, split):
    image = jnp.asarray(split.input, jnp.float32) / 255
    found = []
    for name in (None, *PRECISIONS, *PRECISIONS):
        with numerics.in_force(name):
            found.append(np.asarray(jax.jit(model.apply)(variables, image)[0]))
    assert all(np.array_equal(found[0], other) for other in found[1:])
    assert caplog.messages == [
        f"matmul_precision {name} changes nothing on a CPU, whose float32 products are exact."
        for name in PRECISIONS
    ]


# --- Determinism -----------------------------------------------------------------------------------------------------


def test_on_a_cpu_determinism_takes_no_option():
    before = compilation.options_in_force()
    with numerics.in_force(deterministic=True):
        assert compilation.options_in_force() == before


def test_on_a_gpu_it_takes_one(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with numerics.in_force(deterministic=True):
        assert compilation.options_in_force() == {"xla_gpu_deterministic_ops": True}
    assert compilation.options_in_force() == {}


def test_where_xla_has_none_it_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setitem(flags.DETERMINISTIC, "gpu", {"xla_of_another_age": True})
    with (
        pytest.raises(InputError, match="xla_of_another_age"),
        numerics.in_force(deterministic=True),
    ):
        pytest.fail("the block was entered")
