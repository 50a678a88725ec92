"""A poisoned data set as files, for people who train elsewhere: PNG folders, one .npz, and which images are poisoned.

``train/`` has the attacker's training images by the label that a learner is told, ``test/`` the clean test images and
``test_triggered/`` all of them with the trigger, both by their true labels. `bdjax.data.load` reads the first two.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bdjax import data
from bdjax.checks import InputError
from bdjax.data.streams import Stream
from bdjax.devices import compilation, environment, placement
from bdjax.files import atomic
from bdjax.runs import config as configs
from bdjax.runs import inputs, plan_checks, plans, schema, show
from bdjax.runs.config import Config
from bdjax.runs.execution import Execution
from bdjax.runs.plans import AttackPlan
from bdjax.train import loop
from bdjax.types import PoisonedSplit, Spec

FORMAT = 1  # of the folder
MANIFEST, ARRAYS, LABELS, CONFIG = "poison.json", "poisoned.npz", "labels.csv", "config.yaml"
_SPLITS = ("train", "test", "test_triggered")
_COLUMNS = ("file", "label", "original_label", "is_poisoned", "counts")
_CHUNK = 1000  # images that are poisoned at once where they do not all fit on the device
_STALE = 24 * 3600  # seconds after which what a killed process left is taken away
_WHAT = {
    "train": "the attacker's training images, in the folder of the label that a learner is told",
    "test": "the clean test images, in the folder of their true label",
    "test_triggered": "the same with the trigger, in the folder of their true label",
    LABELS: "of each image: label, the one that a learner is told or, with the trigger, the attacker wants; "
    "original_label, the true one; is_poisoned, whether it carries the trigger; counts, whether it counts for the "
    "attack success rate",
    ARRAYS: "all of this as arrays, in the order of the data set",
    CONFIG: "what it was made from: bdjax poison --config",
}


class Images(NamedTuple):
    """Images on the host, uint8 [n, h, w, c], and what is known of each [n]."""

    image: np.ndarray
    # As a learner is told; of test images with the trigger, the one that the attacker wants
    label: np.ndarray
    original_label: np.ndarray
    is_poisoned: np.ndarray
    counts: np.ndarray  # for the attack success rate


class PoisonedSet(NamedTuple):
    """A poisoned data set, and what it was made from."""

    plan: AttackPlan
    train: Images
    test: Images
    test_triggered: Images


def make(config: Config, execution: Execution) -> PoisonedSet:
    """Poison a data set as a run of the same config does, to the bit.

    A trigger that is learned is restored from the victim of that config, which is trained first if there is none.

    Raises:
      InputError: as for `bdjax.runs.show.attack_of`; or the attack controls the training, wants more images
      than there are, or the data are no images in classes. Stopped, Diverged: as for `bdjax.runs.run.run`.
    """
    check(config)
    with execution.computing(config):
        return _make(config, execution)


def _make(config: Config, execution: Execution) -> PoisonedSet:
    _check_spec(inputs.load(config).spec)
    plan = show.attack_of(config, execution)
    attackers = plans.attackers_images(config, plan.dataset)
    plan_checks.check_rate(plan.attack, attackers)
    plans.check_trigger(plan)
    poisoned = plans.poisoned(plan, attackers, placement.choose_place("auto", attackers))
    clean, triggered = plan.dataset.test, plans.triggered_test(plan)
    label, no_row = np.asarray(clean.label), np.zeros(len(clean.label), bool)
    return PoisonedSet(
        plan,
        _images(poisoned, np.zeros(len(attackers.label), bool)),
        Images(np.asarray(clean.input), label, label, no_row, no_row),
        _images(triggered, np.asarray(triggered.visible.valid)),
    )


def _check_spec(spec: Spec) -> None:
    """Refuse data that cannot be laid out as pictures in the folders of their classes."""
    unit, labels = spec.modality.unit, spec.task.labels
    if (unit, labels) != ("image", "class"):
        got = f"{unit}s, each with a {labels} for its label"
        raise InputError(
            f"data must be images in classes, to be folders of them; {spec.name} has {got}."
        )


def check(config: Config) -> None:
    """Refuse an attack that has no poisoned training set.

    Raises:
      InputError: it poisons each batch anew.
    """
    if configs.build_attack(config).controls_training:
        raise InputError(
            f"attack {config.attack.name} controls the training and poisons each of its batches anew, so that there is "
            f"no poisoned training set to write; bdjax run trains with it."
        )


def finished(config: Config, folder: Path) -> bool:
    """Return whether a folder holds this poisoned data set already; False where there is nothing yet.

    Raises:
      InputError: it holds something else, or is no longer whole.
    """
    check(config)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not folder.is_dir():
        raise InputError(f"out must be a folder; {folder} is a file.")
    if (manifest := atomic.read_json(folder / MANIFEST)) is None:
        raise InputError(
            f"out must be a new or an empty folder; {folder} has files in it and no {MANIFEST}."
        )
    wanted = _identity(plans.prepare_attack(config))
    if {key: manifest.get(key) for key in wanted} != wanted:
        differ = [key for key in wanted if manifest.get(key) != wanted[key]]
        raise InputError(
            f"{folder} holds a poisoned data set of another {' and '.join(differ)}; name another folder."
        )
    if lacking := next(_lacking(folder, manifest), None):
        raise InputError(
            f"{folder} is no longer whole: {lacking} is missing or has changed; delete it to make it anew."
        )
    return True


def write(
    made: PoisonedSet,
    folder: Path,
    on_image: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Write a poisoned data set into a new or an empty folder; it is there whole, or not at all.

    Args:
      made: of `make`.
      folder: for which `finished` is False.
      on_image: called with the number of images that are written and that of all.
      should_stop: asked between images.

    Raises:
      Stopped: ``should_stop`` said so; nothing is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    temporary = Path(tempfile.mkdtemp(prefix=_prefix(folder), dir=folder.parent))
    try:
        _fill(
            made, temporary, on_image or (lambda done, count: None), should_stop or (lambda: False)
        )
        temporary.chmod(0o777 & ~_umask())
        if hasattr(os, "sync"):
            os.sync()  # once for all files, before the name says that they are there
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()  # an empty one, which Windows would not replace
        temporary.rename(folder)
    except OSError:
        if not finished(made.plan.config, folder):  # another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def summary(made: PoisonedSet) -> str:
    """Return in one line what a poisoned data set has."""
    counts = _counts(made)
    target = plans.target_class(made.plan)
    aim = "" if target is None else f", target class {target}"
    return (
        f"{counts['train']} training images, {counts['poisoned']} of them poisoned; {counts['test']} test images, with "
        f"and without the trigger, of which {counts['counts']} count for the attack success rate{aim}"
    )


def class_folders(spec: Spec) -> list[str]:
    """Return the folder of each class, so named that sorting the names gives the order of the labels.

    Those are the classes' names where they are in that order, can be folders everywhere and differ by more than case;
    else the labels stand before them.
    """
    names = list(spec.class_names) or [str(label) for label in range(spec.num_classes)]
    plain = all(re.fullmatch(r"\w[\w .+-]{0,99}", name) and name[-1] not in " ." for name in names)
    if plain and names == sorted(names) and len({name.casefold() for name in names}) == len(names):
        return names
    digits = len(str(len(names) - 1))
    return [
        f"{label:0{digits}}_{re.sub(r'[^A-Za-z0-9-]', '_', name)[:50]}"
        for label, name in enumerate(names)
    ]


def _images(split: PoisonedSplit, counts: np.ndarray) -> Images:
    label, original, is_poisoned = map(
        np.asarray, (split.visible.label, split.original_label, split.is_poisoned)
    )
    return Images(_on_host(split.visible.input), label, original, is_poisoned, counts)


def _on_host(image: Any) -> np.ndarray:
    """Return images as an array, those of a stream piece by piece."""
    if not isinstance(image, Stream):
        return np.asarray(image)
    given = image.change
    change = compilation.jit(
        lambda pixels, row: pixels if given is None else given(pixels, row), tuned=False
    )
    out = np.empty(image.shape, np.uint8)
    for start in range(0, len(out), _CHUNK):
        rows = np.minimum(np.arange(start, start + _CHUNK), len(out) - 1)  # one shape, one program
        pixels = np.asarray(change(image.images[rows], jnp.asarray(rows)))
        out[start : start + _CHUNK] = pixels[: len(out) - start]
    return out


def _identity(plan: AttackPlan) -> dict[str, Any]:
    """Return what decides the poisoned data set, as plain values."""
    config = plan.config.victim_dict()
    config["data"] = {key: value for key, value in config["data"].items() if key != "data_dir"}
    if plan.attack.by_formula:
        del config["model"], config["training"]
        config.pop("matmul_precision", None)
    return {"format": FORMAT, "config": config, "fingerprint": plan.inputs.fingerprint}


def _lacking(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Yield the files that are missing, and of the large ones those that have changed."""
    digests = manifest.get("sha256")
    for name in (LABELS, ARRAYS):
        known = digests.get(name) if isinstance(digests, dict) else None
        if not (folder / name).is_file() or data.fingerprint_file(folder / name) != known:
            yield name
    with (folder / LABELS).open(encoding="utf-8", newline="") as file:
        yield from (
            row["file"] for row in csv.DictReader(file) if not (folder / row["file"]).is_file()
        )


