"""What a run is asked to do, as one frozen value.

Precedence: the factory's default < preset < what suits the data set (`bdjax.data.defaults`) < file < command line.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bdjax import attacks, data, defenses, models, registry
from bdjax.checks import (
    LARGEST,
    InputError,
    below_one,
    in_section,
    integer,
    one_of,
    positive,
    unit_interval,
)
from bdjax.defenses import Defense
from bdjax.devices.numerics import MatmulPrecision
from bdjax.poison import ROUNDINGS
from bdjax.runs.given import VictimConfig
from bdjax.runs.schema import (
    AUTO,
    DEFAULT_NAMES,
    Choice,
    as_mapping,
    convert,
    merge,
    plain,
    read_choice,
    read_options,
    read_section,
    refuse_unknown,
    shared_options,
)
from bdjax.train.adaptive import Training, training
from bdjax.types import Attack, Model, Spec

DEFAULTS = {section: {"name": name} for section, name in DEFAULT_NAMES.items()}
_WHERE_ASKED = (
    "victim",
    "selection",
    "matmul_precision",
)  # fields that are left out where they are None
PAPERS_HOLDOUT = {"share": 0.05}


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data.

    Attributes:
      name: a data set of `bdjax list data`; or a folder ``name/train/<class>/*.png`` in ``data_dir``, or its path, of
        which `resolve` makes name and ``data_dir`` (`bdjax.data.locate`).
      data_dir: where prepared data lie; else ``BDJAX_DATA_DIR``, else tfds' own folder. Not part of a run's identity.
      image_size: resize all images to squares of this side; None leaves them.
      train_count: use this many training images, the same for every seed; None is all.
      crop_padding, flip: replace the data set's standard augmentation; None keeps it.
    """

    name: str = "digits"
    data_dir: str | None = None
    image_size: int | None = None
    train_count: int | None = None
    crop_padding: int | None = None
    flip: bool | None = None

    def check(self) -> None:
        """Raise InputError for a value out of range."""
        for field in ("name", "data_dir"):
            if getattr(self, field) == "":
                raise InputError(f"{field} must name a folder, got ''.")
        for field in ("image_size", "train_count"):
            if getattr(self, field) is not None:
                integer(1, **{field: getattr(self, field)})
        if self.crop_padding is not None:
            integer(crop_padding=self.crop_padding)

    @property
    def folder_name(self) -> str:
        """The name as a part of a folder's."""
        return self.name.removeprefix("./").replace(":", "-").replace("/", "-")

    def located(self) -> DataConfig:
        """Return the same with the folder's own name where it is given by its path, which is not part of a run."""
        name, data_dir = data.locate(self.name, self.data_dir)
        return dataclasses.replace(self, name=name, data_dir=data_dir)


