"""How a config becomes words: the settings that tell runs apart, and the labels and texts that are made of them."""

from __future__ import annotations

import functools
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from bdjax.files.printable import printable
from bdjax.runs.record_format import SECTIONS

Settings: TypeAlias = Mapping[str, object]  # a config as dotted keys: ``defense.rho``
SortKey: TypeAlias = tuple[Any, ...]  # nested tuples, which compare as a whole

LONGEST = 120  # characters of a label
SYMBOLS = {"rho": "ρ", "alpha": "α", "gamma": "γ", "eta_f": "η_F", "eta_r": "η_r", "eta_c": "η_c"}
_HOMES = {"training": "attack", "victim": "attack", "matmul_precision": "model"}


def count(number: int, noun: str) -> str:
    """Write a number of things.

    >>> from bdjax.report import count
    >>> count(1, "run"), count(3000, "run")
    ('1 run', '3,000 runs')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def plain(value: object) -> str:
    """Return a setting as it is printed; numbers that are equal are printed alike."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.15g}"
    if isinstance(value, list):
        return "[" + ",".join(map(plain, value)) + "]"
    return str(value)


def short(option: str) -> str:
    """Return what a column or a curve calls an option: its symbol, or its name without that of its section."""
    name = option.removeprefix("defense.").removeprefix("attack.")
    return SYMBOLS.get(name, name)


# --- Configs as settings ---------------------------------------------------------------------------------------------


def flatten(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return a nested config as dotted keys, without what a row does not depend on."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        elif prefix + key not in ("seed", "data.data_dir"):
            flat[prefix + key] = value
    return flat


def identity(settings: Settings, *aside: str) -> str:
    """Return a record's settings but some options as canonical text.

    It is equal for runs of one row; with an option aside, for rows that differ in nothing else.
    """
    kept = {key: plain(value) for key, value in settings.items() if key not in aside}
    return json.dumps(kept, sort_keys=True)


def without_defense(settings: Settings, *aside: str) -> str:
    """Return what decides the attacked network and what the defender has, as canonical text; some options aside."""
    return identity(settings, *aside, *filter(of_defense, settings))


def of_defense(key: str) -> bool:
    """Say whether a dotted key of a config is an option of the defense, or of how its strength is chosen."""
    return key.startswith(("defense.", "selection."))


def distinguishing(configs: Sequence[Settings]) -> list[dict[str, object]]:
    """Return the settings in which each config differs from others of the same name, in the order of the config.

    A setting of an attack is compared with the same attack's, and so on; what has no name of its own (training,
    holdout) is compared where data and model are the same.
    """
    peers = defaultdict(list)
    for config in configs:
        for scope in {_scope(key, config) for key in config}:
            peers[scope].append(config)

    @functools.cache
    def varies(key: str, scope: tuple[object, ...]) -> bool:
        values = {plain(peer[key]) if key in peer else "" for peer in peers[scope]}
        if key.startswith("selection."):  # which only runs have that choose a strength
            values.discard("")
        return len(values) > 1

    return [
        {key: value for key, value in config.items() if varies(key, _scope(key, config))}
        for config in configs
    ]


def _scope(key: str, config: Settings) -> tuple[object, ...]:
    """Return what two configs must share for a setting of them to be compared."""
    section = key.split(".")[0]
    name = ("defense" if section == "selection" else section) + ".name"
    return (name, config[name]) if name in config else (config["data.name"], config["model.name"])


# --- Labels ----------------------------------------------------------------------------------------------------------


def label(config: Mapping[str, Any], section: str, settings: Settings) -> str:
    """Return the name of a config's ``data``, ``model``, ``attack`` or ``defense`` and what settings of it are told."""
    shown = [f"{SYMBOLS.get(key, key)}={plain(value)}" for key, value in _of(section, settings)]
    return printable(" ".join([config[section]["name"], *shown]), LONGEST)


def labels(config: Mapping[str, Any], settings: Settings) -> tuple[str, str, str, str]:
    """Return the labels of a config's data, model, attack and defense."""
    data, model, attack, defense = (label(config, section, settings) for section in SECTIONS)
    return data, model, attack, defense


def _of(section: str, settings: Settings) -> list[tuple[str, object]]:
    """Return the settings that a label shows, its own section's first, under the names that it shows."""
    own = [(key, value) for key, value in settings.items() if _home(key) == section]
    own.sort(key=lambda item: not item[0].startswith(section + "."))
    return [(key.removeprefix(section + "."), value) for key, value in own]


def _home(key: str) -> str:
    """Return which label shows a setting.

    The victim's training is the attack's, the holdout is the defense's, and the precision of products the network's.
    """
    section = _HOMES.get(key.split(".")[0], key.split(".")[0])
    return section if section in SECTIONS else "defense"


# --- Order -----------------------------------------------------------------------------------------------------------


def sort_key(section: str, name: str, settings: Settings) -> SortKey:
    """Return a key that sorts the labels of a section by name and then by settings, as people do."""
    return natural(name), [natural(value) for _, value in _of(section, settings)]


def natural(value: object) -> SortKey:
    """Return a sort key under which numbers come before words and ``x2`` before ``x10``."""
    if isinstance(value, int | float):
        return (0, value)
    words = re.split(r"(\d+)", plain(value))
    return (1, tuple((0, int(word)) if word.isdigit() else (1, word) for word in words))
