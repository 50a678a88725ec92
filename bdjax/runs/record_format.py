"""What a record must hold to be reported: its keys, their types, and numbers that agree with each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bdjax.checks import InputError
from bdjax.tasks.metrics import (
    ATTACK,
    NEEDED,
    RATING,
    ROLES,
    SINGLE_LABEL,
    UTILITY,
    Metric,
    described,
    effectiveness,
    first,
    totals,
)

SECTIONS = ("data", "model", "attack", "defense")
COSTS = ("run_seconds", "compile_seconds", "gradient_evaluations")
_WHEN = ("before", "after")
# Of a metric or a count: a column's, and part of a file's
_NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")
_PRINTED = re.compile(r"[\w@][\w@ .+:()/-]{0,59}")  # what no table's markup takes for its own
_LONGEST = 1000  # characters of a definition
_MOST = 2**53  # of a count: larger ones are no exact floats
_ROUNDING = 1e-6  # rates may have been computed in float32


def check(content: Mapping[str, Any], source: str) -> None:
    """Check the record of a finished run: what any report of it reads, and nothing else.

    Raises:
      InputError: it lacks a key, or a value has the wrong type, is out of range or contradicts another; the sentence
        names the source and the key.
    """
    if "description" in _mapping(content.get("metrics")):
        _check_description(content["metrics"]["description"], f"metrics.description in {source}")
    metrics = metrics_of(content)
    for key, kind in _required(metrics).items():
        require(source, content, key, kind)
    if content["data"]["num_classes"] < 1:
        raise InputError(
            f"data.num_classes in {source} must be 1 or more, got {content['data']['num_classes']!r:.60}."
        )
    _check_stealth(content.get("stealth", {}), source)
    _check_digests(content["data"].get("fingerprint", {}), source)
    _check_chance(content["metrics"].get("chance", {}), source)
    for key, value, most in _ranges(content, metrics):
        if not 0 <= value <= most:  # neither is NaN
            raise InputError(f"{key} in {source} must lie between 0 and {most}, got {value!r:.60}.")
    for total in totals(metrics):
        for when in _WHEN:
            if not content["metrics"][when][total]:
                raise InputError(f"metrics.{when}.{total} in {source} must be 1 or more, got 0.")
    for key, value, expected, why in _agreements(content["metrics"], metrics):
        if abs(value - expected) > _ROUNDING:
            raise InputError(f"{key} in {source} must be {expected:.6g}, {why}; got {value!r:.60}.")


def metrics_of(content: Mapping[str, Any]) -> tuple[Metric, ...]:
    """Return the metrics of a record, in the order of a table; one that says nothing is of single-label classes."""
    values = _mapping(content.get("metrics")).get("description")
    return SINGLE_LABEL if values is None else described(values)


def require(source: str, content: Any, dotted: str, kind: type) -> None:
    """Refuse content that lacks a key, or has a value of another type there.

    Raises:
      InputError: it does.
    """
    value = content
    for key in dotted.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise InputError(f"{source} lacks the key {dotted}.")
        value = value[key]
    accepted = (int, float) if kind is float else kind
    if isinstance(value, bool) or not isinstance(value, accepted):
        what = {int: "a whole number", float: "a number", str: "a text", list: "a list"}[kind]
        raise InputError(f"{dotted} in {source} must be {what}, got {value!r:.60}.")


def _mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping, or an empty one for whatever else stands in its place."""
    return value if isinstance(value, Mapping) else {}


def _of_networks(metrics: Sequence[Metric]) -> list[Metric]:
    """Return the metrics that a network has by itself, which no rating is."""
    return [metric for metric in metrics if metric.role != RATING]


def _required(metrics: Sequence[Metric]) -> dict[str, type]:
    """Return what is read from every record, as dotted keys and their types."""
    counts: dict[str, None] = {}
    for metric in _of_networks(metrics):
        counts |= {name: None for name in (metric.part, metric.total) if name}
    keys: dict[str, type] = {"run_id": str, "config.seed": int}
    keys |= {f"config.{section}.name": str for section in SECTIONS}
    for when in _WHEN:
        keys |= {f"metrics.{when}.{name}": int for name in counts}
    for when in _WHEN:
        keys |= {f"metrics.{when}.{metric.name}": float for metric in _of_networks(metrics)}
    keys |= {f"metrics.{metric.name}": float for metric in metrics if metric.role == RATING}
    keys |= {f"cost.{name}": float for name in COSTS}
    return keys | {"data.num_classes": int, "data.class_names": list}


# --- The description of the metrics ----------------------------------------------------------------------------------


def _check_description(values: Any, where: str) -> None:
    """Refuse what is no list of metrics, lacks one of a role that every task has, or has a name twice."""
    if not isinstance(values, list) or not all(isinstance(one, Mapping) for one in values):
        raise InputError(f"{where} must be a list of mappings, got {values!r:.60}.")
    for number, one in enumerate(values):
        _check_metric(one, f"{where}: metric {number}")
    names = [one["name"] for one in values]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise InputError(f"{where} must have each name once, got {sorted(repeated)[0]} again.")
    for role in NEEDED:
        if role not in [one["role"] for one in values]:
            raise InputError(f"{where} must have a metric of the role {role}.")


