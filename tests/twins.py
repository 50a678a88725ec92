"""A network beside its twin in PyTorch, with the same weights: whether both compute the same.

In float64, as batch norms over few values, one after the other, make of a rounding of float32 a thousandth.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity
from quick import quick_jit

from bdjax import structure
from bdjax.models._names import key_of, to_torch
from bdjax.train.supervised import mean_loss
from bdjax.types import Model, Split

LABEL = np.asarray([0, 2, 1, 2], np.int32)


@functools.partial(quick_jit, static_argnums=0)
def passes(model, variables, image):
    """Return the logits in evaluation and in training, and the statistics after that."""
    trained, changed = model.apply(variables, image, train=True)
    return model.apply(variables, image)[0], trained, changed


@functools.partial(quick_jit, static_argnums=0)
def gradient(model, variables, image):
    def loss(params):
        logits, _ = model.apply({**variables, "params": params}, image, train=True)
        return mean_loss(
            model.spec.task, logits, Split(image, jnp.asarray(LABEL), jnp.ones(len(LABEL), bool))
        )

    return jax.grad(loss)(variables["params"])


def computed(model: Model, of: Any = passes) -> Any:
    """Return what a function makes of the weights and images of `parity`, in float64."""
    with jax.enable_x64(True):
        variables = jax.tree.map(lambda x: jnp.asarray(np.float64(x)), parity.variables(model))
        return of(model, variables, jnp.asarray(np.float64(parity.image(model))))


@functools.partial(quick_jit, static_argnums=0)
def evaluation(model, variables, image):
    return model.apply(variables, image)[0]


def assert_equal(model: Model, theirs: Any, name: str) -> None:
    """Compare logits, statistics after a step and gradients; print what is to be stored of PyTorch's."""
    import torch

    theirs = theirs.double()
    variables = parity.variables(model)
    parity.load(theirs, jax.tree.map(np.float64, variables))
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    evaluated, trained, statistics = computed(model)
    given = parity.torch_input(model, parity.image(model).astype(np.float64))
    with torch.no_grad():
        expected = theirs.eval()(given).numpy()
    np.testing.assert_allclose(evaluated, expected, atol=1e-6)
    narrow = evaluation(model, variables, jnp.asarray(parity.image(model)))
    np.testing.assert_allclose(narrow, expected, rtol=1e-4, atol=1e-4)
    logits = getattr(out := theirs.train()(given), "logits", out)
    np.testing.assert_allclose(trained, logits.detach().numpy(), atol=1e-6)
    state = theirs.state_dict()
    kept = {key_of(path): leaf for path, leaf in structure.flat(statistics).items()}
    unused = _unused(theirs, logits)
    _assert_statistics(kept, state, unused)
    print(f"    {name!r}: {_row(expected)},")
    _assert_gradients(structure.flat(computed(model, gradient)), dict(theirs.named_parameters()))


def _row(logits: np.ndarray) -> list[float]:
    return [round(float(value), 7) for value in logits[0]]


def _unused(theirs: Any, logits: Any) -> set[str]:
    """Take the step's gradients, and return the parameters that the logits do not depend on."""
    import torch

    torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABEL).long()).backward()
    return {key for key, each in theirs.named_parameters() if each.grad is None}


def _beside(key: str, unused: set[str]) -> bool:
    """Whether a statistic stands beside a parameter that nothing depends on: PyTorch moves it, bdjax does not."""
    return f"{key.rpartition('.')[0]}.weight" in unused


def _assert_statistics(ours: dict[str, Any], state: Any, unused: set[str]) -> None:
    for key, leaf in ours.items():
        if not _beside(key, unused):
            np.testing.assert_allclose(leaf, state[key].numpy(), atol=1e-6, err_msg=key)


def _assert_gradients(ours: dict[structure.Path, Any], theirs: dict[str, Any]) -> None:
    assert {key_of(path) for path in ours} == set(theirs)
    for path, leaf in ours.items():
        expected = theirs[key_of(path)].grad
        found = to_torch(np.asarray(leaf), path)
        if expected is None:
            assert not found.any()
            continue
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6, err_msg=str(path))