@dataclasses.dataclass(frozen=True)
class HoldoutConfig:
    """The defender's clean images, drawn from the clean version of the training split.

    Attributes:
      share: of the training split, in (0, 1]; `PAPERS_HOLDOUT` unless the data set has a default of its own.
      per_class: this many of each class instead.
      balanced: the same number of each class, ⌊share · N / C⌋.
      held_out: whether the attacker trains without these images (SFT, NFT) or also has them (FT-SAM).
      by_group: whether near duplicates (`Dataset.train_group`) are drawn together, and held out together; unless it is
        given, where the images are held out and the data set knows of any.
      another: draw from the training split of another set with the same classes, a data set's name or a path.
      wrong_labels: this share of the images has a wrong label, each of the others alike.
    """

    share: float | None = None
    per_class: int | None = None
    balanced: bool = True
    held_out: bool = False
    by_group: bool | None = None
    another: str | None = None
    wrong_labels: float = 0.0

    def check(self) -> None:
        """Raise InputError for a value out of range."""
        if (self.share is None) == (self.per_class is None):
            both = f"{self.share!r} and {self.per_class!r}"
            raise InputError(
                f"share and per_class exclude each other, got {both}: give one and null for the other."
            )
        if self.share is not None:
            unit_interval(share=self.share)
        if self.per_class is not None:
            integer(1, per_class=self.per_class)
        unit_interval(wrong_labels=self.wrong_labels)
        if self.another == "":
            raise InputError("another must name a data set or a folder, got ''.")
        for field in ("held_out", "by_group"):
            if self.another is not None and getattr(self, field):
                why = "which the attacker does not have"
                raise InputError(f"{field} must be false with another's images, {why}.")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; what is seldom asked for is left out unless it is, so that names stay as they are."""
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if name not in _SELDOM or value != getattr(HoldoutConfig, name)
        }


_SELDOM = ("by_group", "another", "wrong_labels")


@dataclasses.dataclass(frozen=True)
class PoisonConfig:
    """How triggered images are stored: ``rounding`` to 8 bits is ``nearest``, or ``truncate`` as BackdoorBench does."""

    rounding: str = "nearest"

    def check(self) -> None:
        """Raise InputError for an unknown rounding."""
        one_of(ROUNDINGS, rounding=self.rounding)


@dataclasses.dataclass(frozen=True)
class SelectionConfig:
    """How a strength that is ``auto`` is chosen: `bdjax.runs.strength.choose`.

    Attributes:
      budget: largest fall of the accuracy, absolute, in [0, 1]; below the share of one image aside it allows none.
      aside: share of the holdout on which it is measured and that the defense is not given, in (0, 1).
    """

    budget: float = 0.02
    aside: float = 0.2

    def check(self) -> None:
        """Raise InputError for a value out of range."""
        unit_interval(budget=self.budget)
        positive(aside=self.aside)
        below_one(aside=self.aside)


@dataclasses.dataclass(frozen=True)
class Config:
    """A run: one victim, one defense, one seed. `resolve` makes it from plain values.

    ``victim`` is None, and in no record, unless the network was trained elsewhere; then there is no training, and what
    the attack says is how a test image gets the trigger. ``selection`` is None, and in no record, unless an option of
    the defense is ``auto``. ``matmul_precision`` is that of `bdjax.devices.numerics.in_force`; where it is None, it is
    in no record and no name either.
    """

    seed: int
    data: DataConfig
    model: Choice
    attack: Choice
    poison: PoisonConfig
    training: Mapping[str, Any]
    holdout: HoldoutConfig
    defense: Choice
    victim: VictimConfig | None = None
    selection: SelectionConfig | None = None
    matmul_precision: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, every default filled in; `resolve` of it gives an equal config."""
        whole = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        for name in _WHERE_ASKED:
            if whole[name] is None:
                del whole[name]
        if self.victim is not None:
            del whole["training"]
        return {**whole, "holdout": self.holdout.to_dict()}

    def victim_dict(self) -> dict[str, Any]:
        """Return the part that decides the attacked model."""
        whole = self.to_dict()
        for section in ("defense", "selection"):
            whole.pop(section, None)
        if not self.holdout.held_out:
            del whole["holdout"]
        else:
            whole["holdout"].pop("wrong_labels", None)
        return whole

    def digest(self, values: dict[str, Any] | None = None) -> str:
        """Return ten hexadecimal digits that name this config (or the values), wherever the data lie."""
        content = self.to_dict() if values is None else dict(values)
        # The values that are tried may change with bdjax
        if "selection" in content and self.strength is not None:
            content["selection"] = {**content["selection"], "values": list(self.strength.values)}
        content["data"] = {
            key: value for key, value in content["data"].items() if key != "data_dir"
        }
        if (another := content.get("holdout", {}).get("another")) is not None:
            # Not the last part of its path alone: ./digits is not the digits
            name = data.locate(another, self.data.data_dir)[0]
            content["holdout"] = {**content["holdout"], "another": name}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def run_id(self) -> str:
        """The run's name: what it is, and the hash of its config."""
        return f"{self.data.folder_name}-{self.attack.name}-{self.defense.name}-{self.digest()}"

    @property
    def victim_id(self) -> str:
        """The name of the attacked model, which runs with other defenses share."""
        return f"{self.data.folder_name}-{self.attack.name}-{self.digest(self.victim_dict())}"

    def control(self) -> Config:
        """Return the same run with plain fine-tuning that shares every option which the defense and `ft` have."""
        chosen = self.defense
        while isinstance(last := chosen.options.get("second"), Choice):
            chosen = last
        return self.with_defense(name="ft", **shared_options("ft", plain(chosen.options)))

    def with_defense(self, **values: Any) -> Config:
        """Return the same run with another defense, ``name`` and options, which is built when the run is planned."""
        wanted = _defense_with_defaults(self.data.name, values)
        defense = read_choice("defense", "bdjax.defenses", wanted)
        config = dataclasses.replace(self, defense=defense, selection=None)
        return config.with_selection(self.selection or SelectionConfig())

    def with_selection(self, selection: SelectionConfig) -> Config:
        """Return the same run, its strength to be chosen like this where one is ``auto``."""
        if self.strength is None:
            return self
        return dataclasses.replace(self, selection=selection)

    @property
    def victim_epochs(self) -> int:
        """How many epochs the victim is trained here."""
        return self.training["epochs"] if self.victim is None else 0

    @functools.cached_property
    def built_training(self) -> Training:
        """What trains the victim, built once."""
        with in_section("training", self.training):
            return training(**self.training)

    @functools.cached_property
    def built_defense(self) -> BuiltDefense:
        """The defense, built once; what is ``auto`` in it is the weakest value."""
        return _build_defense("defense", self.defense)

    @property
    def strength(self) -> Strength | None:
        """Return which option of the defense is ``auto``, if any."""
        found = list(_strengths("defense", self.defense))
        if len(found) > 1:
            names = " and ".join(strength.path for strength in found)
            raise InputError(f"defense must have one option that is auto at most, not {names}.")
        return found[0] if found else None


