"""What is asked of the memory at the least, known from shapes before anything is allocated."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator

import jax
import jax.extend.core
import jax.numpy as jnp
from jaxtyping import Array

from bdjax.checks import InputError
from bdjax.types import BatchStats, Leaf, Model, Spec, Trigger, Variables

_TRAINED = 3  # copies of the parameters: their gradient and its momentum


def check_network(model: Model, rows: int, memory: int | None) -> None:
    """Refuse a network that no training step could hold.

    It needs the parameters, their gradient and its momentum; and at some time the largest array of a pass over a batch.
    It may well need more: what is let through can run out of memory yet.

    Args:
      model: the network.
      rows: images of a batch on one device.
      memory: bytes of the device; None where nobody says, and all is let through.

    Raises:
      InputError: it needs more than there is.
    """
    if memory is None:
        return
    count, parameters, largest = _of_network(model, rows)
    there = f"and the device has {_gibibytes(memory)}"
    if (needed := _TRAINED * parameters) > memory:
        with_training = f"with their gradient and momentum they need {_gibibytes(needed)}"
        raise InputError(f"the network has {_short(count)} parameters; {with_training}, {there}.")
    if largest > memory:
        batch = f"a batch of {rows} images of {model.spec.shape[:2]} pixels"
        array = f"one array of {_gibibytes(largest)} of {batch}"
        raise InputError(f"the network computes {array}, {there}.")


def check_trigger(trigger: Trigger, spec: Spec, memory: int | None) -> None:
    """Refuse a trigger whose state could not be held.

    Raises:
      InputError: it needs more than there is, or as ``trigger.init``.
    """
    if memory is None:
        return
    find = _of_trigger if _is_hashable(trigger) else _of_trigger.__wrapped__
    needed = find(trigger, spec)
    if needed > memory:
        there = f"and the device has {_gibibytes(memory)}"
        raise InputError(f"the trigger with these options takes {_gibibytes(needed)}, {there}.")


def check_images(count: int, shape: tuple[int, ...]) -> None:
    """Refuse images of a size at which the machine could not hold so many.

    Raises:
      InputError: they need more than there is.
    """
    needed, memory = count * math.prod(shape), machine_bytes()
    if memory is not None and needed > memory:
        images = f"{count} images of {shape[0]}×{shape[1]} pixels take {_gibibytes(needed)}"
        raise InputError(
            f"image_size must be less: {images}, and the machine has {_gibibytes(memory)}."
        )


def machine_bytes() -> int | None:
    """Return the bytes of memory of this machine; None on Windows, which does not tell."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@functools.lru_cache(maxsize=64)  # the configs of a sweep ask for the same ones thousands of times
def _of_network(model: Model, rows: int) -> tuple[int, int, int]:
    """Return the number of parameters, their bytes, and the bytes of a pass's largest array."""
    variables = jax.eval_shape(model.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((rows, *model.spec.shape), jnp.float32)

    def training_pass(variables: Variables, image: Array) -> tuple[Array, BatchStats]:
        return model.apply(variables, image, train=True)

    traced = jax.make_jaxpr(training_pass)(variables, image)
    leaves = jax.tree.leaves(variables["params"])
    largest = max(map(_bytes, _results(traced.jaxpr)), default=0)
    return sum(math.prod(x.shape) for x in leaves), sum(map(_bytes, leaves)), largest


@functools.lru_cache(maxsize=64)
def _of_trigger(trigger: Trigger, spec: Spec) -> int:
    state = jax.eval_shape(lambda key: trigger.init(key, spec), jax.random.key(0))
    return sum(map(_bytes, jax.tree.leaves(state)))


def _results(program: jax.extend.core.Jaxpr) -> Iterator[Leaf]:
    """Yield the shapes and types of what a traced program computes, also in the programs that it calls."""
    for eqn in program.eqns:
        for var in eqn.outvars:
            yield var.aval
        for value in eqn.params.values():
            for part in value if isinstance(value, list | tuple) else (value,):
                called = getattr(part, "jaxpr", part)
                if hasattr(called, "eqns"):
                    yield from _results(called)


def _bytes(array: Leaf) -> int:
    return math.prod(array.shape) * getattr(array.dtype, "itemsize", 4)


def _short(count: int) -> str:
    return f"{count:,}" if count < 10**9 else f"{count:.1e}".replace("e+", "e")


def _gibibytes(number: int) -> str:
    if number < 2**50:
        return f"{number / 2**30:,.1f} GiB"
    return f"{number / 2**30:.1e} GiB".replace("e+", "e")


def _is_hashable(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
