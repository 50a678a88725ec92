"""How runs are carried out: where to, on what, and who is told."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

from bdjax.checks import integer, non_negative, one_of
from bdjax.devices import numerics, placement
from bdjax.runs import provenance
from bdjax.runs.config import Config
from bdjax.runs.folder import RunsFolder
from bdjax.train import feeding, loop


@dataclasses.dataclass(frozen=True)
class Execution:
    """How a run is carried out: nothing here is part of its identity.

    Attributes:
      out: folder of the run folders.
      devices: how many devices, of all hosts, split each batch; more than one changes results within
        rounding.
      checkpoint_seconds: least seconds between two checkpoints; 0 saves after every epoch.
      on_epoch: called with (what is trained, epochs in all, the epoch's report).
      should_stop: asked after each epoch.
      smoothness: epochs of the defense between two measurements of the loss surface, written to the
        run's ``smoothness.json``; 0 takes none.
      data_on: where the training images are, one of `bdjax.devices.placement.PLACES`; unless on the
        device, they are streamed to it. The results are the same, on one device bit for bit.
      prepare, unroll: how an epoch is fed from the device (`bdjax.train.feeding.choose`). ``prepare``
        changes no bit; ``unroll`` changes results within rounding, and ``auto`` times a few steps
        (`bdjax.train.unrolling.choose`; in a sweep it is 1).
      changed: of `bdjax.runs.provenance.CHANGED`: what to do where a run, or its victim, was begun with
        other data than are there now: refuse it, or set its folder aside and run again.
      deterministic: let every process compute the same bits on the same kind of device
        (`bdjax.devices.numerics`), so that also a run that was interrupted on a GPU ends in those of
        one that was not.
      on_finished: called with the id of a run whose record is returned as it is.
    """

    out: Path
    devices: int = 1
    checkpoint_seconds: float = 1.0
    on_epoch: Callable[[str, int, loop.Epoch], None] | None = None
    should_stop: Callable[[], bool] | None = None
    smoothness: int = 0
    data_on: str = "auto"
    prepare: str = feeding.AUTO
    unroll: int | str = 1
    changed: str = "refuse"
    deterministic: bool = False
    on_finished: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        """Raise InputError for an unknown word or a value out of range."""
        integer(1, devices=self.devices)
        non_negative(checkpoint_seconds=self.checkpoint_seconds)
        integer(smoothness=self.smoothness)
        one_of(placement.PLACES, data_on=self.data_on)
        one_of(provenance.CHANGED, changed=self.changed)
        feeding.check(self.prepare, self.unroll)

    @property
    def runs(self) -> RunsFolder:
        """The folder of the run folders, with what lies where in it."""
        return RunsFolder(self.out)

    def computing(self, config: Config) -> contextlib.AbstractContextManager[None]:
        """Return the context in which all of a run is computed: its precision, and the kernels that are asked for."""
        return numerics.in_force(config.matmul_precision, self.deterministic)
