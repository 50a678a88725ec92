"""What a run is asked to do: frozen values read strictly from YAML and the command line.

A method's options are the arguments of its factory, with the types and defaults that stand there; nothing is declared
twice. Precedence: the factory's default < preset < what suits the data set (`DATA_DEFAULTS`) < file < command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bdjax import attacks, models, registry
from bdjax.attacks import _label_maps
from bdjax.checks import InputError, did_you_mean, integer, named, one_of, unit_interval
from bdjax.defenses.chain import Chain
from bdjax.optim.sgd import Schedule
from bdjax.poison import ROUNDINGS
from bdjax.train.supervised import supervised
from bdjax.types import Attack, Defense, HParam, ImageSpec, Model

_MISSING = object()
_PACKAGES = {
    "model": "bdjax.models",
    "attack": "bdjax.attacks",
    "defense": "bdjax.defenses",
    "first": "bdjax.defenses",
    "second": "bdjax.defenses",
}
_DEFAULT_NAMES = {"data": "digits", "model": "small_cnn", "attack": "badnets", "defense": "ft_sam"}
DEFAULTS = {section: {"name": name} for section, name in _DEFAULT_NAMES.items()}
PAPERS_HOLDOUT = {"share": 0.05}
# The papers' schedules are for CIFAR-10 and larger; 1,347 small digits want steps of another size.
DATA_DEFAULTS = {
    "digits": {
        "training": {"epochs": 20, "batch_size": 64, "learning_rate": 0.05},
        "holdout": {"per_class": 20},
        "defense": {"epochs": 100, "batch_size": 100, "learning_rate": 0.05},
    }
}
# What a bare word means where a section is expected.
_SHORTHANDS = {
    **dict.fromkeys((*_PACKAGES, "data"), "name"),
    "schedule": "kind",
    "holdout": "share",
    "poison": "rounding",
}
_SCALARS = (bool, int, float, str)
_FLOAT32_MAX = 3.4e38


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data.

    Attributes:
      name: a data set of `bdjax list data`, or a folder ``name/train/<class>/*.png`` in ``data_dir``.
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
        for field in ("image_size", "train_count"):
            if getattr(self, field) is not None:
                integer(1, **{field: getattr(self, field)})
        if self.crop_padding is not None:
            integer(crop_padding=self.crop_padding)


@dataclasses.dataclass(frozen=True)
class HoldoutConfig:
    """The defender's clean images, drawn from the clean version of the training split.

    Attributes:
      share: of the training split, in (0, 1]; `PAPERS_HOLDOUT` unless the data set has a default of its own.
      per_class: this many of each class instead.
      balanced: the same number of each class, ⌊share · N / C⌋.
      held_out: whether the attacker trains without these images (SFT, NFT) or also has them (FT-SAM).
    """

    share: float | None = None
    per_class: int | None = None
    balanced: bool = True
    held_out: bool = False

    def check(self) -> None:
        """Raise InputError for a value out of range."""
        if (self.share is None) == (self.per_class is None):
            both = f"{self.share!r} and {self.per_class!r}"
            raise InputError(f"share and per_class exclude each other, got {both}: give one and null for the other.")
        if self.share is not None:
            unit_interval(share=self.share)
        if self.per_class is not None:
            integer(1, per_class=self.per_class)


@dataclasses.dataclass(frozen=True)
class PoisonConfig:
    """How triggered images are stored: ``rounding`` to 8 bits is ``nearest``, or ``truncate`` as BackdoorBench does."""

    rounding: str = "nearest"

    def check(self) -> None:
        """Raise InputError for an unknown rounding."""
        one_of(ROUNDINGS, rounding=self.rounding)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A method by name, with all of its options."""

    name: str
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """A run: one victim, one defense, one seed. `resolve` makes it from plain values."""

    seed: int
    data: DataConfig
    model: Choice
    attack: Choice
    poison: PoisonConfig
    training: Mapping[str, Any]
    holdout: HoldoutConfig
    defense: Choice

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, every default filled in; `resolve` of it gives an equal config."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    def victim_dict(self) -> dict[str, Any]:
        """Return the part that decides the attacked model."""
        whole = self.to_dict()
        del whole["defense"]
        if not self.holdout.held_out:
            del whole["holdout"]
        return whole

    def digest(self, values: dict[str, Any] | None = None) -> str:
        """Return ten hexadecimal digits that name this config (or the values), wherever the data lie."""
        content = self.to_dict() if values is None else dict(values)
        content["data"] = {key: value for key, value in content["data"].items() if key != "data_dir"}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def run_id(self) -> str:
        """The run's name: what it is, and the hash of its config."""
        return f"{self.data.name}-{self.attack.name}-{self.defense.name}-{self.digest()}"

    @property
    def victim_id(self) -> str:
        """The name of the attacked model, which runs with other defenses share."""
        return f"{self.data.name}-{self.attack.name}-{self.digest(self.victim_dict())}"

    def control(self) -> Config:
        """Return the same run with plain fine-tuning that shares every option which the defense and `ft` have."""
        chosen = self.defense
        while isinstance(last := chosen.options.get("second"), Choice):
            chosen = last
        return self.with_defense(name="ft", **_shared_options("ft", _plain(chosen.options)))

    def with_defense(self, **values: Any) -> Config:
        """Return the same run with another defense: ``name`` and options."""
        return resolve({**self.to_dict(), "defense": values})


