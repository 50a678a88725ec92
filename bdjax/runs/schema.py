"""Plain nested values, from YAML or the command line, read strictly into typed ones.

A method's options are the arguments of its factory, with the types and defaults that stand there; nothing is declared
twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bdjax import registry
from bdjax.attacks import _label_maps
from bdjax.checks import InputError, did_you_mean, in_section, one_of
from bdjax.defenses import Defense
from bdjax.files import failures
from bdjax.optim.sgd import Schedule
from bdjax.types import ClassLabel, HParam

_MISSING = object()
_PACKAGES = {
    "model": "bdjax.models",
    "attack": "bdjax.attacks",
    "defense": "bdjax.defenses",
    "first": "bdjax.defenses",
    "second": "bdjax.defenses",
}
DEFAULT_NAMES = {"data": "digits", "model": "small_cnn", "attack": "badnets", "defense": "ft_sam"}
# What a bare word means where a section is expected.
_SHORTHANDS = {
    **dict.fromkeys((*_PACKAGES, "data"), "name"),
    "schedule": "kind",
    "holdout": "share",
    "poison": "rounding",
    "victim": "file",
}
AUTO = "auto"  # of an option that is a method's strength: let the run choose
_SCALARS = (bool, int, float, str)
_FLOAT32_MAX = 3.4e38
_WHOLE = re.compile("[+-]?[0-9]{1,18}")
# Of a config: bytes of the file, some thousand lines, and characters of a value, so few that any number can be printed.
_LARGEST, _LONGEST = 2**18, 3000


@dataclasses.dataclass(frozen=True)
class Choice:
    """A method by name, with all of its options."""

    name: str
    options: Mapping[str, Any]


def read(path: Path) -> dict[str, Any]:
    """Read a YAML file of plain nested values; nothing in it is executed.

    Raises:
      InputError: no such file, too large a one, not YAML, or not a mapping.
    """
    try:
        with failures.blaming_the_path(f"cannot read the config {path}"), path.open("rb") as file:
            content = file.read(_LARGEST + 1)  # of a device there is no end
        if len(content) > _LARGEST:
            raise InputError(f"the config {path} must be at most {_LARGEST:,} bytes; it is larger.")
        values = yaml.load(content.decode("utf-8"), _PlainLoader)
    except (OSError, InputError):
        raise
    except Exception as error:  # PyYAML raises whatever its constructors of numbers and dates raise
        where = " ".join(str(error).split())
        raise InputError(f"the config {path} is not valid YAML: {where}.") from error
    if not isinstance(values, dict):
        raise InputError(f"the config {path} must hold sections such as 'attack:' and 'defense:'.")
    return values


def to_yaml(values: Mapping[str, Any]) -> str:
    """Write plain nested values as `read` reads them."""
    return yaml.safe_dump(dict(values), sort_keys=False)


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML in which nothing stands twice: no repeated keys, and no aliases, which can hide or blow up a value."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases are not read", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # which is refused below
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        if isinstance(node, yaml.ScalarNode) and len(node.value) > _LONGEST:
            problem = f"a value has {len(node.value):,} characters, and {_LONGEST:,} are the most"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return super().construct_scalar(node)


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
                old = _carried_over(
                    _PACKAGES[key], {"name": DEFAULT_NAMES.get(key), **old}, new["name"]
                )
            merged[key] = merge({} if _is_of_another_kind(key, old, new) else old, new)
        elif new is not None or not isinstance(old, Mapping):
            merged[key] = new
    return merged


def _is_of_another_kind(key: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    """Whether a schedule changes its kind: the period of the one says nothing about the other."""
    return key == "schedule" and above.get("kind", below.get("kind")) != below.get("kind")


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
            raise InputError(
                f"unexpected {word!r}: a config comes first, options look like --section.key value."
            )
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
                raise InputError(
                    f"option --{path} is at odds with the value {section!r} of {name}."
                )
        section[key] = value
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return flat


def parameters(package: str, name: str) -> Mapping[str, inspect.Parameter]:
    """Return the options that a method takes in a config, with their types and defaults."""
    found = _parameters(registry.factory(package, name))
    if package == "bdjax.attacks":
        kinds = _parameters(_label_maps.create)
        label = {
            "label_map": kinds["name"].replace(name="label_map"),
            "target_label": kinds["target_label"],
        }
        found = {**label, **found}
    return found


@functools.cache  # the configs of a sweep ask for the same ones thousands of times
def _parameters(function: Any) -> Mapping[str, inspect.Parameter]:
    hints = typing.get_type_hints(function)
    signature = inspect.signature(function).parameters
    for name in signature:
        if name not in hints:
            what = (
                f"must have a type for its argument {name!r}, by which a config's values are read"
            )
            raise InputError(f"{function.__module__}.{function.__name__} {what}.")
    return {
        name: parameter.replace(annotation=hints[name])
        for name, parameter in signature.items()
        if _is_option(hints[name])
    }


def _is_option(annotation: Any) -> bool:
    """Whether a value of this type can stand in a config; label maps and image specifications cannot."""
    if (
        annotation in (*_SCALARS, HParam, types.NoneType)
        or _is_defense(annotation)
        or annotation is Schedule
    ):
        return True
    if typing.get_origin(annotation) is typing.Literal:
        return True
    return _is_union(annotation) and any(
        part is not types.NoneType for part in _option_parts(annotation)
    )


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _option_parts(annotation: Any) -> list[Any]:
    """Return those types of a union whose values can stand in a config: of a function or a word, the word."""
    return [part for part in typing.get_args(annotation) if _is_option(part)]


def _is_defense(annotation: Any) -> bool:
    return annotation is Defense or Defense in typing.get_args(annotation)


def read_choice(path: str, package: str, value: Any) -> Choice:
    """Read a method: its name alone, or a mapping with ``name``, maybe ``preset``, and options."""
    values = dict(as_mapping(path, value))
    name = values.pop("name", _MISSING)
    known = registry.names(package)
    if not isinstance(name, str):
        raise InputError(
            f"{path}.name must be one of {', '.join(known)}; got {None if name is _MISSING else name!r}."
        )
    one_of(known, **{path: name})
    presets = registry.presets(package, name)
    preset = values.pop("preset", "paper")
    one_of(presets, **{f"{path}.preset": preset})
    options = merge(plain(presets[preset]), values)
    chosen = {
        option: AUTO for option in registry.strengths(package, name) if options.get(option) == AUTO
    }
    given = {option: value for option, value in options.items() if option not in chosen}
    for option, value in given.items():
        if value == AUTO and _needs_value(parameters(package, name).get(option)):
            allowed = ", ".join(registry.strengths(package, name)) or "none"
            raise InputError(
                f"{path}.{option} must have a value; of {name}, auto is for: {allowed}."
            )
    return Choice(
        name, {**_typed(path, parameters(package, name), given, f"{path} {name!r}"), **chosen}
    )


def _needs_value(parameter: inspect.Parameter | None) -> bool:
    """Whether ``auto`` is no value of an option: not the word that it has by default, and not one of its words."""
    if parameter is None or parameter.default == AUTO:
        return False
    return AUTO not in typing.get_args(parameter.annotation)


def read_options(path: str, function: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of a function, every default filled in."""
    return _typed(path, _parameters(function), values, path)


