"""What the scripts that make tables share: batches of a small holdout, and a run carried out and told in one line."""

from __future__ import annotations

import sys
from typing import Any

from bdjax.runs import run
from bdjax.runs.config import Config
from bdjax.train import loop

# Parts of the holdout that make a batch, so that an epoch has as many steps on a small holdout as on a large one.
BATCHES_PER_HOLDOUT = {
    "ft": 2,
    "ft_sam": 2,
    "fine_pruning": 2,
    "l2_ft": 2,
    "sft": 4,
    "fast_sft": 4,
    "nft": 4,
}


def carry_out(config: Config, execution: run.Execution, file: Any = None) -> dict[str, Any] | None:
    """Carry out one run and print its rates; one that diverges has a record that says so, and None comes back."""
    try:
        record = run.run(config, execution)
    except loop.Diverged as diverged:
        print(
            f"{config.run_id} seed {config.seed}: {diverged}", file=file or sys.stdout, flush=True
        )
        run.mark_diverged(config, execution.out, str(diverged))
        return None
    after, cost = record["metrics"]["after"], record["cost"]
    print(
        f"{config.run_id} seed {config.seed}: ACC {after['clean_accuracy']:.1%}, "
        f"ASR {after['attack_success_rate']:.1%}, RA {after['robust_accuracy']:.1%}, {cost['run_seconds']:.0f} s",
        file=file or sys.stdout,
        flush=True,
    )
    return record
