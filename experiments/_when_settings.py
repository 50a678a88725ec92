"""The cells of `when_does_it_work.py`: around a base, one thing changed at a time, at three sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from bdjax.runs import config as configs
from bdjax.runs import plans, schema
from bdjax.runs.config import Config

Options = Mapping[str, Any]
NOTHING: Mapping[str, Any] = MappingProxyType({})
# Fine-tuning and FT-SAM are the controls. All have their papers' rates and weights, and the steps of `Size.defense`.
DEFENSES: dict[str, Options] = {
    "ft": {"learning_rate": 0.01},
    "ft_sam": {"learning_rate": 0.01, "rho": 2.0},
    "sft": {"learning_rate": 0.01},
    "fast_sft": {"learning_rate": 0.01},
    "nft": {"learning_rate": 0.05},
}
# The victims of the papers of SFT and NFT: 250 epochs at 0.01, a tenth every 100.
PAPERS = {
    "epochs": 250,
    "learning_rate": 0.01,
    "schedule": {"kind": "step", "period": 100.0, "factor": 0.1},
}
MIXUP = {"augment": "mixup"}  # which NFT has
RESIDUAL = {"model": {"name": "preact_resnet18", "width": 8}}
HELD_OUT = {"holdout": {"held_out": True}}


class Level(NamedTuple):
    """What is changed in a cell.

    Attributes:
      factor, name: what is changed, and to what.
      changes: sections of the config.
      own: options of single defenses; a cell that has any is of these alone.
      every: options of all defenses.
      rate, steps: factors on the learning rate and on the epochs of the defense.
      sums: the paper's loss as it is written, a sum over the holdout, to which the penalties are small.
      statistics: of batch norm in the defense, of `_when_variants.MODELS`.
      weight_decay: of NFT's masks, which the paper has and neither its code nor `nft`.
      norms: fast SFT tunes batch norms and biases beside the singular values, as an optimizer does that is given all
        parameters of the authors' layer.
      knows: the defender has each image of the holdout also with the trigger and its true label. That is no defense of
        a paper: it shows whether what is tuned could remove the backdoor at all.
    """

    factor: str
    name: str
    changes: Options = NOTHING
    own: Mapping[str, Options] = NOTHING
    every: Options = NOTHING
    rate: float = 1.0
    steps: int = 1
    sums: bool = False
    statistics: str = "train"
    weight_decay: float = 0.0
    norms: bool = False
    knows: bool = False

    @property
    def title(self) -> str:
        return self.factor if not self.name else f"{self.factor}: {self.name}"

    @property
    def defenses(self) -> list[str]:
        """Names of the defenses of the cell; SFT's paper alone has a sum, and NFT's a weight decay of masks."""
        if self.own:
            return list(self.own)
        if self.sums:
            return ["sft", "fast_sft"]
        if self.norms:
            return ["fast_sft"]
        return ["nft"] if self.weight_decay else list(DEFENSES)


class Size(NamedTuple):
    """A size of the experiment.

    Attributes:
      base: sections of the config.
      levels: its cells, the base first.
      steps_per_epoch, epochs: of the defense; the papers' 500 images are four batches, 100 times.
      attacks: what the victims are attacked with.
    """

    base: Options
    levels: Sequence[Level]
    attacks: Sequence[str]
    steps_per_epoch: int = 4
    epochs: int = 100


# Nothing that holds fast SFT and NFT back: neither anchor nor trace, neither penalty nor lower bound.
FREE = {"fast_sft": {"eta_f": 0.0, "eta_r": 0.0}, "nft": {"eta_c": 0.0, "alpha": 0.0}}
WEIGHTS = [
    Level("weights", "η_F = 1e-2", own={"sft": {"eta_f": 1e-2}}),
    Level("weights", "η_F = 1e-4", own={"sft": {"eta_f": 1e-4}}),
    Level("weights", "η_F = 1e-5", own={"sft": {"eta_f": 1e-5}}),
    Level("weights", "η_F = 1e-6", own={"sft": {"eta_f": 1e-6}}),
    Level("weights", "η_F = 0.1", own={"sft": {"eta_f": 0.1}, "fast_sft": {"eta_f": 0.1}}),
    Level(
        "weights", "η_r = 0", own={"sft": {"eta_r": 0.0, "eta_f": 1e-5}, "fast_sft": {"eta_r": 0.0}}
    ),
    Level("weights", "η_r = 0, rate × 25", own={"fast_sft": {"eta_r": 0.0}}, rate=25),
    Level("weights", "η_c = 0", own={"nft": {"eta_c": 0.0}}),
    Level("weights", "η_c = 0, μ = 0", own={"nft": {"eta_c": 0.0, "alpha": 0.0}}),
    Level("weights", "weight decay 5e-4", weight_decay=5e-4),
]


def _around(papers: Options, own: Sequence[Level]) -> list[Level]:
    """Return the cells of a size, the most telling first."""
    theirs = {"training": papers, **HELD_OUT}
    return [
        Level("base", ""),
        Level("victim", "papers' epochs and rate", {"training": papers}),
        Level("victim", "holdout held out", HELD_OUT),
        Level("victim", "both", theirs),
        Level("both, rate", "× 5", theirs, rate=5),
        Level("both, rate", "× 25", theirs, rate=25),
        Level("both, steps", "× 5", theirs, steps=5),
        Level("both, loss", "sum", theirs, sums=True),
        Level("both, statistics", "eval", theirs, statistics="eval"),
        Level("both, tuned", "batch norms too", theirs, norms=True),
        Level("both, tuned", "batch norms too, rate × 5", theirs, norms=True, rate=5),
        Level("both, weights", "no penalty, rate × 25", theirs, own=FREE, rate=25),
        Level(
            "both, weights", "no penalty, rate × 25, steps × 5", theirs, own=FREE, rate=25, steps=5
        ),
        Level(
            "both, trigger known",
            "",
            theirs,
            own=dict.fromkeys(("ft", "fast_sft", "nft"), NOTHING),
            knows=True,
        ),
        Level(
            "both, trigger known", "no penalty, rate × 25", theirs, own=FREE, rate=25, knows=True
        ),
        Level("rate", "× 5", rate=5),
        Level("rate", "× 25", rate=25),
        Level("steps", "× 5", steps=5),
        Level("loss", "sum", sums=True),
        Level("statistics", "eval", statistics="eval"),
        Level("statistics", "batch", statistics="batch"),
        Level("tuned", "batch norms too", norms=True),
        Level("augmentation", "none", every={"augment": "none"}),
        Level(
            "augmentation", "mixup", own=dict.fromkeys(("ft", "ft_sam", "sft", "fast_sft"), MIXUP)
        ),
        Level("poison rate", "1 %", {"attack": {"poison_rate": 0.01}}),
        Level("poison rate", "5 %", {"attack": {"poison_rate": 0.05}}),
        *own,
        *WEIGHTS,
    ]


_NETWORKS = (
    Level("network", "width 4", {"model": {"width": 4}}),
    Level("network", "width 32", {"model": {"width": 32}}),
    Level("network", "preact_resnet18, width 8", RESIDUAL),
    Level(
        "both, network", "preact_resnet18, width 8", {"training": PAPERS, **HELD_OUT, **RESIDUAL}
    ),
)
_DIGITS = Size(
    base={
        "data": {"name": "digits"},
        "model": {"name": "small_cnn", "width": 16},
        "attack": {"poison_rate": 0.1},
        "training": {"epochs": 20, "batch_size": 64, "learning_rate": 0.05, "schedule": "cosine"},
        "holdout": {"per_class": 20},
    },
    levels=_around(
        PAPERS,
        [
            *_NETWORKS,
            Level("images", "600", {"data": {"train_count": 600}}),
            Level("holdout", "50", {"holdout": {"per_class": 5}}),
            Level("holdout", "500", {"holdout": {"per_class": 50}}),
        ],
    ),
    attacks=("badnets", "blended"),
)
_CIFAR10 = Size(
    base={
        "data": {"name": "cifar10", "train_count": 4000, "image_size": 16},
        "model": {"name": "small_cnn", "width": 16},
        "attack": {"poison_rate": 0.1},
        "training": {"epochs": 40, "batch_size": 50, "learning_rate": 0.05, "schedule": "cosine"},
        "holdout": {"share": 0.125},
    },
    levels=_around(
        PAPERS,
        [
            *_NETWORKS,
            Level("images", "10,000", {"data": {"train_count": 10000}, "holdout": {"share": 0.05}}),
            Level("holdout", "100", {"holdout": {"share": 0.025}}),
            Level("holdout", "1,000", {"holdout": {"share": 0.25}}),
        ],
    ),
    attacks=("badnets", "blended"),
)
FULL = Size(
    base={
        "data": {"name": "cifar10"},
        "model": {"name": "preact_resnet18", "width": 64},
        "attack": {"poison_rate": 0.1},
        "training": {"epochs": 100, "batch_size": 128, "learning_rate": 0.01, "schedule": "cosine"},
        "holdout": {"share": 0.01},
    },
    levels=_around(
        PAPERS,
        [
            Level("network", "width 16", {"model": {"width": 16}}),
            Level(
                "images",
                "10,000, of which 500 are clean",
                {"data": {"train_count": 10000}, "holdout": {"share": 0.05}},
            ),
            Level("holdout", "2,500", {"holdout": {"share": 0.05}}),
        ],
    ),
    attacks=("badnets", "blended"),
)
DEBUG = _DIGITS._replace(
    base={
        **_DIGITS.base,
        "data": {"name": "digits", "train_count": 200},
        "model": {"name": "small_cnn", "width": 2},
        "training": {**_DIGITS.base["training"], "epochs": 1},
        "holdout": {"per_class": 2},
    },
    levels=[
        Level("base", "", own={"ft": {}, "fast_sft": {}}),
        Level(
            "held out",
            "eval",
            {"training": {"epochs": 3}, **HELD_OUT},
            own={"nft": {}, "ft": {}},
            statistics="eval",
        ),
    ],
    attacks=("badnets",),
    epochs=1,
)
SIZES = {"debug": DEBUG, "digits": _DIGITS, "cifar10": _CIFAR10, "full": FULL}


def resolved(
    size: Size, level: Level, attack: str, defense: str, seed: int, data_dir: str | None = None
) -> Config:
    """Return the config of one run."""
    changes = {
        "seed": seed,
        "attack": {"name": attack},
        **({"data": {"data_dir": data_dir}} if data_dir else {}),
    }
    values = schema.merge(schema.merge(size.base, level.changes), changes)
    images = plans.holdout_size(configs.resolve({**values, "defense": "none"}))
    return configs.resolve(
        {**values, "defense": {"name": defense, **_options(size, level, defense, images)}}
    )


def _options(size: Size, level: Level, defense: str, images: int) -> dict[str, Any]:
    given = DEFENSES[defense]
    options = {**given, **level.every, **level.own.get(defense, {})}
    options["learning_rate"] = given["learning_rate"] * level.rate
    options["batch_size"] = max(1, images // size.steps_per_epoch)
    options["epochs"] = size.epochs * level.steps
    if level.steps > 1 and "sft" in defense:  # which falls every 40 of the papers' 100 epochs
        options["schedule"] = {"kind": "step", "period": 40.0 * level.steps, "factor": 0.1}
    if level.sums:
        options |= {"eta_f": 0.001 / images, "eta_r": 5.0 / images}
    return options