def read_section(path: str, kind: type, value: Any) -> Any:
    """Read the fields of a dataclass, every default filled in, and let it check itself."""
    if isinstance(value, kind):
        return value
    fields = {field.name: field for field in dataclasses.fields(kind)}
    values = as_mapping(path, value)
    hints = typing.get_type_hints(kind)
    known = {
        name: inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[name]
        )
        for name, field in fields.items()
    }
    made = kind(**_typed(path, known, values, path))
    with in_section(path, fields):
        made.check()
    return made


def _typed(
    path: str, known: Mapping[str, inspect.Parameter], values: Mapping[str, Any], owner: str
) -> dict[str, Any]:
    refuse_unknown(path, values, list(known), owner)
    typed = {}
    for name, parameter in known.items():
        value = values.get(name, parameter.default)
        if value is inspect.Parameter.empty:
            raise InputError(f"{path}.{name} is missing.")
        # A section of its own, of which a part may be given
        if dataclasses.is_dataclass(parameter.default):
            given = as_mapping(f"{path}.{name}", plain(values.get(name)))
            value = merge({name: plain(parameter.default)}, {name: given})[name]
        typed[name] = convert(f"{path}.{name}", parameter.annotation, value)
    return typed


def refuse_unknown(
    path: str, values: Mapping[str, Any], known: list[str], owner: str = "a config"
) -> None:
    """Raise InputError for a key that is not known; the message has the nearest one."""
    for key in values:
        if key not in known:
            name = f"{path}.{key}" if path else str(key)
            raise InputError(
                f"unknown key {name!r}{did_you_mean(key, known)}; {owner} has: {', '.join(known) or 'no options'}."
            )


