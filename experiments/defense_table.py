"""Run every defense on the same victims and holdouts: the table that compares them, and the ablation of SFT.

    python experiments/defense_table.py --data-dir ~/tensorflow_datasets --out runs
    python experiments/defense_table.py --data-dir ~/tensorflow_datasets --out ablation --ablation --holdouts 0.05
    bdjax smoothness runs
    bdjax report runs --smoothness

The setting is configs/cifar10_small.yaml (10,000 training images, width 16, for two CPU cores); ``--config`` names
another. What is finished is not run again, so a run that was interrupted continues; one that diverges has no row. Each
defense has its paper's defaults but for the batch: a half (fine-tuning) or a quarter (SFT, NFT) of the holdout, so that
an epoch has as many steps on a small holdout as on a large one. With ``--steps-of`` the batch is that of the holdout of
this share on all of them, and there are so many fewer epochs on a larger one: as many steps, for as many gradients.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from _runs import BATCHES_PER_HOLDOUT, carry_out

from bdjax import registry
from bdjax.checks import InputError
from bdjax.cli import _progress, _signals
from bdjax.devices import compilation
from bdjax.runs import config, plans, run, schema
from bdjax.train import loop

ROOT = Path(__file__).resolve().parents[1]

DEFENSES: list[dict[str, Any]] = [
    {"name": "none"},
    {"name": "ft"},
    {"name": "ft_sam", "rho": 2},
    {"name": "sft"},
    {"name": "sft", "eta_f": 1e-5},  # the published weight diverges on these victims
    {"name": "fast_sft"},
    {"name": "fast_sft", "eta_f": "auto"},  # chosen on clean images alone
    {"name": "nft"},
    {"name": "grad_prune"},
    {"name": "fine_pruning"},
]
# SFT's Table 6: without the trace, without the anchor, and all weights instead of the singular values.
ABLATION: list[dict[str, Any]] = [
    {"name": "none"},
    {"name": "fast_sft"},
    {"name": "fast_sft", "eta_f": 0},
    {"name": "fast_sft", "eta_r": 0},
    {"name": "sft"},
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "cifar10_small.yaml")
    parser.add_argument("--data-dir", help="where prepared data sets lie")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--attacks", nargs="+", default=["badnets", "blended"], help="or all")
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="ATTACK.KEY=VALUE", help="of single attacks"
    )
    parser.add_argument("--holdouts", nargs="+", type=float, default=[0.01, 0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--defenses", nargs="+", help="only these; all by default")
    parser.add_argument(
        "--no-auto",
        action="store_true",
        help="without the strengths that are chosen on clean images",
    )
    parser.add_argument(
        "--steps-of",
        type=float,
        metavar="SHARE",
        help="batches and steps of a holdout of this share",
    )
    parser.add_argument("--ablation", action="store_true", help="the variants of SFT instead")
    options = parser.parse_args()
    compilation.enable_cache()
    given = schema.overrides([f"--{word}" for word in options.options])
    base = schema.read(options.config)
    rows = ABLATION if options.ablation else DEFENSES
    attacks = registry.names("bdjax.attacks") if options.attacks == ["all"] else options.attacks
    rows = [row for row in rows if not options.defenses or row["name"] in options.defenses]
    rows = [row for row in rows if not (options.no_auto and schema.AUTO in row.values())]
    try:
        with _signals.stop_on_signal() as should_stop, _progress.bar() as on_epoch:
            execution = run.Execution(options.out, on_epoch=on_epoch, should_stop=should_stop)
            for seed, share, attack in itertools.product(options.seeds, options.holdouts, attacks):
                own = {"name": attack, **given.get(attack, {})}
                changes = {"seed": seed, "attack": own, "holdout": {"share": share}}
                for defense in rows:
                    carry_out(
                        resolved(base, changes, options.data_dir, defense, options.steps_of),
                        execution,
                    )
    except (InputError, loop.Stopped) as reason:
        raise SystemExit(f"defense_table: {reason}") from None


def resolved(
    base: dict[str, Any],
    changes: dict[str, Any],
    data_dir: str | None,
    defense: dict[str, Any],
    steps_of: float | None = None,
) -> config.Config:
    """Return the config of one run; the defense of the base config is replaced as a whole."""
    values = schema.merge({key: value for key, value in base.items() if key != "defense"}, changes)
    values = schema.merge(values, {"data": {"data_dir": data_dir}} if data_dir else {})
    rows = reference = _holdout(values)
    default = config.resolve({**values, "defense": defense}).defense.options
    if steps_of is not None and "epochs" in default:
        reference = _holdout({**values, "holdout": {"share": steps_of}})
        defense = {**defense, "epochs": max(1, round(default["epochs"] * reference / rows))}
    if (parts := BATCHES_PER_HOLDOUT.get(defense["name"])) is not None:
        defense = {**defense, "batch_size": reference // parts}
    return config.resolve({**values, "defense": defense})


def _holdout(values: dict[str, Any]) -> int:
    """Return how many images the defender has."""
    return plans.holdout_size(config.resolve({**values, "defense": "none"}))


if __name__ == "__main__":
    main()
