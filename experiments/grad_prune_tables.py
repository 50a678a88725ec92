"""Grad-Prune's Tables I and II: four attacks on CIFAR-10 and seven defenses with 2, 10 or 100 images of each class.

    python experiments/grad_prune_tables.py table1 --debug
    python experiments/grad_prune_tables.py table1 --estimate --data-dir ~/tensorflow_datasets
    python experiments/grad_prune_tables.py table2 --data-dir ~/tensorflow_datasets --seeds 0 1 2 3 4

Protocol (section V): attacks and baselines with BackdoorBench's defaults. PreAct-ResNet18 (II: VGG19-BN), SGD 0.01,
momentum 0.9, weight decay 5e-4, batches of 128, cosine over 100 epochs (BPP: constant); poison rate 10 %, target 0. A
tenth of the images is kept aside, one of 2. Grad-Prune has the attacker's trigger; it stops when accuracy has fallen by
0.1 or after 10 rounds without gain (the paper names no values; these are its code's). The paper draws five sets of
images for one victim; here each seed has a victim of its own.
"""

from __future__ import annotations

from _paper_configs import Options, Paper, protocol
from _paper_table import main

from bdjax.report.published import Value


def training(dataset: str, attack: str) -> Options:
    """Return the victim's training."""
    del dataset
    return {"epochs": 100, "schedule": "constant" if attack == "bpp" else "cosine"}


def defense(value: Value, part: Options) -> Options:
    """Return BackdoorBench's options of the baselines that have them."""
    del value
    return {"preset": "reference_code"} if part["name"] in ("ft", "ft_sam") else {}


GRAD_PRUNE = Paper(
    source="Protocol: Grad-Prune, section V (experiments/grad_prune_tables.py).",
    protocol=protocol(__doc__),
    training=training,
    defense=defense,
)
TABLES = {"table1": ("grad-prune", "Table I"), "table2": ("grad-prune", "Table II")}

if __name__ == "__main__":
    main(GRAD_PRUNE, TABLES, description=__doc__)
