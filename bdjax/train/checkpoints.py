"""Checkpoints of a loop: its state and its history after the last epoch, written so that a kill cannot harm them."""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import orbax.checkpoint as ocp

from bdjax.checks import InputError
from bdjax.train import hosts
from bdjax.types import LearnerState

logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax narrates every save, and prints what it raises, too


@dataclasses.dataclass(frozen=True)
class Saved:
    """A restored checkpoint."""

    state: LearnerState
    history: list[dict[str, Any]]


class Checkpoints:
    """The newest checkpoint of one loop in one folder.

    Orbax writes to a temporary folder and renames it, so what is there is whole, whenever the process dies. A save is
    skipped, unless forced, while the last one is younger than ``every`` seconds or than ten times what it took: saving
    costs at most a tenth of the time, and a kill loses at most one epoch or about a second.

    Args:
      folder: made if it is not there.
      every: least seconds between two saves; 0 saves after every epoch.
    """

    def __init__(self, folder: Path, every: float = 1.0):
        self.folder = folder.absolute()
        self._every = every
        self._next_save = time.monotonic() + every
        options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False, create=True)
        handlers = {"state": ocp.StandardCheckpointHandler(), "history": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    @property
    def epoch(self) -> int | None:
        """How many epochs the newest checkpoint has seen; None if there is none."""
        return self._manager.latest_step()

    def save(self, epoch: int, state: LearnerState, history: list[dict[str, Any]], *, force: bool = False) -> None:
        """Save the state after ``epoch`` epochs, unless the last save is too young."""
        started = time.monotonic()
        if not force and not hosts.from_first(lambda: started >= self._next_save):  # all save, or none
            return
        if hosts.count() > 1:  # the first writes what each host has of its own; they share the work of the rest
            state = jax.tree.map(lambda x: np.asarray(x) if x.is_fully_addressable else x, state)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), history=ocp.args.JsonSave(cast(Any, history)))
        self._manager.save(epoch, args=args, force=True)
        ended = time.monotonic()
        self._next_save = ended + max(self._every, 10 * (ended - started)) if self._every else ended

    def restore(self, like: LearnerState) -> Saved | None:
        """Return the newest checkpoint with the shapes and types of ``like``, on one device; None if there is none.

        Raises:
          InputError: the checkpoint cannot be read, or belongs to another state.
        """
        epoch = self.epoch
        hosts.check_same(**{f"checkpoints in {self.folder}": epoch})  # or the folder is not shared
        if epoch is None:
            return None
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), history=ocp.args.JsonRestore())
        try:
            if _shapes(self._manager.item_metadata(epoch)["state"].tree) != _shapes(abstract):
                raise InputError("it is of another network or optimizer")
            restored = self._manager.restore(epoch, args=args)
            return Saved(restored["state"], restored["history"])
        except jax.errors.JaxRuntimeError:  # another host was lost
            raise
        except Exception as error:  # orbax raises whatever its storage layers raise
            broken, reason = self.folder / str(epoch), str(error).partition("\n")[0][:200]
            raise InputError(f"the checkpoint {broken} cannot be read; delete it to start over ({reason}).") from error

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _shapes(tree: Any) -> list[tuple[tuple[int, ...], str]]:
    """Return the shape and type of every array, in an order that containers do not decide."""
    return sorted((tuple(x.shape), str(x.dtype)) for x in jax.tree.leaves(tree))
