"""Draw the guide's contact sheet: the trigger of every attack on CIFAR-10, those that are learned trained briefly.

    python experiments/attack_sheet.py --data-dir ~/tensorflow_datasets --out sheets

The setting is configs/cifar10_attacks.yaml with 2,000 images and 8 epochs; about ten minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bdjax.cli import _progress
from bdjax.devices import compilation
from bdjax.report import contact_sheet
from bdjax.runs import config, schema, show
from bdjax.runs.run import Execution

ROOT = Path(__file__).resolve().parents[1]
ATTACKS = ("badnets", "blended", "sig", "lf", "trojan", "lc", "ssba", "wanet", "bpp")
ATTACKS += ("input_aware", "lira", "cba", "fba")
# What teaches an encoder or a mask something in so few steps.
OPTIONS: dict[str, dict[str, Any]] = {
    "ssba": {
        "width": 8, "bits": 16, "epochs": 30, "learning_rate": 0.003, "delay": 50, "ramp": 300, "image_weight": 20.0,
    },
    "input_aware": {"width": 8, "epochs": 5},
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="where prepared data sets lie")
    parser.add_argument("--out", type=Path, default=Path("sheets"), help="folder of the victims")
    parser.add_argument(
        "--file", type=Path, default=ROOT / "experiments" / "results" / "attacks.png"
    )
    options = parser.parse_args()
    compilation.enable_cache()
    base = schema.read(ROOT / "configs" / "cifar10_attacks.yaml")
    less = {"data": {"train_count": 2000, "data_dir": options.data_dir}, "training": {"epochs": 8}}
    contact_sheet.check(options.file)
    with _progress.bar() as on_epoch:
        execution = Execution(options.out, on_epoch=on_epoch)
        shown = []
        for name in ATTACKS:
            attack = {"attack": {"name": name, **OPTIONS.get(name, {})}}
            shown.append(
                show.show(config.resolve(schema.merge(schema.merge(base, less), attack)), execution)
            )
    print(contact_sheet.draw(shown, options.file, heading="Triggers on CIFAR-10 test images"))


if __name__ == "__main__":
    main()
