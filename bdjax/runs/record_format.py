"""What a record must hold to be reported: its keys, their types, and numbers that agree with each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bdjax.checks import InputError

SECTIONS = ("data", "model", "attack", "defense")
RATES = ("clean_accuracy", "attack_success_rate", "robust_accuracy", "defense_effectiveness_rating")
COSTS = ("run_seconds", "compile_seconds", "gradient_evaluations")
_WHEN = ("before", "after")
_SHARES = {  # each rate of a network: how many of how many
    "clean_accuracy": ("clean_correct", "clean_total"),
    "attack_success_rate": ("attack_hits", "attack_total"),
    "robust_accuracy": ("robust_correct", "attack_total"),
}
_MOST = 2**53  # of a count: larger ones are no exact floats
_ROUNDING = 1e-6  # rates may have been computed in float32


def check(content: Mapping[str, Any], source: str) -> None:
    """Check the record of a finished run: what any report of it reads, and nothing else.

    Raises:
      InputError: it lacks a key, or a value has the wrong type, is out of range or contradicts another; the sentence
        names the source and the key.
    """
    for key, kind in _required().items():
        require(source, content, key, kind)
    if content["data"]["num_classes"] < 1:
        raise InputError(f"data.num_classes in {source} must be 1 or more, got {content['data']['num_classes']!r:.60}.")
    _check_stealth(content.get("stealth", {}), source)
    _check_digests(content["data"].get("fingerprint", {}), source)
    for key, value, most in _ranges(content):
        if not 0 <= value <= most:  # neither is NaN
            raise InputError(f"{key} in {source} must lie between 0 and {most}, got {value!r:.60}.")
    for total in ("clean_total", "attack_total"):
        for when in _WHEN:
            if not content["metrics"][when][total]:
                raise InputError(f"metrics.{when}.{total} in {source} must be 1 or more, got 0.")
    for key, value, expected, why in _agreements(content["metrics"]):
        if abs(value - expected) > _ROUNDING:
            raise InputError(f"{key} in {source} must be {expected:.6g}, {why}; got {value!r:.60}.")


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


def _required() -> dict[str, type]:
    """Return what is read from every record, as dotted keys and their types."""
    counts = dict.fromkeys(count for share in _SHARES.values() for count in share)
    keys: dict[str, type] = {"run_id": str, "config.seed": int}
    keys |= {f"config.{section}.name": str for section in SECTIONS}
    keys |= {f"metrics.{when}.{name}": int for when in _WHEN for name in counts}
    keys |= {f"metrics.{when}.{name}": float for when in _WHEN for name in _SHARES}
    keys |= {f"metrics.{RATES[3]}": float} | {f"cost.{name}": float for name in COSTS}
    return keys | {"data.num_classes": int, "data.class_names": list}


def _check_stealth(stealth: Any, source: str) -> None:
    """Refuse what is no mapping of triggers to measures, each a finite number or null, or an impossible share."""
    of_triggers = stealth.values() if isinstance(stealth, Mapping) else [stealth]
    for measured in of_triggers:
        values = measured.values() if isinstance(measured, Mapping) else [measured]
        if not isinstance(measured, Mapping) or not all(value is None or _is_finite(value) for value in values):
            raise InputError(f"stealth in {source} is damaged: it must hold numbers, got {measured!r:.60}.")
        share = measured.get("changed_share")
        if share is not None and not 0 <= share <= 1:
            raise InputError(f"stealth in {source} is damaged: changed_share must lie between 0 and 1, got {share!r}.")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -_MOST <= value <= _MOST


def _check_digests(fingerprint: Any, source: str) -> None:
    """Refuse what is no mapping of names to digests, or to mappings of names to digests."""
    values = list(fingerprint.values()) if isinstance(fingerprint, Mapping) else [None]
    values += [digest for inner in values if isinstance(inner, Mapping) for digest in inner.values()]
    if not all(isinstance(value, str | Mapping) for value in values):
        raise InputError(f"data.fingerprint in {source} must map names to digests, got {fingerprint!r:.60}.")


def _ranges(content: Mapping[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Yield each number that is read, under its key, with the largest value that it may have; the least is 0."""
    metrics = content["metrics"]
    for when in _WHEN:
        of, path = metrics[when], f"metrics.{when}"
        for rate, (part, whole) in _SHARES.items():
            yield f"{path}.{whole}", of[whole], _MOST
            yield f"{path}.{part}", of[part], of[whole]
            yield f"{path}.{rate}", of[rate], 1
    yield f"metrics.{RATES[3]}", metrics[RATES[3]], 1
    for name in COSTS:
        yield f"cost.{name}", content["cost"][name], _MOST


def _agreements(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float, float, str]]:
    """Yield each rate under its key, with what it must be and why."""
    for when in _WHEN:
        of = metrics[when]
        for rate, (part, whole) in _SHARES.items():
            why = f"as {part} / {whole} is {of[part]} / {of[whole]}"
            yield f"metrics.{when}.{rate}", of[rate], of[part] / of[whole], why
    accuracy, success = (max(0.0, metrics["before"][rate] - metrics["after"][rate]) for rate in RATES[:2])
    yield f"metrics.{RATES[3]}", metrics[RATES[3]], (success - accuracy + 1) / 2, "by the rates before and after"
