"""Which of bdjax's networks a file of weights is of: guessed from names and shapes, and tried on the network itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from bdjax import models
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.files.printable import printable
from bdjax.models.foreign import aliases, keys
from bdjax.models.foreign.families import FAMILIES, Family, Guess, Option, Shapes
from bdjax.models.foreign.keys import Matching
from bdjax.models.foreign.reading import StateDict
from bdjax.types import Model

_SHOWN = 4  # names of a network that is not known
_MOST_CLASSES = 1_000_000
_MOST_PIXELS = 4096  # a side
_COUNTS = ("depth", "blocks")  # options that say how many layers are made
_MOST_BLOCKS = 300
_SIZE = "img_size"  # BackdoorBench's entry: (height, width, channels)


@dataclasses.dataclass(frozen=True)
class Recognized:
    """A network of which a file's arrays fit every name and shape.

    Attributes:
      name, options: as `bdjax.models.create` takes them, beside a specification.
      num_classes, channels: of its outputs and of its images.
      image_size: (height, width) in pixels for which it was made, as far as is known.
      sure: ``certain``, or ``likely`` where the image size is the family's usual one and nothing in the file.
      why: what was seen, in words.
      size_why: where the image size comes from, in words.
      unknown: an option without which nobody can compute with it, as no weight says it; empty where none is.
    """

    name: str
    options: Mapping[str, Option]
    num_classes: int
    channels: int
    image_size: tuple[int, int]
    sure: str
    why: str
    size_why: str = ""
    unknown: str = ""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return (*self.image_size, self.channels)


def recognize(state: StateDict) -> Recognized:
    """Return the network that a state dict is of.

    The network is certain, as every name and shape is compared; the size of the images is often not in the weights.

    Raises:
      InputError: no network here has these names and shapes; the message says what was seen and what is nearest.
    """
    nearest: tuple[int, str] | None = None
    absent: list[str] = []
    signs: list[str] = []
    for guess, shapes in _guesses(state):
        signs.append(guess.why)
        absent += [name for name in guess.names if name not in models.names()]
        for name in guess.names:
            for options in guess.choices if name in models.names() else ():
                found = _recognized(state, guess, shapes, name, options)
                if isinstance(found, Recognized):
                    return found
                faults = 0 if found is None else _faults(found)
                if found is not None and (nearest is None or faults < nearest[0]):
                    nearest = (faults, f"the nearest is {name}, but {found}")
    raise InputError(f"{state.path} is of no network here: {_seen(state, nearest, absent, signs)}.")


def _guesses(state: StateDict) -> Iterator[tuple[Guess, Shapes]]:
    """Yield what each family says, in each spelling of the names."""
    for _, names in aliases.spellings(state.arrays):
        shapes = {name: state.arrays[old].shape for name, old in names.items()}
        for family in FAMILIES:
            guess = _guess(family, shapes)
            if guess is not None and _is_plausible(guess, shapes):
                yield guess, shapes


def _guess(family: Family, shapes: Shapes) -> Guess | None:
    """Return what a family says; shapes that its functions cannot take apart are of another."""
    try:
        return family(shapes)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None


def _is_plausible(guess: Guess, shapes: Shapes) -> bool:
    """Say whether a guess is of a size that can be tried: each block is traced, and takes a second."""
    said = (options.get(name, 0) for options in guess.choices for name in _COUNTS)
    if any(isinstance(count, int) and count > _MOST_BLOCKS for count in said):
        return False
    first, last = shapes.get(guess.first, ()), shapes.get(guess.last, ())
    return len(first) == 4 and len(last) >= 2 and 2 <= last[0] <= _MOST_CLASSES


def _recognized(
    state: StateDict, guess: Guess, shapes: Shapes, name: str, options: Mapping[str, Option]
) -> Recognized | Matching | None:
    """Try a network: return it, or how it does not fit; None if it does not have the options."""
    classes, channels = shapes[guess.last][0], shapes[guess.first][1]
    said = _said_size(state)
    known = guess.exact or said is not None
    usual = (guess.image_size, guess.image_size)
    size = usual if said is None else said
    if guess.exact and size != usual:
        # BackdoorBench's transformers enlarge their images before they look at them
        options = {**options, "resize": guess.image_size}
    try:
        model = _model(name, (*size, channels), classes, options)
        found = keys.matching(state.arrays, model)
    except InputError:
        return None
    if not found.complete:
        return found
    where = "is in the file" if known else "is the usual one of such networks, not in the file"
    why, size_why = f"{guess.why}; all {len(found.names)} arrays fit", f"the image size {where}"
    return Recognized(
        name=name,
        options=dict(options),
        num_classes=classes,
        channels=channels,
        image_size=size,
        sure="certain" if known else "likely",
        why=why,
        size_why=size_why,
        unknown=guess.unknown,
    )


def _model(
    name: str, shape: tuple[int, int, int], classes: int, options: Mapping[str, Option]
) -> Model:
    plain = (0.0,) * shape[2], (1.0,) * shape[2]
    return models.create(name, image_spec("unknown", shape, classes, *plain), **options)


def _said_size(state: StateDict) -> tuple[int, int] | None:
    """Return the image size that stands beside the weights, if one does that can be."""
    said = state.beside.get(_SIZE)
    sides = said[:2] if isinstance(said, tuple) else ()
    height, width = (*sides, 0, 0)[:2]
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    return (height, width) if 0 < min(height, width) <= max(height, width) <= _MOST_PIXELS else None


def _faults(found: Matching) -> int:
    return len(found.missing) + len(found.extra) + len(found.misshapen)


def _seen(
    state: StateDict, nearest: tuple[int, str] | None, absent: list[str], signs: list[str]
) -> str:
    if nearest is not None:
        return nearest[1]
    if absent:
        return f"it looks like {' or '.join(absent[:_SHOWN])}, which bdjax does not have"
    if signs:
        return f"it has {signs[0]}, which fit none"
    names = [printable(name, 50) for name in list(state.arrays)[:_SHOWN]]
    return f"its {len(state.arrays)} arrays begin with {', '.join(names)}"
