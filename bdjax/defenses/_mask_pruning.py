"""Pruning by masks: they are tuned, and the neurons with low masks are taken out of the network as it was."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from bdjax import pytree, structure
from bdjax.parametrizations.neuron_masks import is_shift
from bdjax.train.supervised import Supervised, TrainState
from bdjax.types import BatchStats, HParam, Info, Model, Split, Variables

_ROUNDING = 1e-4  # of share · n, which float32 may put just below a whole number


class PruningState(NamedTuple):
    """The tuning of the masks, and the batch statistics of the network as it was."""

    tuning: TrainState
    batch_stats: BatchStats


@pytree.dataclass
class MaskPruning:
    """Tune `bdjax.parametrizations.NeuronMasks`, then set the weights of neurons with low masks to zero.

    What the tuning did to the batch statistics, and to masks that are not low, is dropped: the other
    neurons are those of the network as it was, and so are all shifts.

    Attributes:
      masks: tunes them.
      threshold: neurons whose mask is at most this are pruned, unless there is a share.
      share: of the neurons, those with the lowest masks, if these are below 1; None is by threshold.
      decimals: to which masks are rounded first, by files of the released code; None is not at all.
    """

    masks: Supervised
    threshold: HParam = 0.2
    share: HParam | None = None
    decimals: int | None = pytree.static(default=None)

    @property
    def epochs(self) -> int:
        return self.masks.epochs

    @property
    def batch_size(self) -> int | None:
        return self.masks.batch_size

    @property
    def drop_last(self) -> bool:
        return self.masks.drop_last

    @property
    def prepares(self) -> bool:
        """Whether the loop may prepare batches."""
        return self.masks.prepares

    def init(
        self, key: Key[Array, ""], model: Model, variables: Variables, split: Split
    ) -> PruningState:
        """Return the state before the first step."""
        tuning = self.masks.init(key, model, variables, split)
        return PruningState(tuning, variables["batch_stats"])

    def update(
        self, key: Key[Array, ""], model: Model, state: PruningState, batch: Split
    ) -> tuple[PruningState, Info]:
        """Take one step with the masks."""
        return self.learn(key, model, state, self.prepare(key, model, batch))

    def prepare(self, key: Key[Array, ""], model: Model, batch: Split) -> Split:
        """Crop and flip the images."""
        return self.masks.prepare(key, model, batch)

    def learn(
        self, key: Key[Array, ""], model: Model, state: PruningState, batch: Split
    ) -> tuple[PruningState, Info]:
        """Take the rest of a step."""
        tuning, info = self.masks.learn(key, model, state.tuning, batch)
        return state._replace(tuning=tuning), info

    def finalize(self, model: Model, state: PruningState) -> Variables:
        """Return the network as it was, with the weights of the pruned neurons at zero."""
        del model
        kept: dict[structure.Path, Array] = {}
        for path, pruned in self.pruned(state).items():
            kept[path] = 1.0 - pruned
        params = structure.scaled(state.tuning.frozen["params"], kept)
        return {"params": params, "batch_stats": state.batch_stats}

    def pruned(self, state: PruningState) -> dict[structure.Path, Bool[Array, " k"]]:
        """Return which neurons of each layer are to go."""
        tuned = structure.flat(state.tuning.tuned)
        masks: dict[structure.Path, Float[Array, " k"]] = {}
        for path in sorted(tuned):
            if not is_shift(path):
                masks[path] = tuned[path]
        if self.decimals is not None:
            masks = {path: jnp.round(mask, self.decimals) for path, mask in masks.items()}
        if self.share is None:
            return {path: mask <= self.threshold for path, mask in masks.items()}
        return _lowest(masks, self.share)

    def kept(self, state: PruningState) -> Any:
        """Return the state without what is frozen."""
        return PruningState(self.masks.kept(state.tuning), ())

    def restored(self, kept: Any, model: Model, variables: Variables) -> PruningState:
        """Return the state with what is frozen, made again from the variables of the start."""
        tuning = self.masks.restored(kept.tuning, model, variables)
        return PruningState(tuning, variables["batch_stats"])


def _lowest(
    masks: dict[structure.Path, Float[Array, " k"]], share: HParam
) -> dict[structure.Path, Bool[Array, " k"]]:
    """Return which masks are among the lowest of all layers, of those below 1: as many as the share of all."""
    together = jnp.concatenate([*masks.values()])
    rank = jnp.argsort(jnp.argsort(together, stable=True))
    low = (rank < jnp.floor(share * together.size + _ROUNDING)) & (together < 1)
    found: dict[structure.Path, Bool[Array, " k"]] = {}
    start = 0
    for path, mask in masks.items():
        found[path] = low[start : start + mask.size]
        start += mask.size
    return found
