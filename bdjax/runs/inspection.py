"""What can be said of a file of weights before an image is seen: plain values, and the same in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bdjax.files.atomic import Plain
from bdjax.runs import suspect
from bdjax.runs.suspect import Suspect

_SHOWN = 4  # names of a list that is shown in words


def inspect(file: Path, part: str | None = None) -> Plain:
    """Return what a file holds, as plain values.

    Args:
      file: its path.
      part: the entry with the weights, in a file of several sets.

    Raises:
      InputError: it cannot be read, or holds anything but data.
    """
    found = suspect.look(file, part)
    state = found.state
    kinds = Counter(array.dtype.name for array in state.arrays.values())
    return {
        "file": str(file),
        "sha256": found.sha256,
        "format": state.format,
        "wrappers": list(state.wrappers),
        "arrays": len(state.arrays),
        "numbers": int(sum(array.size for array in state.arrays.values())),
        "types": dict(kinds),
        "network": _network(found),
        "normalization": _normalization(found),
        "beside": {name: _plain(value) for name, value in state.beside.items()},
        "notes": list(state.notes),
        "not_finite": suspect.not_finite(state),
    }


def lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what `inspect` found as heads and words, in the order in which they are read."""
    network, how = found["network"], found["normalization"]
    said = [("file", found["file"]), ("format", found["format"])]
    if found["wrappers"]:
        said.append(("taken off", ", ".join(found["wrappers"])))
    said += _of_network(network)
    if how is not None:
        said.append(("normalization", f"{how['words']} ({how['why']})"))
    else:
        said.append(
            ("normalization", "not known: give --mean and --std, or --mean none, to purify")
        )
    types = ", ".join(f"{count} {name}" for name, count in found["types"].items())
    said.append(("weights", f"{found['numbers']:,} numbers in {found['arrays']} arrays ({types})"))
    if found["not_finite"]:
        said.append(("NaN or infinite", _listed(found["not_finite"])))
    for name, value in found["beside"].items():
        said.append((f"beside: {name}"[:40], str(value)))
    said += [("note", note) for note in found["notes"]]
    said.append(("SHA-256", found["sha256"]))
    return said


def _of_network(network: Mapping[str, Any]) -> list[tuple[str, str]]:
    if network["name"] is None:
        return [("network", f"not recognized: {network['why']}")]
    options = " ".join(f"{name}={value}" for name, value in network["options"].items())
    height, width = network["image_size"]
    usual = "" if network["sure"] == "certain" else " usually, "
    side = f"{height}×{width}{usual or ', '}"
    channels = network["channels"]
    return [
        ("network", f"{network['name']} {options}".rstrip()),
        ("because", f"{network['sure']}: {network['why']}"),
        ("classes", str(network["num_classes"])),
        ("images", f"{side}{channels} channel{'s' * (channels > 1)}"),
        *([("to be given", network["to_be_given"])] if network["to_be_given"] else []),
    ]


def _network(found: Suspect) -> Plain:
    seen = found.recognized
    if seen is None:
        return {"name": None, "why": found.why_not}
    return {
        "name": seen.name,
        "options": dict(seen.options),
        "num_classes": seen.num_classes,
        "channels": seen.channels,
        "image_size": list(seen.image_size),
        "sure": seen.sure,
        "why": f"{seen.why}; {seen.size_why}",
        "to_be_given": suspect.to_be_given(seen) if seen.unknown else None,
    }


def _normalization(found: Suspect) -> Plain | None:
    seen = found.recognized
    if seen is None:
        return None
    how = suspect.known_normalization(found, seen.channels, seen.num_classes)
    if how is None:
        return None
    return {"mean": list(how.mean), "std": list(how.std), "words": how.words, "why": how.why}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: no tuples, and nothing that is not finite."""
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