def as_mapping(path: str, value: Any) -> Mapping[str, Any]:
    """Read a section; a bare word or number stands for the field that says most."""
    if value is None:
        return {}
    section = _spelled_out(path.rpartition(".")[2], value)
    if isinstance(section, Mapping) and all(isinstance(key, str) for key in section):
        return section
    raise InputError(f"{path} must be a section with keys, got {value!r}.")


def _spelled_out(key: str, value: Any) -> Any:
    return (
        {_SHORTHANDS[key]: value} if key in _SHORTHANDS and isinstance(value, _SCALARS) else value
    )


def convert(path: str, annotation: Any, value: Any) -> Any:
    """Return the value as the annotated type; numbers and words may come as text.

    Raises:
      InputError: it is of another type.
    """
    arguments = typing.get_args(annotation)
    if _is_defense(annotation):
        return value if isinstance(value, Choice) else read_choice(path, "bdjax.defenses", value)
    if typing.get_origin(annotation) is typing.Literal:
        value = str(value).lower() if isinstance(value, bool) else value  # YAML's bare true
        one_of(arguments, **{path: value})
        return value
    if _is_union(annotation):
        parts = _option_parts(annotation)
        if annotation == ClassLabel:
            return _class_label(path, value)
        if types.NoneType in parts and (value is None or str(value).lower() in ("none", "null")):
            return None
        (annotation,) = [part for part in parts if part is not types.NoneType]
        return convert(path, annotation, value)
    if dataclasses.is_dataclass(annotation):
        return read_section(path, typing.cast(type, annotation), value)
    return _scalar(path, float if annotation is HParam else annotation, value)


def _class_label(path: str, value: Any) -> ClassLabel:
    """Return the number of a class, or its name: a text that is no whole number.

    Quoted in YAML or bare on the command line, ``10`` is the number: the two must mean the same.
    """
    if isinstance(value, str):
        return int(value) if _WHOLE.fullmatch(value.strip()) else value
    if isinstance(value, int) and not isinstance(value, bool):
        return _scalar(path, int, value)
    raise InputError(f"{path} must be a class, by its number or its name in quotes; got {value!r}.")


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
    # Nor NaN
    if type(value) is not kind or (isinstance(value, float) and not abs(value) < _FLOAT32_MAX):
        raise InputError(f"{path} must be {wanted}, got {value!r}.")
    # No record and no table could hold it
    if isinstance(value, str) and ("\0" in value or not _is_unicode(value)):
        raise InputError(f"{path} must be text in UTF-8 without NUL, got {value!r}.")
    return value


def _is_unicode(text: str) -> bool:
    """Whether a text is free of surrogates, which stand for bytes of the command line that are no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def shared_options(
    name: Any, options: Mapping[str, Any], package: str = "bdjax.defenses"
) -> dict[str, Any]:
    """Return those options that the method of that name has too."""
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
    return (
        value in list(registry.presets(package, name))
        if option == "preset"
        else option in parameters(package, name)
    )


def plain(value: Any) -> Any:
    """Return a typed value as the plain ones that it was read from."""
    if isinstance(value, Choice):
        return {"name": value.name, **{key: plain(part) for key, part in value.options.items()}}
    if dataclasses.is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return value
