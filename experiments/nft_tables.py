"""The tables of image classification in NFT's supplement, each value beside ours.

    python experiments/nft_tables.py s7 --debug
    python experiments/nft_tables.py s12 --estimate --data-dir ~/tensorflow_datasets

Protocol (supplement, sections 2.1 to 2.3 and Tables 1, 2; victims and baselines: `_karim.py`). Masks from 1, SGD 0.05,
momentum 0.9, 100 epochs, batches of 128, MixUp, 1 % of CIFAR-10, 3 % of GTSRB. Tiny-ImageNet: 5 %, 200 epochs at 0.01,
times 0.65 every 20. ImageNet: 3 %, 10 epochs at 0.001, times 0.65 each, batches of 32. The networks of CIFAR-10 are not
named: PreAct-ResNet18, as in Table 13. Table 13: a clean network first, then its last five convolutions frozen.
Table 18 varies eta_c; elsewhere it is 1e-3 over the images per class, as in the released code.
"""

from __future__ import annotations

import _karim
from _paper_configs import Options, Paper, protocol
from _paper_table import main

from bdjax.report.published import Value

NETWORKS = {
    "cifar10": "preact_resnet18",
    "gtsrb": "resnet18",
    "tiny_imagenet": "resnet34",
    "imagenet": "resnet50",
}
SCHEDULES: dict[str, Options] = {
    "tiny_imagenet": {
        "epochs": 200,
        "learning_rate": 0.01,
        "schedule": {"kind": "step", "period": 20, "factor": 0.65},
    },
    "imagenet": {
        "epochs": 10,
        "learning_rate": 0.001,
        "batch_size": 32,
        "schedule": {"kind": "step", "period": 1, "factor": 0.65},
    },
}


def training(dataset: str, attack: str) -> Options:
    """Return the victim's training; NFT's on GTSRB is longer than SFT's."""
    return {**_karim.training(dataset, attack), **({"epochs": 250} if dataset == "gtsrb" else {})}


def defense(value: Value, part: Options) -> Options:
    """Return the options of NFT on a data set, or a baseline's."""
    return (
        SCHEDULES.get(value.dataset, {}) if part["name"] == "nft" else _karim.baseline(value, part)
    )


NFT = Paper(
    source="Protocol: NFT's supplement, sections 2.1 to 2.3 (experiments/nft_tables.py).",
    protocol=protocol(__doc__, _karim.__doc__),
    training=training,
    defense=defense,
    networks=NETWORKS,
    **_karim.SHARED,
)
TABLES = {f"s{n}": ("nft-supp", f"Table {n}") for n in (3, 4, *range(6, 19))}

if __name__ == "__main__":
    main(NFT, TABLES, description=__doc__)