@dataclasses.dataclass(frozen=True)
class Strength:
    """An option whose value is to be chosen, and the values to choose from, from weak to strong."""

    path: str
    values: tuple[float, ...]


def _strengths(path: str, choice: Choice) -> Iterator[Strength]:
    for name, value in choice.options.items():
        if isinstance(value, Choice):
            yield from _strengths(f"{path}.{name}", value)
        elif value == AUTO:
            values = registry.strengths("bdjax.defenses", choice.name)[name]
            yield Strength(f"{path}.{name}", values)


def resolve(values: Mapping[str, Any]) -> Config:
    """Check plain nested values strictly and fill in every default.

    Raises:
      InputError: unknown key, wrong type, or value out of range; one sentence that names the key and the value.
    """
    refuse_unknown("", values, [field.name for field in dataclasses.fields(Config)])
    victim = _victim(values)
    values = _with_defaults(values if victim is None else _recognized(values, victim))
    seed = convert("seed", int, values.get("seed", 0))
    integer(seed=seed, maximum=2**63)
    if seed >= 2**32:
        raise InputError(f"seed must be below 2**32, got {seed}.")
    config = Config(
        seed=seed,
        data=read_section("data", DataConfig, values["data"]).located(),
        model=read_choice("model", "bdjax.models", values["model"]),
        attack=read_choice("attack", "bdjax.attacks", values["attack"]),
        poison=read_section("poison", PoisonConfig, values.get("poison", {})),
        training=read_options("training", training, as_mapping("training", values.get("training"))),
        holdout=read_section("holdout", HoldoutConfig, values.get("holdout", {})),
        defense=read_choice("defense", "bdjax.defenses", values["defense"]),
        victim=victim,
        matmul_precision=convert(
            "matmul_precision", MatmulPrecision | None, values.get("matmul_precision")
        ),
    )
    selection = read_section("selection", SelectionConfig, values.get("selection", {}))
    config = config.with_selection(selection)
    build_training(config)
    build_attack(config)
    build_defense(config)
    return config


def _victim(values: Mapping[str, Any]) -> VictimConfig | None:
    """Read which network was trained elsewhere, if one was."""
    if not values.get("victim"):
        return None
    if values.get("training"):
        wrong = "left out where victim names a network, as nothing is trained but the defense"
        raise InputError(f"training must be {wrong}.")
    return read_section("victim", VictimConfig, values["victim"])


def _recognized(values: Mapping[str, Any], victim: VictimConfig) -> Mapping[str, Any]:
    """Return the values with the network that a file is of, where they name none; options lie over its own."""
    given = as_mapping("model", values.get("model"))
    if "name" in given:
        return values
    return {**values, "model": {**victim.recognized(given), **given}}