def resolve(values: Mapping[str, Any]) -> Config:
    """Check plain nested values strictly and fill in every default.

    Raises:
      InputError: unknown key, wrong type, or value out of range; one sentence that names the key and the value.
    """
    _refuse_unknown("", values, [field.name for field in dataclasses.fields(Config)])
    values = _with_defaults(values)
    seed = convert("seed", int, values.get("seed", 0))
    integer(seed=seed)
    if seed >= 2**32:
        raise InputError(f"seed must be below 2**32, got {seed}.")
    config = Config(
        seed=seed,
        data=_dataclass("data", DataConfig, values["data"]),
        model=_choice("model", "bdjax.models", values["model"]),
        attack=_choice("attack", "bdjax.attacks", values["attack"]),
        poison=_dataclass("poison", PoisonConfig, values.get("poison", {})),
        training=_options("training", supervised, _mapping("training", values.get("training"))),
        holdout=_dataclass("holdout", HoldoutConfig, values.get("holdout", {})),
        defense=_choice("defense", "bdjax.defenses", values["defense"]),
    )
    build_training(config)
    build_attack(config)
    build_defense(config)
    return config


def _with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the values over the default names and over what suits the data set."""
    named = merge(DEFAULTS, values)
    suited = {"holdout": PAPERS_HOLDOUT, **DATA_DEFAULTS.get(str(_mapping("data", named["data"]).get("name")), {})}
    suited["defense"] = _suited("defense", named["defense"], suited.get("defense", {}))
    if any(_mapping("holdout", values.get("holdout")).get(key) is not None for key in ("share", "per_class")):
        del suited["holdout"]
    return merge(suited, named)


def _suited(path: str, defense: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the options that a defense takes, or that each stage of a chain takes."""
    values = _mapping(path, defense)
    stages = {key: _suited(f"{path}.{key}", values[key], options) for key in ("first", "second") if key in values}
    return {**_shared_options(values.get("name"), options), **stages}


def read(path: Path) -> dict[str, Any]:
    """Read a YAML file of plain nested values; nothing in it is executed.

    Raises:
      InputError: no such file, not YAML, or not a mapping.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)
    except OSError as error:
        raise InputError(f"cannot read the config {path}: {error.strerror or error}.") from error
    except Exception as error:  # PyYAML raises whatever its constructors of numbers and dates raise
        where = " ".join(str(error).split())
        raise InputError(f"the config {path} is not valid YAML: {where}.") from error
    if not isinstance(values, dict):
        raise InputError(f"the config {path} must hold sections such as 'attack:' and 'defense:'.")
    return values


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML in which nothing stands twice: no repeated keys, and no aliases, which can hide or blow up a value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not read", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} stands twice", problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one set of nested values over another; an empty section changes nothing.

    Where a section's name changes, options of the old method that the new one does not have are left out:
    ``--defense ft`` over a file that asks for ``ft_sam`` keeps the epochs and drops ρ (and keeps a misspelled key, so
    that it is refused).
    """
    merged = dict(below)
    for key, value in above.items():
        old, new = _spelled_out(key, below.get(key)), _spelled_out(key, value)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if key in _PACKAGES and "name" in new:
                old = _carried_over(_PACKAGES[key], {"name": _DEFAULT_NAMES.get(key), **old}, new["name"])
            merged[key] = merge(old, new)
        elif new is not None or not isinstance(old, Mapping):
            merged[key] = new
    return merged