def _fill(
    made: PoisonedSet,
    folder: Path,
    on_image: Callable[[int, int], None],
    should_stop: Callable[[], bool],
) -> None:
    from bdjax.data.sources._images import write_png  # Pillow, only where there are images to write

    classes = class_folders(made.plan.dataset.spec)
    parts = {name: getattr(made, name) for name in _SPLITS}
    files = {name: _files(name, part, classes) for name, part in parts.items()}
    for place in {Path(file).parent for listed in files.values() for file in listed}:
        (folder / place).mkdir(parents=True)
    count, done = sum(map(len, files.values())), 0
    for name, listed in files.items():
        for file, pixels in zip(listed, parts[name].image, strict=True):
            if should_stop():
                raise loop.Stopped(f"stopped after {done} of {count} images, none of which is kept")
            write_png(folder / file, pixels)
            done += 1
            on_image(done, count)
    atomic.write_text(folder / LABELS, _table(files, parts))
    atomic.write_arrays(folder / ARRAYS, **_arrays(made))
    whole = dataclasses.replace(
        made.plan.config, data=dataclasses.replace(made.plan.config.data, data_dir=None)
    )
    atomic.write_text(folder / CONFIG, schema.to_yaml(whole.to_dict()))
    atomic.write_json(folder / MANIFEST, _manifest(made, folder, classes))