def _with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the values over the default names and over the defaults for the data set."""
    wanted = merge(DEFAULTS, values)
    data_name = str(as_mapping("data", wanted["data"]).get("name"))
    defaults = {"holdout": PAPERS_HOLDOUT, **data.defaults(data_name)}
    defaults["defense"] = _defaults_for(
        "defense", wanted["defense"], data_name, defaults.get("defense", {})
    )
    holdout = as_mapping("holdout", values.get("holdout"))
    if holdout.get("share") is not None or holdout.get("per_class") is not None:
        del defaults["holdout"]
    return merge(defaults, wanted)


def _defense_with_defaults(data_name: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Lay a defense's values alone over the same defaults."""
    wanted = merge({"defense": DEFAULTS["defense"]}, {"defense": values})
    options = data.defaults(data_name).get("defense", {})
    taken = _defaults_for("defense", wanted["defense"], data_name, options)
    return merge({"defense": taken}, wanted)["defense"]


def _defaults_for(
    path: str, defense: Any, data_name: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return those of the options that a defense takes, or that each stage of a chain takes, and its own ones."""
    values = as_mapping(path, defense)
    inner = [key for key in ("first", "second") if key in values]
    taken = {key: _defaults_for(f"{path}.{key}", values[key], data_name, options) for key in inner}
    name = values.get("name")
    own = data.defense_defaults(data_name, str(name))
    return {**shared_options(name, {**options, **own}), **taken}


def build_model(config: Config, spec: Spec) -> Model:
    """Return the network, of images that are normalized as its file wants them."""
    if config.victim is not None:
        spec = config.victim.normalized(spec)
    with in_section("model", config.model.options):
        return models.create(config.model.name, spec, **config.model.options)


def build_attack(config: Config, spec: Spec | None = None, model: Model | None = None) -> Attack:
    """Return the attack; with the images' specification the label map is checked against the classes.

    Some triggers are made with the network; without it the attack is only good for checks.
    """
    options = dict(config.attack.options)
    with in_section("attack", options):
        if spec is None:
            options = _checkable(config.attack.name, options)
        return attacks.create(config.attack.name, spec=spec, model=model, **options)


def _checkable(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return an attack's options without what needs the data: enough to check the others."""
    labels = {option: options[option] for option in ("target_label", *attacks.class_options(name))}
    named_ones = {option: label for option, label in labels.items() if isinstance(label, str)}
    numbers = {
        label: LARGEST - number for number, label in enumerate(sorted(set(named_ones.values())))
    }
    known = {**options, **{option: numbers[label] for option, label in named_ones.items()}}
    if known["label_map"] == "all_to_all":
        known["label_map"] = attacks.AllToAll(2)
    return known


def files(config: Config) -> dict[str, Path]:
    """Return the files that options name, by the options' keys."""
    found = {}
    if config.victim is not None:
        found |= config.victim.files
    for option, words in registry.files("bdjax.attacks", config.attack.name).items():
        value = config.attack.options[option]
        if value is not None and value not in words:
            found[f"attack.{option}"] = Path(os.path.expanduser(value))
    return found


def build_training(config: Config) -> Training:
    """Return the learner that trains the victim, and what it starts from."""
    return config.built_training


class BuiltDefense(NamedTuple):
    """A defense, and the key of the config that each of its stages comes from: ``defense.first`` and so on."""

    defense: Defense
    paths: list[str]


def build_defense(config: Config, strength: float | None = None) -> Defense:
    """Return the defense; what is ``auto`` in it is the given strength, or the weakest."""
    if strength is None:
        return config.built_defense.defense
    return _build_defense("defense", config.defense, strength).defense


def stage_paths(config: Config) -> list[str]:
    """Return the key that each stage of the defense comes from: ``defense``, or ``defense.first`` and so on."""
    return config.built_defense.paths


def _build_defense(path: str, choice: Choice, strength: float | None = None) -> BuiltDefense:
    options: dict[str, Any] = {}
    paths: list[str] = []
    for name, value in choice.options.items():
        options[name] = value
        if isinstance(value, Choice):
            options[name], inner = _build_defense(f"{path}.{name}", value, strength)
            paths += inner
        elif value == AUTO:
            weakest = registry.strengths("bdjax.defenses", choice.name)[name][0]
            options[name] = weakest if strength is None else strength
    with in_section(path, options):
        defense = defenses.of(registry.factory("bdjax.defenses", choice.name)(**options))
    return BuiltDefense(defense, paths or [path] * len(defense.stages))
