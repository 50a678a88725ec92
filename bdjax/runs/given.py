"""A victim that was trained elsewhere: a network in a file, and how it wants its images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bdjax import models
from bdjax.checks import InputError
from bdjax.models.foreign import normalization, reading
from bdjax.models.foreign.normalization import Normalization
from bdjax.runs import suspect
from bdjax.types import Model, Spec, Variables

_AUTO, _DATA = "auto", "data"


@dataclasses.dataclass(frozen=True)
class VictimConfig:
    """A network that was trained elsewhere, which is defended in place of one that is trained here.

    Attributes:
      file: a checkpoint of PyTorch's or of safetensors (`bdjax.models.load`), known by its content.
      part: which of several networks in the file, by its key; None takes the only one.
      normalization: of its images: ``auto`` is what the file, a config beside it or, with ImageNet's 1,000
        classes, the network's family says, or else the data set's own; ``data`` the latter,
        ``none`` leaves them in [0, 1]; or the means and standard deviations of the channels,
        ``0.49,0.48,0.45/0.25,0.24,0.26``.
    """

    file: str
    part: str | None = None
    normalization: str = _AUTO

    def check(self) -> None:
        """Raise InputError for a value out of range."""
        if not self.file:
            raise InputError("file must name a checkpoint, got ''.")
        if self.normalization not in (_AUTO, _DATA):
            self._asked(len(self.normalization.partition("/")[0].split(",")))

    @property
    def path(self) -> Path:
        """Where the file is."""
        return Path(os.path.expanduser(self.file))

    @property
    def files(self) -> dict[str, Path]:
        """What decides the network and how its images are normalized, by the keys that messages have."""
        found = {"victim.file": self.path}
        if self.normalization == _AUTO:
            found |= {f"victim {one.name}": one for one in normalization.files_beside(self.path)}
        return found

    def recognized(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return which network it is, with its options, as the section of a config.

        Args:
          given: options that are asked for, which no weight may say.

        Raises:
          InputError: the file cannot be read, is of no network that is known here, or lacks an option.
        """
        found = suspect.of(reading.read(self.path, self.part))
        return suspect.named(found, given)

    def normalized(self, spec: Spec) -> Spec:
        """Return the specification of images that are normalized as the network wants them.

        Raises:
          InputError: as for `recognized`; or it has other channels.
        """
        channels = spec.shape[-1]
        found = self._normalization(spec, channels)
        if found is None:
            return spec
        modality: Any = spec.modality
        if not {"mean", "std"} <= set(vars(modality)):
            wanted = f"{_DATA} for {modality.unit}s, which are not normalized so"
            raise InputError(f"victim.normalization must be {wanted}; got {self.normalization!r}.")
        modality = dataclasses.replace(modality, mean=found.mean, std=found.std)
        return dataclasses.replace(spec, modality=modality)

    def _normalization(self, spec: Spec, channels: int) -> Normalization | None:
        if self.normalization == _DATA:
            return None
        if self.normalization != _AUTO:
            return self._asked(channels)
        found = suspect.of(reading.read(self.path, self.part))
        return suspect.known_normalization(found, channels, spec.num_classes)

    def _asked(self, channels: int) -> Normalization | None:
        """Return what is asked for in numbers, or as ``none``."""
        mean, _, std = self.normalization.partition("/")
        try:
            return normalization.parse(mean, std or None, channels)
        except InputError as error:
            raise InputError(f"victim.normalization: {error}") from error

    def load(self, model: Model) -> Variables:
        """Return the network's variables.

        Raises:
          InputError: the file cannot be read, or is of another network.
        """
        return models.load(self.path, model, self.part)
