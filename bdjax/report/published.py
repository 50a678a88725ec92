"""Published results: what the papers print, as values to compare with. `published.md` says what they mean and miss."""

from __future__ import annotations

import csv
import functools
import importlib.resources
from collections.abc import Mapping
from typing import Any, NamedTuple

from bdjax.checks import InputError, did_you_mean, one_of

TASK = "image-classification"
# What a paper varies of a method without giving it another name: the part of an identifier after the colon.
_SETTINGS = ("lr=", "bs=", "eta_c=", "bias_")
# The others have the papers' identifiers
_DEFENSES = {"fast_sft": "fsft", "sft": "sft_theta", "fine_pruning": "fp"}
_AUGMENTED = {
    ("nft", "randaugment"): "nft:randaug",
    ("nft", "cutmix"): "nft:cutmix",
    ("nft", "augmix"): "nft:augmix",
    ("nft", "cutout"): "nft:cutout",
    ("nft", "adversarial"): "nft:adv",
    ("ft_sam", "mixup"): "ft_sam:aug",
    ("rnp", "mixup"): "rnp:aug",
}
_NFT = {
    "learning_rate": (0.05, "nft:lr="),
    "batch_size": (128, "nft:bs="),
    "eta_c": (None, "nft:eta_c="),
}


class Value(NamedTuple):
    """One number of a published table.

    Attributes:
      paper, table: where it is printed: ``ft-sam``, ``ft-sam-supp``, ``sft``, ``nft-supp`` or ``grad-prune``.
      task: ``image-classification``, or one of those that bdjax does not have.
      dataset, model, attack, defense: identifiers that are the same in all papers; empty where a paper names none.
      poison_rate: as printed, ``10%``; of the target class for the clean-label attacks of SFT and NFT.
      clean_data: the defender's images: ``5%`` of the training set, ``spc=10`` per class, ``n=100`` in all,
        ``poisoned_trainset``, or empty.
      metric: ``acc``, ``asr``, ``ra``, ``der``, ``lcr``, ``acc_drop``, ``asr_drop`` (%), ``runtime_s``,
        ``lambda_max``, ``trace_h``.
      value, std: as printed; std is None where the paper has none.
      note: what is known to be wrong with it.
    """

    paper: str
    table: str
    task: str
    dataset: str
    model: str
    attack: str
    poison_rate: str
    clean_data: str
    defense: str
    metric: str
    value: float
    std: float | None
    note: str


class Names(NamedTuple):
    """The identifiers of a run's parts; None where no paper has such a thing."""

    dataset: str | None
    model: str | None
    attack: str | None
    defense: str | None


@functools.cache
def load() -> tuple[Value, ...]:
    """Return all published values, in the order of the papers and their tables."""
    text = (
        importlib.resources.files("bdjax.report")
        .joinpath("published.csv")
        .read_text(encoding="utf-8")
    )
    return tuple(map(_value, csv.DictReader(text.splitlines())))


def _value(row: dict[str, str]) -> Value:
    numbers = {"value": float(row["value"]), "std": float(row["std"]) if row["std"] else None}
    return Value(**{**row, **numbers})  # type: ignore[arg-type]


def select(**columns: Any) -> tuple[Value, ...]:
    """Return the values whose columns equal the given ones.

    Raises:
        InputError: no such column, or a word that is nowhere in it; the message names the nearest.

    >>> from bdjax.report import published
    >>> [(v.metric, v.value) for v in published.select(table="Table 1", attack="blended", defense="ft_sam",
    ...                                                dataset="cifar10", paper="ft-sam")]
    [('acc', 92.44), ('asr', 4.91), ('der', 95.9)]
    """
    for column, wanted in columns.items():
        one_of(Value._fields, column=column)
        known = _occurring(column)
        if wanted not in known:
            near = did_you_mean(wanted, map(str, known))
            raise InputError(f"{column} {wanted!r} is in no published table{near}.")
    return tuple(
        value for value in load() if all(getattr(value, name) == columns[name] for name in columns)
    )


@functools.cache
def _occurring(column: str, task: str | None = None) -> frozenset[Any]:
    return frozenset(getattr(value, column) for value in load() if task in (None, value.task))


def names(config: Mapping[str, Any]) -> Names:
    """Return the papers' identifiers of a resolved run config, such as that of a record.

    Of all settings only those count under which the papers give a method another name: the label map, a changed
    penalty or augmentation, the values that a table varies. The form of a trojan trigger does not: FT-SAM's are made
    with neurons, SFT's and NFT's are watermarks. A network's width is left aside too.
    """
    found = (
        config["data"]["name"],
        config["model"]["name"],
        _attack(config),
        _defense(config["defense"]),
    )
    columns = ("dataset", "model", "attack", "defense")
    return Names(
        *(
            name if name in _occurring(column, TASK) else None
            for column, name in zip(columns, found, strict=True)
        )
    )


