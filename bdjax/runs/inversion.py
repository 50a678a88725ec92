"""What trigger inversion finds in a network before and after a defense, as plain values, words and arrays."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdjax.data import splits
from bdjax.defenses import _inversion, _inversion_words
from bdjax.defenses._inversion import Inverted
from bdjax.files.atomic import Plain
from bdjax.files.printable import printable
from bdjax.runs import chance, plans
from bdjax.runs.config import Config
from bdjax.runs.strongest import Network
from bdjax.types import Model, Split

PRESET = "quick_look"
IMAGES = 50  # that are looked at; more make it slower, and hardly another answer
_SHOWN = 3  # classes whose triggers are kept to be shown


def compare(
    config: Config, before: Network, after: Network, split: Split
) -> tuple[Plain, dict[str, np.ndarray]]:
    """Return what was found, and the triggers of a few classes as arrays of 8 bits.

    Args:
      config: whose seed decides the draws.
      before, after: the networks, of one model, so that the program is compiled once.
      split: clean images that the defense may have seen; the first `IMAGES` are looked at.
    """
    key = jax.random.fold_in(plans.key_for(config, "analysis"), 0)
    seen = splits.take(split, np.arange(min(IMAGES, len(split.label))))
    settings = _inversion.of_preset(PRESET)
    found = [_inversion.invert(key, *network, seen, settings) for network in (before, after)]
    # Of folders, whose names need not be text, and a record must
    names = tuple(map(printable, before.model.spec.class_names))
    plain: Plain = {
        "preset": PRESET,
        "images": len(seen.label),
        "before": _plain(found[0], names),
        "after": _plain(found[1], names),
        "carried": _carried(found[0], before, after, seen),
        "words": {
            when: [_inversion_words.sentences(one, names)]
            for when, one in zip(("before", "after"), found, strict=True)
        },
        "limits": _inversion_words.LIMITS,
    }
    return plain, _arrays(before.model, *found)


def _carried(found: Inverted, before: Network, after: Network, split: Split) -> list[Plain]:
    """Return of the smallest triggers found before how many images of other classes each sends to its class.

    Whether what was found still works says more of a defense than what is found afterwards: that is another search.
    """
    images = np.asarray(before.model.spec.modality.load(jnp.asarray(split.input)))
    label, carried = np.asarray(split.label), []
    for number in map(int, _smallest(found)):
        mask, others = found.mask[number][..., None], images[label != number]
        if not found.found[number] or not len(others):
            continue
        triggered = (1 - mask) * others + mask * found.pattern[number]
        sent = [
            int((chance.answers(*network, triggered.astype(np.float32)) == number).sum())
            for network in (before, after)
        ]
        carried.append({"class": number, "before": sent[0], "after": sent[1], "of": len(others)})
    return carried


def _smallest(found: Inverted) -> np.ndarray:
    """Return the classes with the smallest triggers, the smallest first."""
    return np.argsort(found.size, kind="stable")[:_SHOWN]


def _plain(found: Inverted, names: tuple[str, ...]) -> Plain:
    lines = _inversion_words.lines(found, names)
    return {
        "norm": [line.pixels for line in lines],
        "success": [line.success for line in lines],
        "index": [None if math.isnan(line.index) else line.index for line in lines],
        "suspect": [line.is_suspect for line in lines],
        "found": [line.found for line in lines],
    }


def _arrays(model: Model, before: Inverted, after: Inverted) -> dict[str, Any]:
    """Return mask and pattern of the classes with the smallest triggers before, in both networks."""
    chosen = _smallest(before)
    arrays: dict[str, Any] = {"classes": chosen}
    for when, found in (("before", before), ("after", after)):
        arrays[f"mask_{when}"] = _stored(found.mask[chosen])
        arrays[f"pattern_{when}"] = _stored(found.pattern[chosen])
    return arrays


def _stored(values: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8)
