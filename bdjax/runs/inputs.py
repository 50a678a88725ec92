"""What a run reads: its data and the files that its options name, known by their content.

Data are loaded once for all runs of a process, and anew when their files change.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from bdjax import data
from bdjax.checks import InputError, in_section
from bdjax.data import splits
from bdjax.runs import config as configs
from bdjax.runs.config import Config, DataConfig
from bdjax.types import Dataset, Modality, Spec, Split

# The SHA-256 of both splits and, under ``files``, of the files that options name, by those.
Fingerprint: TypeAlias = dict[str, Any]

_ANOTHER = "holdout.another"  # among the files of a fingerprint
_QUICK, _WORTH = 0.05, 50  # seconds; a stamp that took longer counts for so many times what it took
_stamps: dict[tuple[str, str | None], tuple[str, float]] = {}  # of data, and until when they count


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The data of a run, looked up where they are needed, and what tells them and its files from any others.

    It holds no image itself, so that the plans of many runs are small: the few data sets that were asked for last are
    kept for all of them, and others are read again.
    """

    data: DataConfig
    on_disk: bool
    spec: Spec
    fingerprint: Fingerprint
    stamp: str  # of the files that this is the fingerprint of
    data_stamp: str  # of the data's own among them

    @property
    def dataset(self) -> Dataset:
        """The images and labels.

        Raises:
          InputError: they had to be read again and are others now.
        """
        dataset, digests = _load(self.data, self.on_disk, self.data_stamp)
        if any(self.fingerprint.get(split) != digest for split, digest in digests.items()):
            name = self.data.name
            raise InputError(
                f"the data {name} must not change while they are worked with; they have."
            )
        return dataset

    @property
    def another_digest(self) -> str | None:
        """The digest of the other set that the defender's images are drawn from, None without one."""
        return self.fingerprint.get("files", {}).get(_ANOTHER)


class Another(NamedTuple):
    """The images of another set with the numbers that the run's classes have, and their SHA-256."""

    images: Split
    digest: str


def load(config: Config, on_disk: bool = False) -> Inputs:
    """Return the data with the config's changes, as they are on the disk now.

    Args:
      config: of the run.
      on_disk: leave the training images there, as `bdjax.data.load` does.

    Raises:
      InputError: the data, or a file that an option names, cannot be read.
    """
    # Before anything is read, so that a change in the meantime shows
    seen, own = stamp(config), _data_stamp(config)
    dataset, digests = _load(config.data, on_disk, own)
    files = {option: _digest(option, path) for option, path in configs.files(config).items()}
    if config.holdout.another is not None:
        files[_ANOTHER] = another(config, dataset.spec).digest
    fingerprint = {**digests, "files": files} if files else {**digests}
    return Inputs(config.data, on_disk, dataset.spec, fingerprint, seen, own)


def stamp(config: Config) -> str:
    """Return what shows, without reading them, that the files of a run are as they were: `bdjax.data.stamp`."""
    own = f"{_data_stamp(config)} {data.stamp_of(configs.files(config).values())}"
    return own if config.holdout.another is None else f"{own} {_another_stamp(config)}"


def of_victim(fingerprint: Fingerprint) -> Fingerprint:
    """Return what a victim is made of: the defender's images of another set are none of it."""
    files = {key: value for key, value in fingerprint.get("files", {}).items() if key != _ANOTHER}
    rest = {key: value for key, value in fingerprint.items() if key != "files"}
    return {**rest, "files": files} if files else rest


def another(config: Config, spec: Spec, known: str | None = None) -> Another:
    """Return the other set that the defender's images are drawn from, as images of the run's shape and classes.

    Args:
      config: of the run.
      spec: of its data.
      known: the digest that it has to have; None takes it as it is now.

    Raises:
      InputError: it cannot be read, has other classes, or is not the one that is known.
    """
    wanted = config.holdout.another
    assert wanted is not None
    with in_section("holdout.another", ()):
        found = _load_another(wanted, config.data.data_dir, spec, _another_stamp(config))
    if known not in (None, found.digest):
        raise InputError(
            f"the data {wanted} (holdout.another) must not change while they are worked with; "
            "they have."
        )
    return found


def _another_stamp(config: Config) -> str:
    name, data_dir = data.locate(str(config.holdout.another), config.data.data_dir)
    return data.stamp(name, data_dir=data_dir)


@functools.lru_cache(maxsize=1)
def _load_another(name: str, data_dir: str | None, spec: Spec, stamp: str) -> Another:
    del stamp  # another one loads anew
    height, width, channels = spec.shape
    size = height if height == width else None
    if data.is_known(name):
        found = data.load(name, data_dir=data_dir, image_size=size)
    else:
        own, folder = data.locate(name, data_dir)
        path = data.folder_of(own, folder)
        classes = {"num_classes": spec.num_classes, "class_names": spec.class_names}
        found = data.load_clean(path, **classes, channels=channels, image_size=size)
    if (found.spec.shape, found.spec.task.labels) != (spec.shape, spec.task.labels):
        wanted = f"inputs of shape {spec.shape}, each with a {spec.task.labels} for its label"
        got = f"{found.spec.shape} and a {found.spec.task.labels}"
        raise InputError(f"must have {wanted}, as {spec.name} has; got {got}.")
    found = found._replace(train=_with_classes_of(spec, found))
    return Another(found.train, data.fingerprint(found)["train"])