def overrides(words: Sequence[str]) -> dict[str, Any]:
    """Read ``--section.key value`` and ``--section.key=value`` into nested values; ``--defense ft`` names a method.

    Raises:
      InputError: a word that is no option, or an option without a value.
    """
    values: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        path, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not path:
            raise InputError(f"unexpected {word!r}: a config comes first, options look like --section.key value.")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"option --{path} needs a value.")
            value = rest.pop(0)
        *sections, key = path.split(".")
        if key in _SHORTHANDS:
            sections, key = [*sections, key], _SHORTHANDS[key]
        section = values
        for name in sections:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise InputError(f"option --{path} is at odds with the value {section!r} of {name}.")
        section[key] = value
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value})
    return flat


def build_model(config: Config, spec: ImageSpec) -> Model:
    """Return the network."""
    with named("model", config.model.options):
        return models.create(config.model.name, spec, **config.model.options)


def build_attack(config: Config, spec: ImageSpec | None = None) -> Attack:
    """Return the attack; with the images' specification the label map is checked against the classes."""
    options = dict(config.attack.options)
    with named("attack", options):
        if spec is None and options["label_map"] == "all_to_all":
            options["label_map"] = attacks.AllToAll(num_classes=2)  # enough to check the other options
        return attacks.create(config.attack.name, spec=spec, **options)


def build_training(config: Config) -> Defense:
    """Return the learner that trains the victim."""
    with named("training", config.training):
        return supervised(**config.training)


def build_defense(config: Config) -> Defense | Chain:
    """Return the defense."""
    return _build_defense("defense", config.defense)


def _build_defense(path: str, choice: Choice) -> Defense | Chain:
    options = {
        name: _build_defense(f"{path}.{name}", value) if isinstance(value, Choice) else value
        for name, value in choice.options.items()
    }
    with named(path, options):
        return registry.factory("bdjax.defenses", choice.name)(**options)


def stage_paths(config: Config) -> list[str]:
    """Return the key of each stage of the defense: ``defense``, or ``defense.first`` and so on for a chain."""

    def paths(path: str, choice: Choice) -> list[str]:
        inner = [paths(f"{path}.{name}", part) for name, part in choice.options.items() if isinstance(part, Choice)]
        return sum(inner, []) or [path]

    return paths("defense", config.defense)


def parameters(package: str, name: str) -> dict[str, inspect.Parameter]:
    """Return the options that a method takes in a config, with their types and defaults."""
    found = _parameters(registry.factory(package, name))
    if package == "bdjax.attacks":
        kinds = _parameters(_label_maps.create)
        label = {"label_map": kinds["name"].replace(name="label_map"), "target_label": kinds["target_label"]}
        found = {**label, **found}
    return found


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    hints = typing.get_type_hints(function)
    signature = inspect.signature(function).parameters
    return {
        name: parameter.replace(annotation=hints[name])
        for name, parameter in signature.items()
        if _is_option(hints[name])
    }


def _is_option(annotation: Any) -> bool:
    """Whether a value of this type can stand in a config; label maps and image specifications cannot."""
    if annotation in (*_SCALARS, HParam, types.NoneType) or _is_defense(annotation) or annotation is Schedule:
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return True
    return origin in (typing.Union, types.UnionType) and all(_is_option(part) for part in arguments)


def _is_defense(annotation: Any) -> bool:
    return annotation is Defense or Chain in typing.get_args(annotation)


def _choice(path: str, package: str, value: Any) -> Choice:
    """Read a method: its name alone, or a mapping with ``name``, maybe ``preset``, and options."""
    values = dict(_mapping(path, value))
    name = values.pop("name", _MISSING)
    known = registry.names(package)
    if not isinstance(name, str):
        raise InputError(f"{path}.name must be one of {', '.join(known)}; got {None if name is _MISSING else name!r}.")
    one_of(known, **{path: name})
    presets = registry.presets(package, name)
    preset = values.pop("preset", "paper")
    one_of(presets, **{f"{path}.preset": preset})
    options = merge(_plain(presets[preset]), values)
    return Choice(name, _typed(path, parameters(package, name), options, f"{path} {name!r}"))


