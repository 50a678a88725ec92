"""The feeder of data that live on the device: compiled calls of several epochs."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from bdjax.devices import compilation, hosts, sharding
from bdjax.train import batches, feeding, programs, states
from bdjax.train.programs import Summary
from bdjax.train.results import Epoch
from bdjax.types import Learner, LearnerState, Model, Split, Variables


class Resident:
    """Feeds one learner from a split on the device, or on every device of a mesh.

    Attributes:
      learner, most, row: of `bdjax.train.feeder.Feeder`.
    """

    row = Epoch

    def __init__(
        self,
        key: Key[Array, ""],
        learner: Learner,
        model: Model,
        variables: Variables,
        split: Split,
        *,
        mesh: Mesh | None = None,
        prepare: str = feeding.AUTO,
        unroll: int = 1,
    ):
        """Put everything where each call finds it; the arguments are those of `bdjax.train.loop.run`.

        Raises:
          InputError: no row is valid, or an unknown ``prepare`` or ``unroll``.
        """
        batches.check(learner, split)
        split, variables = batches.valid_rows(split), hosts.arrays_of_first(variables)
        hosts.check_same(images=split)
        self.learner, self.most = learner, programs.most_epochs(learner)
        self._feeding = feeding.choose(prepare, unroll, learner, split)
        self._model, self._mesh, self._init_key = model, mesh, programs.init_key(key)
        self._split, self._variables = sharding.replicate((split, variables), mesh)
        self._placed = _once((key, learner), mesh)

    def init(self) -> LearnerState:
        """Return the state before the first epoch."""
        start = (self._init_key, self.learner, self._model, self._variables, self._split)
        return states.place(_init(*start), self._mesh)

    def advance(self, numbers: range, state: LearnerState) -> tuple[LearnerState, Summary]:
        """Take epochs in a row, in one call; the state is donated."""
        key, learner = self._placed
        return programs.train_epochs(
            key,
            learner,
            self._model,
            state,
            self._split,
            programs.span(numbers),
            mesh=self._mesh,
            feeding=self._feeding,
        )

    def keep(self, state: LearnerState) -> LearnerState:
        """Return the part of a state that is saved."""
        return states.kept(self.learner, state)

    def like(self) -> LearnerState:
        """Return the shapes and types of that part."""

        def kept() -> LearnerState:
            start = (self._init_key, self._model, self._variables, self._split)
            return states.kept(self.learner, self.learner.init(*start))

        return jax.eval_shape(kept)

    def restore(self, kept: LearnerState) -> LearnerState:
        """Return the state of which that was kept."""
        whole = states.on_host(self.learner, kept, self._model, self._variables)
        return states.place(whole, self._mesh)

    def close(self) -> None:
        """Do nothing: nothing was begun."""


def _once(tree: Any, mesh: Mesh | None) -> Any:
    """Put a key and a learner's floats where every call finds them; of several hosts, each call puts them anew."""
    return sharding.replicate(tree, mesh) if hosts.process_count() == 1 else tree


_init = compilation.jit(
    lambda key, learner, model, variables, split: learner.init(key, model, variables, split),
    static_argnums=2,
)
