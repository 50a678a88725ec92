"""A victim that was trained elsewhere: a network in a file, and how it wants its images."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bdjax import models
from bdjax.checks import InputError
from bdjax.models.foreign import normalization, reading, recognition
from bdjax.types import Model, Spec, Variables

_AUTO, _DATA, _NONE = "auto", "data", "none"


@dataclasses.dataclass(frozen=True)
class VictimConfig:
    """A network that was trained elsewhere, which is defended in place of one that is trained here.

    Attributes:
      file: a checkpoint of PyTorch's or of safetensors (`bdjax.models.load`), known by its content.
      part: which of several networks in the file, by its key; None takes the only one.
      normalization: of its images: ``auto`` is what the file says, or else the data set's own; ``data`` the latter,
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
        if self.normalization not in (_AUTO, _DATA, _NONE):
            _moments(self.normalization)

    @property
    def path(self) -> Path:
        """Where the file is."""
        return Path(os.path.expanduser(self.file))

    def recognized(self) -> Mapping[str, Any]:
        """Return which network it is, with its options, as the section of a config.

        Raises:
          InputError: the file cannot be read, or is of no network that is known here.
        """
        found = recognition.recognize(reading.read(self.path, self.part))
        return {"name": found.name, **found.options}

    def normalized(self, spec: Spec) -> Spec:
        """Return the specification of images that are normalized as the network wants them.

        Raises:
          InputError: as for `recognized`; or it has other channels.
        """
        if (moments := self._moments()) is None:
            return spec
        mean, std = moments
        if len(mean) != spec.shape[-1]:
            raise InputError(
                f"victim.normalization must be of {spec.shape[-1]} channels, as the images are; got {len(mean)}."
            )
        modality = dataclasses.replace(spec.modality, mean=mean, std=std)
        return dataclasses.replace(spec, modality=modality)

    def load(self, model: Model) -> Variables:
        """Return the network's variables.

        Raises:
          InputError: the file cannot be read, or is of another network.
        """
        return models.load(self.path, model, self.part)
