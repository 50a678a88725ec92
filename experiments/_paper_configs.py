"""The runs that answer a published value: a paper's protocol as values, at full size or at one for trying it out."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from _runs import BATCHES_PER_HOLDOUT

from bdjax import attacks, data, defenses, models
from bdjax.checks import InputError
from bdjax.report.published import Value
from bdjax.runs import config, schema

Options = dict[str, Any]

# Training images and classes. They decide how many images a holdout has, and thus the batch, before any data is read.
SIZES = {
    "cifar10": (50_000, 10),
    "gtsrb": (39_209, 43),
    "tiny_imagenet": (100_000, 200),
    "imagenet": (1_281_167, 1000),
    "digits": (1_347, 10),
}
PRUNING: Options = {"name": "fine_pruning", "epochs": 0}
# Names that differ from bdjax's. Whatever is not here is looked for in bdjax's folders under the paper's name.
DEFENSES: dict[str, Options] = {
    "fp": {"name": "fine_pruning"},
    "pruning": PRUNING,
    "fp_prune+ft_sam": {"name": "chain", "first": PRUNING, "second": {"name": "ft_sam"}},
    "anp+ft": {"name": "chain", "first": {"name": "anp"}, "second": {"name": "ft"}},
    "anp+ft_sam": {"name": "chain", "first": {"name": "anp"}, "second": {"name": "ft_sam"}},
    "ft_sam:no_adaptive": {"name": "ft_sam", "adaptive": False},
    "ft_sam:aug": {"name": "ft_sam", "augment": "mixup"},
    "rnp:aug": {"name": "rnp", "augment": "mixup"},
    "fsft": {"name": "fast_sft"},
    "fsft:no_trace": {"name": "fast_sft", "eta_f": 0},
    "fsft:no_lr": {"name": "fast_sft", "eta_r": 0},
    "sft_theta": {"name": "sft"},
    "nft:randaug": {"name": "nft", "augment": "randaugment"},
    "nft:adv": {"name": "nft", "augment": "adversarial"},
    **{f"nft:{name}": {"name": "nft", "augment": name} for name in ("cutmix", "augmix", "cutout")},
    "nft:bias_frozen": {"name": "nft"},
}
# After the colon, with a value
_VARIED = {"lr": "learning_rate", "bs": "batch_size", "eta_c": "eta_c"}
# What makes attacks cheap enough to try out, as in the two `configs/*_attacks.yaml`, and a wave of SIG that fits into
# eight pixels.
_SMALL_ATTACKS: dict[str, dict[str, Options]] = {
    "cifar10": {
        "ssba": {"width": 8},
        "input_aware": {"width": 8, "epochs": 10},
        "lc": {"steps": 20},
    },
    "digits": {
        "bpp": {"levels": 2},
        "cba": {"poison_rate": 0.08},
        "input_aware": {"width": 8, "poison_rate": 0.3, "cover_rate": 0.05, "learning_epochs": 20},
        "lc": {"epsilon": 0.3, "step_size": 0.03},
        "lira": {"learning_rate": 0.002},
        "sig": {"frequency": 2.0},
        "ssba": {
            "width": 8,
            "bits": 8,
            "epochs": 80,
            "learning_rate": 0.003,
            "delay": 50,
            "ramp": 300,
            "image_weight": 20,
        },
    },
}


class Missing(Exception):
    """There is no run for a value; the message says why in a few words."""


class Paper(NamedTuple):
    """What the tables of a paper and its supplement share.

    Attributes:
      source: the paper's sections that describe the protocol, and the script that repeats it.
      protocol: it in full.
      training: the victim's training, of (data set, bdjax's attack).
      attacks: options of bdjax's attacks.
      defense: options of a defense, of (value, its config so far), laid over it.
      networks: of data sets whose tables name none.
      clean_data: of data sets, the defender's images where a table states none; 5 % of the others.
      holdout: of data sets, options of the holdout beside these.
      held_out: whether the victim is trained without the defender's images.
      of_target_class: whether the poison rate of clean-label attacks is a share of the target class.
      own_rate: attacks whose own poison rate stands for the usual 10 %.
      averaged: attacks of the means in tables that print nothing else.
    """

    source: str
    protocol: str
    training: Callable[[str, str], Options]
    attacks: Mapping[str, Options] = {}
    defense: Callable[[Value, Options], Options] = lambda value, defense: {}
    networks: Mapping[str, str] = {}
    clean_data: Mapping[str, str] = {}
    holdout: Mapping[str, Options] = {}
    held_out: bool = False
    of_target_class: bool = False
    own_rate: tuple[str, ...] = ()
    averaged: tuple[str, ...] = ()


def protocol(*descriptions: str | None) -> str:
    """Return what descriptions of scripts say from the word Protocol on."""
    return "\n".join(
        "Protocol" + (text or "").partition("\nProtocol")[2].rstrip() for text in descriptions
    )


class Size(NamedTuple):
    """How large the runs are: the papers' size, or a stand-in's.

    Attributes:
      data: ``cifar10`` or ``digits`` in place of every data set, None for the papers' own.
      train_count: training images; width: of the network; epochs: of the victim; defense_epochs: at most.
    """

    data: str | None = None
    train_count: int | None = None
    width: int | None = None
    epochs: int | None = None
    defense_epochs: int | None = None

    def describe(self) -> str:
        """Say how large, for the caption."""
        if self.data is None:
            return "full size."
        return (
            f"DEBUG SIZE, {self.train_count:,} training images of {self.data}, width {self.width}, {self.epochs} "
            f"epochs, defenses {self.defense_epochs} at most, not augmented. This shows that everything runs; the "
            "differences say nothing about the paper."
        )


FULL = Size()
DEBUG = {
    "cifar10": Size("cifar10", 4_000, 8, 15, 30),
    "digits": Size("digits", SIZES["digits"][0], 16, 40, 60),
}


def values_of(paper: Paper, value: Value, size: Size, data_dir: str | None) -> Options:
    """Return the config, without seed, of the run that answers a published value.

    Raises:
      Missing: bdjax has no such data set, network, attack or defense.
    """
    if value.dataset not in data.names():
        raise Missing(f"no data set {value.dataset}")
    network = value.model or paper.networks[value.dataset]
    if network not in models.names():
        raise Missing(f"no network {network}")
    planted = _attack(paper, value)
    hidden = (
        {"start": "clean", "frozen_convolutions": 5} if value.attack.startswith("adaptive:") else {}
    )
    small = size.data is not None
    sizes = (
        (size.train_count, SIZES[size.data][1])
        if size.data and size.train_count
        else SIZES[value.dataset]
    )
    holdout = _holdout(
        value.clean_data or paper.clean_data.get(value.dataset, "5%"), *sizes, exact=not small
    )
    own = paper.holdout.get(value.dataset, {})
    values: Options = {
        "data": {"name": value.dataset, "data_dir": data_dir},
        "model": {"name": network},
        "attack": planted,
        "training": {**paper.training(value.dataset, planted["name"]), **hidden},
        "holdout": {**holdout, "held_out": paper.held_out, **({} if small else own)},
        "defense": _defense(paper, value),
    }
    values = _shrunk(values, size) if small else values
    rows = (
        holdout["per_class"] * sizes[1]
        if "per_class" in holdout
        else int(holdout["share"] * sizes[0])
    )
    varies_batch = value.defense.startswith("nft:bs=")
    defense = _batched(values["defense"], rows, by_share=small and not varies_batch)
    if varies_batch and defense["batch_size"] < values["defense"]["batch_size"]:
        raise Missing(f"a holdout of {rows} has no such batch")
    return {**values, "defense": defense}


@functools.cache
def _resolved(text: str) -> config.Config:
    return config.resolve(json.loads(text))


def resolve(values: Options, seed: int) -> config.Config:
    """Return the resolved config, once for all values of a table that it answers."""
    return _resolved(json.dumps({**values, "seed": seed}))


def _attack(paper: Paper, value: Value) -> Options:
    """Return the config of an attack under its published name."""
    kind, _, rest = value.attack.partition(":")
    base = rest if kind == "adaptive" else kind.removesuffix("_a2a").removesuffix("_a2o")
    if value.attack == "benign":
        return {"name": "badnets", "poison_rate": 0.0}
    if base not in attacks.names():
        raise Missing(f"no attack {base}")
    options: Options = {"name": base, **paper.attacks.get(base, {})}
    if kind == "combined":
        options["parts"] = rest
    if kind.endswith("_a2a"):
        options["label_map"] = "all_to_all"
    rate = (
        float((value.poison_rate or ("80%" if base in ("sig", "lc") else "10%")).rstrip("%")) / 100
    )
    if base in ("sig", "lc") and paper.of_target_class:
        return {**options, "target_class_rate": rate}
    if base in paper.own_rate and rate == 0.1:
        return options
    # No more cover samples than there are rows left in a batch
    if base == "wanet" and 3 * rate > 1:
        options["cover_ratio"] = (1 - rate) / rate
    return {**options, "poison_rate": rate}


def _defense(paper: Paper, value: Value) -> Options:
    """Return the config of a defense under its published name, with the paper's options."""
    name, _, varied = value.defense.partition(":")
    option, _, number = varied.partition("=")
    if value.defense in DEFENSES:
        options = DEFENSES[value.defense]
    elif name == "l2":
        options = {"name": "l2_ft", "gamma": float(varied)}
    elif name == "nft" and option in _VARIED:
        options = {"name": "nft", _VARIED[option]: int(number) if option == "bs" else float(number)}
    elif varied:
        raise Missing(f"no variant {value.defense}")
    else:
        options = {"name": name}

    def complete(part: Options) -> Options:
        if part["name"] not in defenses.names():
            raise Missing(f"no defense {part['name']}")
        return {**part, **paper.defense(value, part)}

    return _each_part(options, complete)