def _with_classes_of(spec: Spec, found: Dataset) -> Split:
    """Return a split's rows with the numbers that a run's classes have, by their names."""
    names, own = spec.class_names, found.spec.class_names
    if found.spec.num_classes != spec.num_classes and not (names and own):
        wanted = f"{spec.num_classes} classes, as {spec.name} has"
        raise InputError(f"must have {wanted}; {found.spec.name} has {found.spec.num_classes}.")
    if names == own or not (names and own):
        return found.train
    for where, some in ((spec.name, names), (found.spec.name, own)):
        if twice := [name for name in some if some.count(name) > 1]:
            wrong = f"{where} has {twice[0]!r} {some.count(twice[0])} times"
            raise InputError(f"must have classes that their names tell apart; {wrong}.")
    if set(names) != set(own):
        differ = sorted(set(names) ^ set(own))[0]
        where = spec.name if differ in names else found.spec.name
        raise InputError(f"must have the classes of {spec.name}; only {where} has {differ!r}.")
    label = np.asarray(found.train.label)
    if label.ndim == 2:  # a column for each class
        label = label[:, [own.index(name) for name in names]]
    else:
        label = np.array([names.index(name) for name in own], np.int32)[label]
    return found.train._replace(label=label)  # type: ignore[arg-type]


def differences(begun: Mapping[str, Any], now: Fingerprint, config: Config) -> list[str]:
    """Name what two fingerprints of a run do not share: images, and files by the options that name them."""
    words = {"train": "the training images", "test": "the test images"}
    found = [word for split, word in words.items() if begun.get(split) != now.get(split)]
    paths, earlier, later = (
        configs.files(config),
        begun.get("files", {}),
        now.get("files", {}),
    )
    for option in sorted({*earlier, *later}):
        if earlier.get(option) != later.get(option):
            found.append(f"{option} {paths.get(option, '')}".rstrip())
    return found


def _digest(option: str, path: Path) -> str:
    try:
        return data.fingerprint_file(path)
    except InputError as error:
        raise InputError(f"{option} must be a readable file: {error}") from error


def _data_stamp(config: Config) -> str:
    """Return the data's stamp; one that took long, of very many files, counts for a while."""
    wanted = (config.data.name, config.data.data_dir)
    found, until = _stamps.get(wanted, ("", 0.0))
    started = time.monotonic()
    if started < until:
        return found
    found = data.stamp(config.data.name, data_dir=config.data.data_dir)
    took = time.monotonic() - started
    _stamps[wanted] = found, (started + _WORTH * took if took > _QUICK else 0.0)
    return found


@functools.lru_cache(maxsize=2)
def _load(wanted: DataConfig, on_disk: bool, stamp: str) -> tuple[Dataset, Fingerprint]:
    del stamp  # another one loads anew
    where = {"data_dir": wanted.data_dir, "image_size": wanted.image_size}
    dataset = data.load(wanted.name, **where, on_disk=on_disk)
    asked = {"crop_padding": wanted.crop_padding, "flip": wanted.flip}
    changes = {name: value for name, value in asked.items() if value is not None}
    spec = dataset.spec
    if changes:
        spec = dataclasses.replace(spec, modality=_changed(spec.modality, changes))
    if changes.get("crop_padding", 0) > (side := max(spec.shape[:2])):
        raise InputError(
            f"data.crop_padding must be at most {side}, the images' side; got {wanted.crop_padding}."
        )
    if wanted.train_count is not None:
        available = dataset.train.label.shape[0]
        if wanted.train_count > available:
            raise InputError(
                f"data.train_count must be at most {available}; got {wanted.train_count}."
            )
        key, strata = jax.random.key(0), splits.by_stratum(dataset.train, spec.task)
        rows = splits.subset(key, strata, wanted.train_count, num_classes=spec.task.strata)
        group = None if dataset.train_group is None else dataset.train_group[rows]
        dataset = dataset._replace(train=splits.take(dataset.train, rows), train_group=group)
    return dataset._replace(spec=spec), data.fingerprint(dataset)


def _changed(modality: Any, changes: Mapping[str, Any]) -> Modality:
    """Return a modality with another standard augmentation, where it has such a one."""
    for name, value in changes.items():
        if not hasattr(modality, name):
            raise InputError(
                f"data.{name} must be left out for {modality.unit}s, which are not augmented so; got {value}."
            )
    return dataclasses.replace(modality, **changes)
