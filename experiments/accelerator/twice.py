"""What is computed on the device and once more on the CPU, by a process of its own that sees nothing else.

    python -m accelerator.twice triggers SEED debug FILE.npz

JAX chooses much by its default backend (how a convolution is written, with which options it is compiled), so that
`jax.default_device` alone would not give what a CPU gives.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from accelerator import processes
from accelerator.session import Session
from bdjax import attacks, models, poison
from bdjax.data.augment import as_float
from bdjax.data.modalities.images import image_spec
from bdjax.defenses.ft_sam import ft_sam
from bdjax.files import atomic
from bdjax.train import loop
from bdjax.types import Attack, Learner, Model, Spec, Split, Variables

Arrays = Mapping[str, np.ndarray]

_ROWS, _BATCH = 256, 64
_THREADS = 4  # programs that are compiled at a time
_NETWORK = 20  # arrays in the state of a trigger that has a network of its own
# Compiled for one call each: LLVM's effort takes longer than it saves.
_QUICK = {"xla_backend_optimization_level": 0}


def spec(debug: bool) -> Spec:
    """Return the specification of the random images."""
    size = 16 if debug else 32
    return image_spec("random", (size, size, 3), 10, (0.5,) * 3, (0.25,) * 3, (), 2, True)


def images(seed: int, debug: bool, rows: int = _ROWS) -> Split:
    """Return random images with labels that belong to them: a class is a brightness."""
    rng = np.random.default_rng(seed)
    label: Any = rng.integers(0, 10, rows).astype(np.int32)
    noise = rng.integers(0, 156, (rows, *spec(debug).shape))
    image: Any = (noise + 10 * label[:, None, None, None]).astype(np.uint8)
    return jax.tree.map(jnp.asarray, Split(image, label, jnp.ones(rows, bool)))


def triggers(seed: int, debug: bool) -> dict[str, np.ndarray]:
    """Return random images, and what the trigger of every attack makes of them before it is rounded to 8 bits.

    Triggers that learn are as they are before they have learned. In miniature those with a network of their own, which
    take seconds to compile, are left out.
    """
    key, split = jax.random.key(seed), images(seed, debug, 64)
    split = split._replace(input=as_float(split.input))
    made = {name: attacks.create(name, spec=spec(debug)) for name in attacks.names()}
    if debug:
        made = {name: attack for name, attack in made.items() if _size(attack, debug) < _NETWORK}
    options = _QUICK if jax.default_backend() == "cpu" else None
    planted = jax.jit(_planted, static_argnames="debug", compiler_options=options)

    def one(attack: Attack) -> np.ndarray:
        with jax.default_matmul_precision("highest"):  # of this thread
            return np.asarray(planted(key, attack, split, debug=debug))

    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(made, pool.map(one, made.values()), strict=True))
    return {"clean": np.asarray(split.input), **found}


def _planted(
    key: Key[Array, ""], attack: Attack, split: Split, *, debug: bool
) -> Float[Array, "n h w c"]:
    state = attack.trigger.init(key, spec(debug))
    return poison.poison_test(key, attack, state, split).visible.input


def _size(attack: Attack, debug: bool) -> int:
    state = jax.eval_shape(lambda: attack.trigger.init(jax.random.key(0), spec(debug)))
    return len(jax.tree.leaves(state))


def network(debug: bool) -> Model:
    """Return the network that is trained here."""
    return models.create("small_cnn", spec(debug), width=4 if debug else 16)


def start(model: Model, seed: int) -> Variables:
    """Return variables as training starts from, drawn by the host: without compiling, and the same on any device."""
    rng = np.random.default_rng(seed)

    def draw(path: Sequence[Any], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name == "kernel":
            scale = (2 / math.prod(leaf.shape[:-1])) ** 0.5
            return (scale * rng.normal(size=leaf.shape)).astype(leaf.dtype)
        return np.full(leaf.shape, name in ("scale", "var"), leaf.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def learner(rho: float = 1.0, learning_rate: float = 0.02, epochs: int = 1) -> Learner:
    """Return FT-SAM for a few steps, whose program has in it what most others have."""
    return ft_sam(rho, learning_rate=learning_rate, epochs=epochs, batch_size=_BATCH)


def epoch(seed: int, debug: bool) -> dict[str, np.ndarray]:
    """Return every parameter and statistic after one epoch of FT-SAM, and before it."""
    model = network(debug)
    first = start(model, seed)
    with jax.default_matmul_precision("highest"):
        result = loop.run(jax.random.key(seed), learner(), model, first, images(seed, debug))
    before, after = flat(first), flat(result.variables)
    return {"before": before, "after": after, "loss": np.array(result.history[0].loss)}


def flat(variables: object) -> np.ndarray:
    """Return all numbers of a tree as one vector on the host."""
    leaves = jax.device_get(jax.tree.leaves(variables))
    return np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in leaves])


WHAT: dict[str, Callable[[int, bool], dict[str, np.ndarray]]] = {
    "triggers": triggers,
    "epoch": epoch,
}


@contextlib.contextmanager
def on_cpu(what: str, seed: int, session: Session) -> Iterator[Callable[[], Arrays]]:
    """Let the CPU begin to compute; give a function that waits for what it finds."""
    folder = session.settings.work / "right"
    size = "debug" if session.settings.debug else "full"
    file, said = folder / f"{what}.npz", folder / f"{what}.txt"
    words = ["-m", "accelerator.twice", what, str(seed), size, str(file)]
    with processes.started(words, said, JAX_PLATFORMS="cpu") as process:

        def found() -> Arrays:
            processes.finish(process, said)
            return atomic.read_arrays(file) or {}

        yield found


def main(what: str, seed: str, size: str, file: str) -> None:
    """Compute, and write the file."""
    atomic.write_arrays(Path(file), **WHAT[what](int(seed), size == "debug"))


if __name__ == "__main__":
    main(*sys.argv[1:])