def _check_metric(values: Mapping[str, Any], where: str) -> None:
    """Refuse a metric that lacks something, or has what no table can print."""
    _check_text(values, "name", _NAME, where)
    for key in ("head", "words"):
        _check_text(values, key, _PRINTED, where)
    if values.get("role") not in ROLES:
        raise InputError(
            f"{where} must have a role of {', '.join(ROLES)}, got {values.get('role')!r:.60}."
        )
    if values["name"] in (*COSTS, *_WHEN, "description", "chance"):
        raise InputError(f"{where} must have another name than {values['name']}, which is taken.")
    for key, form in (("short", _PRINTED), ("part", _NAME), ("total", _NAME)):
        if values.get(key, "") != "":
            _check_text(values, key, form, where)
    if values.get("part") and not values.get("total"):
        raise InputError(f"{where} must have a total, as it has a part.")
    definition = values.get("definition", "")
    if (
        not isinstance(definition, str)
        or not definition.isprintable()
        or len(definition) > _LONGEST
    ):
        raise InputError(
            f"{where} must have a definition of printable characters, got {definition!r:.60}."
        )


def _check_text(values: Mapping[str, Any], key: str, form: re.Pattern[str], where: str) -> None:
    value = values.get(key)
    if not isinstance(value, str) or form.fullmatch(value) is None:
        raise InputError(f"{where} must have a {key} like {form.pattern}, got {value!r:.60}.")


def _check_chance(chance: Any, source: str) -> None:
    """Refuse what does not map metrics to what a guess gives."""
    values = chance.values() if isinstance(chance, Mapping) else [None]
    if not all(isinstance(value, int | float) and 0 <= value <= 1 for value in values):
        raise InputError(
            f"metrics.chance in {source} must map metrics to numbers from 0 to 1, got {chance!r:.60}."
        )


# --- What else a record has ------------------------------------------------------------------------------------------


def _check_stealth(stealth: Any, source: str) -> None:
    """Refuse what is no mapping of triggers to measures, each a finite number or null, or an impossible share."""
    of_triggers = stealth.values() if isinstance(stealth, Mapping) else [stealth]
    for measured in of_triggers:
        values = measured.values() if isinstance(measured, Mapping) else [measured]
        if not isinstance(measured, Mapping) or not all(
            value is None or _is_finite(value) for value in values
        ):
            raise InputError(
                f"stealth in {source} is damaged: it must hold numbers, got {measured!r:.60}."
            )
        share = measured.get("changed_share")
        if share is not None and not 0 <= share <= 1:
            raise InputError(
                f"stealth in {source} is damaged: changed_share must lie between 0 and 1, got {share!r}."
            )


def _is_finite(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and -_MOST <= value <= _MOST
    )


def _check_digests(fingerprint: Any, source: str) -> None:
    """Refuse what is no mapping of names to digests, or to mappings of names to digests."""
    values = list(fingerprint.values()) if isinstance(fingerprint, Mapping) else [None]
    values += [
        digest for inner in values if isinstance(inner, Mapping) for digest in inner.values()
    ]
    if not all(isinstance(value, str | Mapping) for value in values):
        raise InputError(
            f"data.fingerprint in {source} must map names to digests, got {fingerprint!r:.60}."
        )


# --- Numbers ---------------------------------------------------------------------------------------------------------


def _ranges(
    content: Mapping[str, Any], metrics: Sequence[Metric]
) -> Iterator[tuple[str, float, float]]:
    """Yield each number that is read, under its key, with the largest value that it may have; the least is 0."""
    section = content["metrics"]
    for when in _WHEN:
        of, path = section[when], f"metrics.{when}"
        for metric in _of_networks(metrics):
            if metric.total:
                yield f"{path}.{metric.total}", of[metric.total], _MOST
            if metric.part:
                yield f"{path}.{metric.part}", of[metric.part], of[metric.total]
            yield f"{path}.{metric.name}", of[metric.name], 1
    for metric in metrics:
        if metric.role == RATING:
            yield f"metrics.{metric.name}", section[metric.name], 1
    for name in COSTS:
        yield f"cost.{name}", content["cost"][name], _MOST


def _agreements(
    section: Mapping[str, Any], metrics: Sequence[Metric]
) -> Iterator[tuple[str, float, float, str]]:
    """Yield each ratio of counts, and the first rating, under its key, with what it must be and why."""
    for when in _WHEN:
        of = section[when]
        for metric in _of_networks(metrics):
            if metric.part:
                why = f"as {metric.part} / {metric.total} is {of[metric.part]} / {of[metric.total]}"
                yield (
                    f"metrics.{when}.{metric.name}",
                    of[metric.name],
                    of[metric.part] / of[metric.total],
                    why,
                )
    drops = []
    for role in (ATTACK, UTILITY):
        name = first(metrics, role).name
        drops.append(section["before"][name] - section["after"][name])
    rating = first(metrics, RATING).name
    yield (
        f"metrics.{rating}",
        section[rating],
        effectiveness(*drops),
        "by the rates before and after",
    )
