"""What the record of a purification holds, key by key.

Names that somebody else gave are made printable: a file of JSON with half a character in it could not be read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

from bdjax import structure
from bdjax.devices import environment
from bdjax.files.atomic import Plain
from bdjax.files.printable import printable
from bdjax.models.foreign.normalization import Normalization
from bdjax.runs import distance, schema
from bdjax.runs.clean_images import CleanImages, Parts
from bdjax.runs.config import Config
from bdjax.runs.preparation import Prepared
from bdjax.runs.strongest import Outcome
from bdjax.runs.suspect import Suspect


def finished(
    prepared: Prepared,
    parts: Parts,
    outcome: Outcome,
    answers: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]],
    more: Mapping[str, Any],
) -> Plain:
    """Return the record of a purification.

    Args:
      prepared: what it began with.
      parts: the images by what they were used for.
      outcome: of the defense.
      answers: to the images kept aside, before and after.
      more: keys that are made elsewhere.
    """
    before, after = answers
    network, result = prepared.network, outcome.result
    of = len(before)
    return {
        "identity": prepared.identity,
        "suspect": _suspect(prepared.suspect),
        "network": _of_network(prepared),
        "normalization": _normalization(prepared.normalization),
        "data": _data(prepared.images, parts),
        "defense": prepared.config.to_dict()["defense"],
        "selection": _selection(prepared.config, outcome),
        "accuracy": {
            "before": {"right": int((before == parts.kept.label).sum()), "of": of},
            "after": {"right": int((after == parts.kept.label).sum()), "of": of},
            "changed_answers": int((before != after).sum()),
        },
        "weights": distance.between(network.variables, result.variables),
        "history": [row._asdict() for row in result.history],
        "versions": environment.versions(),
        "device": environment.device(1),
        **more,
    }


def defense(config: Config, chosen: float | None) -> Plain:
    """Return the section ``defense`` of a config, with the strength that was chosen in the place of ``auto``."""
    section = config.to_dict()["defense"]
    if chosen is None or config.strength is None:
        return section
    value: Any = chosen
    for key in reversed(config.strength.path.split(".")[1:]):
        value = {key: value}
    return schema.merge(section, value)


def _suspect(found: Suspect) -> Plain:
    state = found.state
    return {
        "name": printable(found.file.name),
        "sha256": found.sha256,
        "format": state.format,
        "wrappers": list(map(printable, state.wrappers)),
        "notes": list(map(printable, state.notes)),
    }


def _of_network(prepared: Prepared) -> Plain:
    seen, spec = prepared.suspect.recognized, prepared.images.spec
    model = prepared.config.to_dict()["model"]
    sizes = [
        np.size(leaf) for leaf in structure.flat(prepared.network.variables["params"]).values()
    ]
    return {
        "name": model.pop("name"),
        "options": model,
        "num_classes": spec.num_classes,
        "class_names": list(map(printable, spec.class_names)),
        "shape": list(spec.shape),
        "parameters": int(sum(sizes)),
        "why": "as asked for" if seen is None else seen.why,
    }


def _normalization(how: Normalization) -> Plain:
    return {"mean": list(how.mean), "std": list(how.std), "why": how.why}


def _data(images: CleanImages, parts: Parts) -> Plain:
    return {
        "name": printable(images.name),
        "fingerprint": images.fingerprint,
        "count": len(images.split.label),
        "given": len(parts.given.label),
        "choosing": 0 if parts.choosing is None else len(parts.choosing.label),
        "kept": len(parts.kept.label),
        "of_training": images.of_training,
        "notes": list(map(printable, images.notes)),
    }


def _selection(config: Config, outcome: Outcome) -> Plain | None:
    if outcome.chosen is None or config.strength is None or config.selection is None:
        return None
    return {
        "option": config.strength.path.removeprefix("defense."),
        "chosen": outcome.chosen,
        "within_budget": outcome.within_budget,
        "budget": config.selection.budget,
        "right_before": outcome.right_before,
        "values": list(config.strength.values),
        "trials": [trial._asdict() for trial in outcome.trials],
    }
