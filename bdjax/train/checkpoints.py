"""Checkpoints of a loop: its state and its history after the last epoch, written so that a kill cannot harm them.

Each has a digest of all that it holds, and of whose it is; what was damaged or exchanged is never trained on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, cast

import jax
import numpy as np
import orbax.checkpoint as ocp

from bdjax.checks import InputError
from bdjax.devices import hosts
from bdjax.files import failures
from bdjax.types import LearnerState

# Orbax narrates every save, and prints what it raises, too.
logging.getLogger("absl").setLevel(logging.CRITICAL)

History: TypeAlias = list[dict[str, Any]]
Owner: TypeAlias = Mapping[str, str | int]  # such as run, stage and seed


def digest(tree: Any, about: str = "") -> str:
    """Return the SHA-256 of every bit of a tree's arrays, and of a text, as a hexadecimal word."""
    found = hashlib.sha256(about.encode())
    for leaf in jax.tree.leaves(hosts.local(tree)):
        array = np.asarray(leaf)
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


@dataclasses.dataclass(frozen=True)
class Saved:
    """A restored checkpoint."""

    state: LearnerState
    history: History


class Checkpoints:
    """The newest checkpoint of one loop in one folder.

    Orbax writes to a temporary folder and renames it, so what is there is whole, whenever the process dies. A save is
    skipped, unless forced, while the last one is younger than ``every`` seconds or than ten times what it took: saving
    costs at most a tenth of the time, and a kill loses at most one epoch or about a second.

    Args:
      folder: made if it is not there.
      every: least seconds between two saves; 0 saves after every epoch.
      owner: whose they are. One that was put here from elsewhere, with another owner, is refused.

    Raises:
      InputError: what is there cannot be read.
      OSError: the folder cannot be made.
    """

    def __init__(self, folder: Path, every: float = 1.0, owner: Owner | None = None):
        self.folder = folder.absolute()
        self._every = every
        self._owner = dict(owner or {})
        self._next_save = time.monotonic() + every
        options = ocp.CheckpointManagerOptions(
            max_to_keep=1,
            enable_async_checkpointing=False,
            create=True,
        )
        handlers = {
            "state": ocp.StandardCheckpointHandler(),
            "history": ocp.JsonCheckpointHandler(),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with _readable(self.folder):
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=handlers
            )

    @property
    def epoch(self) -> int | None:
        """How many epochs the newest checkpoint has seen; None if there is none."""
        return self._manager.latest_step()

    def due_in(self) -> float:
        """Return in how many seconds a save is no longer too young; 0 where it is not."""
        return max(0.0, self._next_save - time.monotonic())

    def save(
        self,
        epoch: int,
        state: LearnerState,
        history: History,
        *,
        force: bool = False,
    ) -> None:
        """Save the state after ``epoch`` epochs, unless the last save is too young.

        Raises:
          OSError: there is no room, or the folder cannot be written to.
        """
        started = time.monotonic()
        # All hosts save, or none.
        if not force and not hosts.from_first(lambda: started >= self._next_save):
            return
        if hosts.process_count() > 1:
            # The first writes what each host has of its own; they share the work of the rest.
            state = jax.tree.map(lambda x: np.asarray(x) if x.is_fully_addressable else x, state)
        sealed = {"rows": history, **self._seal(epoch, state, history)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            history=ocp.args.JsonSave(cast(Any, sealed)),
        )
        try:
            self._manager.save(epoch, args=args, force=True)
        except jax.errors.JaxRuntimeError:  # another host was lost
            raise
        except Exception as error:  # orbax raises whatever its storage layers raise
            if (failure := failures.storage_error(error)) is None:
                raise
            raise OSError(failure.errno, failure.strerror, str(self.folder)) from error
        ended = time.monotonic()
        self._next_save = ended + max(self._every, 10 * (ended - started)) if self._every else ended

    def restore(self, like: LearnerState) -> Saved | None:
        """Return the newest checkpoint with the shapes and types of ``like``, on one device; None if there is none.

        Raises:
          InputError: the checkpoint cannot be read, is not what was saved, or belongs to another state or owner.
        """
        epoch = self.epoch
        hosts.check_same(**{f"checkpoints in {self.folder}": epoch})  # or the folder is not shared
        if epoch is None:
            return None
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        wanted = functools.partial(jax.ShapeDtypeStruct, sharding=device)
        abstract = jax.tree.map(lambda x: wanted(x.shape, x.dtype), like)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract),
            history=ocp.args.JsonRestore(),
        )
        with _readable(self.folder / str(epoch)):
            if _shapes(self._manager.item_metadata(epoch)["state"].tree) != _shapes(abstract):
                raise InputError("it is of another network, optimizer or version")
            restored = self._manager.restore(epoch, args=args)
            sealed = dict(restored["history"])
            saved = Saved(restored["state"], sealed.pop("rows"))
            self._check(sealed, self._seal(epoch, saved.state, saved.history))
            return saved

    def _seal(self, epoch: int, state: LearnerState, history: History) -> dict[str, Any]:
        """Return whose the checkpoint is, with a digest of that and of every bit of it."""
        about = json.dumps([epoch, self._owner, history], sort_keys=True)
        return {"owner": self._owner, "sha256": digest(state, about)}

    @staticmethod
    def _check(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        if found.get("owner") != expected["owner"]:
            owner = dict(found.get("owner") or {})
            whose = ", ".join(f"{name} {value}" for name, value in owner.items())
            raise InputError(f"it belongs to {whose or 'nobody'}")
        if found.get("sha256") != expected["sha256"]:
            raise InputError("it is not what was saved: its digest differs")

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Say in one line that a checkpoint cannot be read: orbax raises whatever its storage layers raise."""
    try:
        yield
    except jax.errors.JaxRuntimeError:  # another host was lost
        raise
    except Exception as error:
        remedy = f"delete it to start over ({_brief(error)})"
        raise InputError(f"the checkpoint {path} cannot be read; {remedy}.") from error


def _brief(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0][:200]


def _shapes(tree: Any) -> list[tuple[tuple[int, ...], str]]:
    """Return the shape and type of every array, in an order that containers do not decide."""
    return sorted((tuple(x.shape), str(x.dtype)) for x in jax.tree.leaves(tree))