def of_config(config: Mapping[str, Any]) -> tuple[Value, ...]:
    """Return the values published for the same data set, network, attack and defense, whatever the setting.

    Poison rate, clean data and hyper-parameters may differ from the run's, so these are for orientation. A value whose
    table names no network (NFT's on CIFAR-10) is among them. For the defense ``none`` they are of the attacked network.
    """
    run = names(config)
    if None in run:
        return ()
    return tuple(
        value
        for value in load()
        if value.task == TASK
        and (value.dataset, value.attack) == (run.dataset, run.attack)
        and value.model in (run.model, "")
        and method(value.defense) == method(str(run.defense))
    )


def method(defense: str) -> str:
    """Return a defense's identifier without the settings that a table varies.

    >>> from bdjax.report import published
    >>> published.method("nft:lr=0.01"), published.method("nft:cutmix")
    ('nft', 'nft:cutmix')
    """
    name, _, variant = defense.partition(":")
    return name if variant.startswith(_SETTINGS) else defense


def _attack(config: Mapping[str, Any]) -> str | None:
    attack, training = config["attack"], config.get("training", {})
    if config.get("victim"):
        return None  # nobody knows how it was trained
    if 0 in (attack.get("poison_rate"), attack.get("target_class_rate")):
        return "benign"
    if training.get("rho") is not None or training.get("eta_f") is not None:
        return None  # an attacker who seeks a flat minimum
    name = attack["name"]
    if name == "combined":
        return _combined(attack["parts"])
    to_all = attack.get("label_map") == "all_to_all"
    if training.get("frozen_convolutions", 0):
        return None if to_all else f"adaptive:{name}"
    if to_all:
        return f"{name}_a2a"
    return "badnets_a2o" if name == "badnets" else name


def _combined(parts: str) -> str | None:
    """Return the combined attack of the same parts in whatever order."""
    known = (name for name in _occurring("attack", TASK) if name.startswith("combined:"))
    return next(
        (name for name in known if set(name.partition(":")[2].split("+")) == set(parts.split("+"))),
        None,
    )


def _defense(options: Mapping[str, Any]) -> str | None:
    name, augment = options["name"], options.get("augment", "")
    special = {"chain": _chain, "nft": _nft, "fast_sft": _fast_sft, "sft": _sft, "ft_sam": _ft_sam}
    if name == "l2_ft":
        return f"l2:{options.get('gamma', 0.01):g}"
    if name == "fine_pruning" and options.get("epochs") == 0:
        return "pruning"
    if (name, augment) in _AUGMENTED:
        return _AUGMENTED[name, augment]
    return special[name](options) if name in special else _DEFENSES.get(name, name)


def _chain(options: Mapping[str, Any]) -> str | None:
    first, second = _defense(options["first"]), _defense(options["second"])
    if first == "pruning":
        return {"ft": "fp", "ft_sam": "fp_prune+ft_sam"}.get(second or "")
    return f"{first}+{second}"


def _ft_sam(options: Mapping[str, Any]) -> str | None:
    return "ft_sam" if options.get("adaptive", True) else "ft_sam:no_adaptive"


def _fast_sft(options: Mapping[str, Any]) -> str | None:
    without = (options.get("eta_f") == 0, options.get("eta_r") == 0)
    return {
        (False, False): "fsft",
        (True, False): "fsft:no_trace",
        (False, True): "fsft:no_lr",
    }.get(without)


def _sft(options: Mapping[str, Any]) -> str | None:
    return None if 0 in (options.get("eta_f"), options.get("eta_r")) else "sft_theta"


def _nft(options: Mapping[str, Any]) -> str | None:
    """Return the variant of NFT whose only changed setting a table has, else NFT itself."""
    if options.get("augment", "mixup") != "mixup":
        return None  # the augmentations that a table has have been found before
    changed = [key for key, (default, _) in _NFT.items() if options.get(key, default) != default]
    if len(changed) != 1:
        return "nft"
    prefix = _NFT[changed[0]][1]
    variants = (name for name in _occurring("defense", TASK) if name.startswith(prefix))
    wanted = options[changed[0]]
    return next((name for name in variants if float(name.partition("=")[2]) == wanted), "nft")
