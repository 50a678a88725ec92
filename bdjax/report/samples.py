"""Test images of finished runs, clean and triggered, and what the networks made of them before and after."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bdjax.checks import InputError
from bdjax.files.atomic import damaged, read_arrays
from bdjax.files.printable import printable
from bdjax.report.labels import LONGEST
from bdjax.report.records import Record
from bdjax.report.rows import Row, victims
from bdjax.report.standing import best
from bdjax.runs.folder import SAMPLES

# Arrays of the file
PREDICTIONS = ("clean_before", "clean_after", "triggered_before", "triggered_after")
_HIT = "_hit"  # after the name of a prediction: whether it is what the attacker wants
_UNKNOWN = -1  # what the attacker wants, where the label map is not known
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Test images of one run and what the model made of them before and after the defense.

    A label, or a prediction, is the number of a class, or a text where the task has other labels.
    """

    row: Row
    record: Record
    best: bool  # whether no other defense has a higher mean rating
    # Clean, triggered [k, h, w, c]; label and predictions [k], and which are hits
    arrays: Mapping[str, np.ndarray]
    attacker_label: np.ndarray  # [k]; -1, or no text, where it is unknown

    def outcome(self, prediction: str, i: int) -> str:
        """Say whether a prediction is ``right``, the attacker's (``hit``), or ``other``."""
        value = self.arrays[prediction][i]
        if value == self.arrays["label"][i]:
            return "right"
        hits = self.arrays.get(f"{prediction}{_HIT}")
        is_hit = value == self.attacker_label[i] if hits is None else hits[i]
        return "hit" if is_hit else "other"

    def class_name(self, label: int | str) -> str:
        """Return the name of a class, or a label that is a text."""
        if isinstance(label, str):
            return printable(label, LONGEST)
        names = self.record.content["data"]["class_names"]
        return printable(str(names[label]), LONGEST) if 0 <= label < len(names) else str(label)


def read_samples(rows: Sequence[Row]) -> dict[str, Sample]:
    """Return one run with test images per victim: the lowest seed of the defense with the highest mean rating.

    Where that one has no images, it is the first row that has.

    Raises:
        InputError: damaged test images.
    """
    found, lacking = {}, []
    for title, group in victims(rows).items():
        marked = best([row for row in group if row.name("defense") != "none"] or group)
        ranked = sorted(group, key=lambda row: (row not in marked, row.name("defense") == "none"))
        pictured = _first_with_images(ranked)
        if pictured is None:
            lacking.append(title)
        else:
            row, record = pictured
            arrays = _read(record)
            found[title] = Sample(
                row, record, row in marked, arrays, attacker_label(record, arrays["label"])
            )
    if lacking:
        _log.warning(
            "No test images are drawn of %s: no run of theirs has a %s.",
            ", ".join(lacking),
            SAMPLES,
        )
    return found


def _first_with_images(rows: Sequence[Row]) -> tuple[Row, Record] | None:
    for row in rows:
        for record in row.records:
            if (record.folder / SAMPLES).is_file():
                return row, record
    return None


def _read(record: Record) -> dict[str, np.ndarray]:
    """Return a run's images, labels and predictions, or refuse what a figure could not be drawn of."""
    file = record.folder / SAMPLES
    stored = read_arrays(file) or {}
    if str(stored.pop("run", record.run_id)) != record.run_id:
        raise damaged(file, "it is of another run")
    names = ("clean", "triggered", "label", *PREDICTIONS)
    if lacking := [name for name in names if name not in stored]:
        raise damaged(file, f"it lacks the array {lacking[0]}")
    arrays = {name: stored[name] for name in names}
    shape = arrays["clean"].shape
    if len(shape) != 4 or not shape[0] or shape[3] not in (1, 3):
        raise InputError(
            f"clean in {file} must have the shape (images, height, width, 1 or 3), got {shape}."
        )
    for name in ("clean", "triggered"):
        _check(arrays, name, shape, "u", file)
    are_texts = arrays["label"].dtype.kind == "U"
    for name in ("label", *PREDICTIONS):
        _check(arrays, name, shape[:1], "U" if are_texts else "iu", file)
        arrays[name] = arrays[name] if are_texts else arrays[name].astype(np.int64)
    for name in (f"{name}{_HIT}" for name in PREDICTIONS):
        if name in stored:  # as an older bdjax did not write it
            arrays[name] = stored[name]
            _check(arrays, name, shape[:1], "b", file)
    return arrays


def _check(
    arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], kinds: str, file: Path
) -> None:
    """Refuse an array of another shape, or of another kind of values."""
    array = arrays[name]
    if array.shape != shape or array.dtype.kind not in kinds:
        held = {"U": "texts", "b": "truth values"}.get(kinds, "whole numbers")
        raise InputError(
            f"{name} in {file} must hold {held} of the shape {shape}, got {array.shape}."
        )


def attacker_label(record: Record, label: np.ndarray) -> np.ndarray:
    """Return the label that the attacker wants instead of each; -1, or no text, where the label map is unknown."""
    attack = record.config["attack"]
    if label.dtype.kind == "U":
        return np.full_like(label, "")
    if attack.get("label_map") == "all_to_one":
        return np.full_like(label, _target(record))
    if attack.get("label_map") == "all_to_all":
        return (label + 1) % record.content["data"]["num_classes"]
    return np.full_like(label, _UNKNOWN)


def _target(record: Record) -> int:
    """Return the number of the class that the attacker wants, which a config may name."""
    target = record.config["attack"].get("target_label", _UNKNOWN)
    if not isinstance(target, str):
        return target
    names = record.content["data"]["class_names"]
    named = record.content["data"].get("target_class", target)
    return names.index(named) if named in names else _UNKNOWN


def choose(sample: Sample, most: int) -> list[int]:
    """Choose images that the attack is meant to change, one of each label first; predictions play no part."""
    label = sample.arrays["label"]
    changed = [i for i in range(len(label)) if label[i] != sample.attacker_label[i]] or list(
        range(len(label))
    )
    first = {label[i]: i for i in reversed(changed)}.values()
    return sorted(sorted(changed, key=lambda i: i not in first)[:most])