def _options(path: str, function: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return _typed(path, _parameters(function), values, path)


def _dataclass(path: str, kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = _mapping(path, value)
    hints = typing.get_type_hints(kind)
    known = {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[name])
        for name, field in fields.items()
    }
    made = kind(**_typed(path, known, values, path))
    with named(path, fields):
        made.check()
    return made


def _typed(path: str, known: Mapping[str, inspect.Parameter], values: Mapping[str, Any], owner: str) -> dict[str, Any]:
    _refuse_unknown(path, values, list(known), owner)
    typed = {}
    for name, parameter in known.items():
        value = values.get(name, parameter.default)
        if value is inspect.Parameter.empty:
            raise InputError(f"{path}.{name} is missing.")
        if dataclasses.is_dataclass(parameter.default):  # a section of its own, of which a part may be given
            value = {**_plain(parameter.default), **_mapping(f"{path}.{name}", _plain(values.get(name)))}
        typed[name] = convert(f"{path}.{name}", parameter.annotation, value)
    return typed


def _refuse_unknown(path: str, values: Mapping[str, Any], known: list[str], owner: str = "a config") -> None:
    for key in values:
        if key not in known:
            name = f"{path}.{key}" if path else str(key)
            raise InputError(
                f"unknown key {name!r}{did_you_mean(key, known)}; {owner} has: {', '.join(known) or 'no options'}."
            )


def _mapping(path: str, value: Any) -> Mapping[str, Any]:
    """Read a section; a bare word or number stands for the field that says most."""
    if value is None:
        return {}
    section = _spelled_out(path.rpartition(".")[2], value)
    if isinstance(section, Mapping) and all(isinstance(key, str) for key in section):
        return section
    raise InputError(f"{path} must be a section with keys, got {value!r}.")


def _spelled_out(key: str, value: Any) -> Any:
    return {_SHORTHANDS[key]: value} if key in _SHORTHANDS and isinstance(value, _SCALARS) else value


def convert(path: str, annotation: Any, value: Any) -> Any:
    """Return the value as the annotated type; numbers and words may come as text.

    Raises:
      InputError: it is of another type.
    """
    arguments = typing.get_args(annotation)
    if _is_defense(annotation):
        return value if isinstance(value, Choice) else _choice(path, "bdjax.defenses", value)
    if typing.get_origin(annotation) is typing.Literal:
        one_of(arguments, **{path: value})
        return value
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        (annotation,) = [part for part in arguments if part is not types.NoneType]
        return convert(path, annotation, value)
    if dataclasses.is_dataclass(annotation):
        return _dataclass(path, typing.cast(type, annotation), value)
    return _scalar(path, float if annotation is HParam else annotation, value)


def _scalar(path: str, kind: type, value: Any) -> Any:
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if kind in (int, float) and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = kind(value)
    if isinstance(value, int) and abs(value) >= 2**63:
        raise InputError(f"{path} must be a number of at most 63 bits.")
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        value = value + 0.0  # and -0.0 is 0.0, in a run's name too
    wanted = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    if type(value) is not kind or (isinstance(value, float) and not abs(value) < _FLOAT32_MAX):  # nor NaN
        raise InputError(f"{path} must be {wanted}, got {value!r}.")
    return value


def _shared_options(name: Any, options: Mapping[str, Any], package: str = "bdjax.defenses") -> dict[str, Any]:
    return {key: value for key, value in options.items() if _has(package, name, key, value)}


def _carried_over(package: str, options: Mapping[str, Any], name: Any) -> dict[str, Any]:
    """Return a method's options without those that it has and the method of the new name has not."""
    return {
        key: value
        for key, value in options.items()
        if _has(package, name, key, value) or not _has(package, options["name"], key, value)
    }


def _has(package: str, name: Any, option: str, value: Any) -> bool:
    """Whether a method takes an option; of presets, whether it has the one of that name."""
    if name not in registry.names(package):
        return False
    return value in list(registry.presets(package, name)) if option == "preset" else option in parameters(package, name)


def _plain(value: Any) -> Any:
    if isinstance(value, Choice):
        return {"name": value.name, **{key: _plain(part) for key, part in value.options.items()}}
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return value
