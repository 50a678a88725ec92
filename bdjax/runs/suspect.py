"""A network that somebody got from elsewhere: what its file holds, which network it is, and how it is given images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bdjax import data, models
from bdjax.checks import InputError, in_section
from bdjax.files import atomic
from bdjax.files.printable import printable
from bdjax.models.foreign import keys, normalization, reading, recognition
from bdjax.models.foreign.normalization import IMAGENET_SIDES, Normalization
from bdjax.models.foreign.reading import StateDict
from bdjax.models.foreign.recognition import Recognized
from bdjax.runs.purified import CONFIG, LIBRARY
from bdjax.types import Model, Spec, Variables


class Suspect(NamedTuple):
    """What a file holds.

    Attributes:
      file: its path.
      sha256: of all its bytes.
      state: the weights, and what stood beside them.
      recognized: which network it is; None where nothing fits.
      why_not: what was seen then.
    """

    file: Path
    sha256: str
    state: StateDict
    recognized: Recognized | None
    why_not: str = ""

    @property
    def image_size(self) -> int | None:
        """Pixels a side of the images, where the file or its weights say so; None too where they are no squares."""
        found = self.recognized
        if found is None or found.sure != "certain" or len(set(found.image_size)) > 1:
            return None
        return found.image_size[0]


def look(file: Path, part: str | None = None) -> Suspect:
    """Read a file of weights and recognize the network; nothing in it is executed.

    Args:
      file: its path.
      part: the entry with the weights, in a file of several sets.

    Raises:
      InputError: it cannot be read, or holds anything but data.
    """
    state = reading.read(file, part)
    return of(state, data.fingerprint_file(file))


def of(state: StateDict, sha256: str = "") -> Suspect:
    """Return what was read, with the network that it is of, if that is known."""
    try:
        found = recognition.recognize(state)
    except InputError as error:
        return Suspect(state.path, sha256, state, None, str(error))
    return Suspect(state.path, sha256, state, _told(found, state.path) if found.unknown else found)


def _told(found: Recognized, file: Path) -> Recognized:
    """Return a network with the option that no weight says, where a config of bdjax's own beside the file does."""
    try:
        content = atomic.read_json(file.with_name(CONFIG)) or {}
    except (InputError, OSError):
        return found  # of something else, and no part of what was asked for
    options = content.get("options")
    is_own = content.get("network") == found.name and content.get("library_name") == LIBRARY
    if not (is_own and isinstance(options, Mapping)):
        return found
    # Without a value, the network was made with what is usual
    value = options.get(found.unknown)
    more = {found.unknown: value} if isinstance(value, int) else {}
    return dataclasses.replace(found, options={**found.options, **more}, unknown="")


def named(suspect: Suspect, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the section ``model`` of a config, as far as it is recognized.

    Args:
      suspect: the network.
      given: what is asked for instead, or beside it.

    Raises:
      InputError: nothing fits, and no network is named; or an option that no weight says is not given.
    """
    found, given = suspect.recognized, given or {}
    if found is None:
        if "name" not in given:
            raise InputError(f"{suspect.why_not.rstrip('.')}; name the network with --model.")
        return {}
    asked_for = given.get("name", found.name)
    if asked_for == found.name and found.unknown and found.unknown not in given:
        raise InputError(f"{printable(str(suspect.file))}: {to_be_given(found)}.")
    return {"name": found.name, **found.options}


def to_be_given(found: Recognized) -> str:
    """Say which option of a network has to be given, as no weight says it.

    >>> to_be_given(Recognized("vit_b_16", {}, 10, 3, (32, 32), "certain", "", unknown="heads"))
    'no weight says the heads of vit_b_16: give them as they were in training, with --model.heads'
    """
    what = f"no weight says the {found.unknown} of {found.name}"
    return f"{what}: give them as they were in training, with --model.{found.unknown}"


def known_normalization(suspect: Suspect, channels: int, num_classes: int) -> Normalization | None:
    """Return how the network's images were normalized, None where nothing says so."""
    found = suspect.recognized
    return normalization.known(
        suspect.state.beside,
        suspect.file,
        channels=channels,
        num_classes=num_classes,
        image_size=suspect.image_size,
        of_torchvision=found is not None and found.image_size[0] in IMAGENET_SIDES,
        network="" if found is None else found.name,
        names=suspect.state.arrays,
    )


def network(
    suspect: Suspect, name: str, options: Mapping[str, Any], spec: Spec, how: Normalization
) -> tuple[Model, Variables]:
    """Return the network of a file with its variables, of images that are normalized in a way.

    Raises:
      InputError: the file does not fit the network, or holds what is no number.
    """
    modality = dataclasses.replace(spec.modality, mean=how.mean, std=how.std)  # type: ignore[type-var]
    with in_section("model", options):
        model = models.create(name, dataclasses.replace(spec, modality=modality), **options)
    return model, keys.variables(suspect.state, model)


def not_finite(state: StateDict) -> list[str]:
    """Return the names of the arrays that hold NaN or infinity."""
    found = []
    for name, array in state.arrays.items():
        # NumPy's kind of bfloat16 and of the types of 8 bits is not that of a number
        if jnp.issubdtype(array.dtype, jnp.floating) and not np.isfinite(array).all():
            found.append(name)
    return found
