"""The state of a learner between its epochs: where it is put, what of it is saved, and how that becomes whole again."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from bdjax.devices import compilation, hosts, sharding
from bdjax.types import Learner, LearnerState, Model, PartlySavedLearner, Variables


def place(state: LearnerState, mesh: Mesh | None) -> LearnerState:
    """Copy a state to its devices; the epoch consumes it."""
    return sharding.replicate(jax.tree.map(jax.numpy.array, state), mesh)


def kept(learner: Learner, state: LearnerState) -> LearnerState:
    """Return what of a state is saved: all of it, unless the learner can make a part of it again."""
    return learner.kept(state) if isinstance(learner, PartlySavedLearner) else state


def restored(
    learner: Learner, kept: LearnerState, model: Model, variables: Variables
) -> LearnerState:
    """Return the state of which that was kept. A pure function.

    Args:
      learner: as the state was made by.
      kept: as saved.
      model: the network.
      variables: those that the learner began with, to the bit.
    """
    if not isinstance(learner, PartlySavedLearner):
        return kept
    return learner.restored(kept, model, variables)


def on_host(
    learner: Learner, kept: LearnerState, model: Model, variables: Variables
) -> LearnerState:
    """Do what `restored` does, compiled; arrays bound to a device would have the epoch compiled anew."""
    if isinstance(learner, PartlySavedLearner):
        kept = hosts.local(_restored(learner, kept, model, variables))
    return jax.device_get(kept)


_restored = compilation.jit(restored, static_argnames="model")