def _files(split: str, images: Images, classes: Sequence[str]) -> list[str]:
    """Return the file of each image: its row in the split, in the folder of what a learner is told or of the truth."""
    label = images.label if split == "train" else images.original_label
    digits = max(5, len(str(len(label) - 1)))
    return [
        f"{split}/{classes[number]}/{row:0{digits}}.png"
        for row, number in enumerate(label.tolist())
    ]


def _table(files: dict[str, list[str]], parts: dict[str, Images]) -> str:
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(_COLUMNS)
    for name, listed in files.items():
        known = (column.astype(int).tolist() for column in parts[name][1:])
        table.writerows(zip(listed, *known, strict=True))
    return text.getvalue()


def _arrays(made: PoisonedSet) -> dict[str, np.ndarray]:
    named = {
        f"{name}_{field}": getattr(getattr(made, name), field)
        for name in _SPLITS
        for field in Images._fields
    }
    kept = {
        key: array
        for key, array in named.items()
        if key != "train_counts" and not key.startswith("test_is")
    }
    for key in ("test_original_label", "test_counts"):  # say nothing of clean test images
        del kept[key]
    return {**kept, "class_names": np.asarray(made.plan.dataset.spec.class_names, str)}


def _counts(made: PoisonedSet) -> dict[str, int]:
    return {
        "train": len(made.train.label),
        "poisoned": int(made.train.is_poisoned.sum()),
        "test": len(made.test.label),
        "counts": int(made.test_triggered.counts.sum()),
    }


def _manifest(made: PoisonedSet, folder: Path, classes: Sequence[str]) -> dict[str, Any]:
    spec = made.plan.dataset.spec
    names = list(spec.class_names) or list(map(str, range(spec.num_classes)))
    return {
        **_identity(made.plan),
        "what": _WHAT,
        "attack": made.plan.config.attack.name,
        "target_class": plans.target_class(made.plan),
        "classes": [
            {"label": label, "name": name, "folder": place}
            for label, (name, place) in enumerate(zip(names, classes, strict=True))
        ],
        "counts": _counts(made),
        "versions": environment.versions(),
        "sha256": {name: data.fingerprint_file(folder / name) for name in (LABELS, ARRAYS)},
    }


def _prefix(folder: Path) -> str:
    return f".{folder.name}.partial-"


def _sweep(folder: Path) -> None:
    """Take away what a killed process left a day ago or earlier."""
    for left in folder.parent.glob(f"{_prefix(folder)}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                shutil.rmtree(left)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