def _each_part(defense: Options, change: Callable[[Options], Options]) -> Options:
    """Change a defense, or each part of a chain."""
    if defense["name"] != "chain":
        return change(defense)
    return {**defense, **{part: _each_part(defense[part], change) for part in ("first", "second")}}


def _holdout(clean_data: str, images: int, classes: int, *, exact: bool) -> Options:
    """Return the defender's images; a small stand-in has one of each class at least."""
    if clean_data == "poisoned_trainset":
        clean_data = "5%"  # of no use to defenses that train anew, but a run has it
    kind, _, number = clean_data.rpartition("=")
    if kind == "spc":
        return {"per_class": int(number)}
    share = (
        int(number) / SIZES["cifar10"][0] if kind == "n" else float(clean_data.rstrip("%")) / 100
    )
    if kind == "n" and exact:
        return {"per_class": int(number) // classes}
    return {"share": share} if exact else {"per_class": max(1, int(share * images / classes))}


def _batched(defense: Options, rows: int, *, by_share: bool) -> Options:
    """Return the defense with batches that a holdout of so many images can fill; of a stand-in, a share of them."""

    def change(part: Options) -> Options:
        known = _defaults(part["name"])
        if "batch_size" not in known:
            return part
        size = part.get("batch_size", known["batch_size"])
        if by_share:
            size = rows // BATCHES_PER_HOLDOUT.get(part["name"], 1)
        return {**part, "batch_size": max(1, min(size, rows))}

    return _each_part(defense, change)


@functools.cache
def _defaults(defense: str) -> Mapping[str, Any]:
    """Return the default options of a defense."""
    chosen = schema.read_choice("defense", "bdjax.defenses", {"name": defense})
    return schema.plain(chosen.options)


def _shrunk(values: Options, size: Size) -> Options:
    """Return the config at the size of the stand-in."""
    assert size.data is not None
    digits, name = size.data == "digits", values["attack"]["name"]
    network = "small_cnn" if digits else values["model"]["name"]
    rate = 0.05 if digits else 0.1
    training = {
        **values["training"],
        "epochs": size.epochs,
        "batch_size": 64 if digits else 100,
        "learning_rate": rate,
    }
    if name == "input_aware" and digits:
        training["epochs"] = 60

    def shorter(part: Options) -> Options:
        known = _defaults(part["name"])
        if "epochs" not in known:
            return part
        return {**part, "epochs": min(part.get("epochs", known["epochs"]), size.defense_epochs)}

    return {
        **values,
        "data": {
            "name": size.data,
            "data_dir": values["data"]["data_dir"],
            **(
                {}
                if digits
                else {"train_count": size.train_count, "crop_padding": 0, "flip": False}
            ),
        },
        "model": {
            "name": network,
            **schema.shared_options(network, {"width": size.width}, "bdjax.models"),
        },
        "attack": {**values["attack"], **_SMALL_ATTACKS[size.data].get(name, {})},
        "training": {**training, "schedule": "cosine"},
        "defense": _each_part(values["defense"], shorter),
    }


def stand_in(data_dir: str | None) -> Size:
    """Return the debug size: of CIFAR-10, or of the digits where it is not at hand.

    Raises:
      InputError: it is not in the folder that was named for it.
    """
    try:
        data.load("cifar10", data_dir=data_dir)
    except InputError:
        if data_dir is not None:
            raise
        return DEBUG["digits"]
    return DEBUG["cifar10"]
