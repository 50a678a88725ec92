"""How long a page of many runs takes, and how large it is: made-up records, as runs write them, in a temporary folder.

python experiments/bench_report.py --out experiments/results/report.json
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _measure
import numpy as np

from bdjax import report
from bdjax.files.atomic import write_arrays
from bdjax.report import page

ATTACKS = ("badnets", "blended", "bpp", "cba", "input_aware", "lc", "lf", "sig", "trojan", "wanet")
DEFENSES = (
    "none",
    "ft",
    "fine_pruning",
    "nft",
    "grad_prune",
    *(f"ft_sam {rho}" for rho in (0.5, 1.0, 2.0, 4.0, 8.0)),
)
EPOCHS, IMAGES, SIDE = 100, 16, 32
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VERSIONS = {
    "python": "3.12.0",
    "bdjax": "0.1.0",
    "jax": "0.11.0",
    "jaxlib": "0.11.0",
    "flax": "0.12.8",
}


def main() -> None:
    """Write records, time what the page does with them, and write the result."""
    options = _measure.arguments(__doc__, runs=1000, keep="")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.keep or temporary)
        write(folder, options.runs)
        started, used = time.perf_counter(), time.process_time()
        records = report.load([folder])
        loaded = time.perf_counter() - started
        file = page.write(records, folder / "report.html")
        results = {
            "seconds": time.perf_counter() - started,
            "processor_seconds": time.process_time() - used,
            "load_seconds": loaded,
            "bytes": file.stat().st_size,
            "runs": len(records),
            "rows": len(report.summarize(records)),
        }
    _measure.write(results, options.out)


def write(folder: Path, count: int) -> None:
    """Write the folders of so many runs, seed by seed, with a history and sample images."""
    random = np.random.default_rng(0)
    for number, (seed, attack, defense) in zip(range(count), _plans(), strict=False):
        run = folder / f"run{number:05}"
        run.mkdir(parents=True)
        (run / "record.json").write_text(
            json.dumps(_record(random, seed, attack, defense), indent=1)
        )
        write_arrays(run / "samples.npz", **_samples(random))


def _plans() -> Iterator[tuple[int, str, str]]:
    return (
        (seed, attack, defense)
        for seed in range(10_000)
        for attack in ATTACKS
        for defense in DEFENSES
    )


def _record(random: np.random.Generator, seed: int, attack: str, defense: str) -> dict[str, Any]:
    name, _, rho = defense.partition(" ")
    strength = {"none": 0.0, "ft": 0.2, "ft_sam": 0.3 + 0.08 * float(rho or 0)}.get(name, 0.7)
    spread = random.normal(0, 0.04, 3)
    before = _rates(0.93 + 0.02 * spread[0], 0.98, 0.02)
    success = float(np.clip(0.98 - strength + spread[1], 0, 1))
    after = _rates(0.93 - 0.05 * strength + 0.1 * spread[2], success, 0.9 * (1 - success))
    gained = max(0.0, before["attack_success_rate"] - after["attack_success_rate"])
    lost = max(0.0, before["clean_accuracy"] - after["clean_accuracy"])
    epochs = 0 if name == "none" else EPOCHS
    cost = {
        "compile_seconds": 5.0,
        "run_seconds": 0.4 * epochs,
        "gradient_evaluations": 20 * epochs,
        "epochs": epochs,
    }
    return {
        "schema_version": 1,
        "run_id": f"cifar10-{attack}-{name}-{rho}-{seed}",
        "victim_id": f"cifar10-{attack}-{seed}",
        "status": "finished",
        "config": _config(seed, attack, {"name": name} | ({"rho": float(rho)} if rho else {})),
        "versions": VERSIONS,
        "device": {
            "platform": "gpu",
            "kind": "made-up",
            "count": 1,
            "host_peak_bytes": int(random.integers(1 << 30)),
        },
        "data": {
            "name": "cifar10",
            "fingerprint": {"train": "5f" * 32, "test": "44" * 32},
            "shape": [SIDE, SIDE, 3],
            "num_classes": len(CLASSES),
            "class_names": CLASSES,
            "train_count": 50_000,
            "test_count": 10_000,
        },
        "metrics": {
            "before": before,
            "after": after,
            "defense_effectiveness_rating": (gained - lost + 1) / 2,
        },
        "stealth": {
            "test": {"psnr": 25.2, "ssim": 0.98, "linf": 0.67, "l2": 2.8, "changed_share": 0.01}
        },
        "cost": cost,
        "victim": {
            "compile_seconds": 7.0,
            "run_seconds": 160.0,
            "gradient_evaluations": 800,
            "epochs": EPOCHS,
        },
        "history": [
            {"epoch": e, "loss": 1 / e, "accuracy": 0.9, "seconds": 0.4}
            for e in range(1, epochs + 1)
        ],
    }


def _rates(clean: float, success: float, robust: float) -> dict[str, float]:
    counts = {
        "clean_correct": min(10_000, round(1e4 * clean)),
        "clean_total": 10_000,
        "attack_total": 9_000,
    }
    counts |= {"attack_hits": round(9e3 * success), "robust_correct": round(9e3 * robust)}
    return counts | {
        "clean_accuracy": counts["clean_correct"] / 1e4,
        "attack_success_rate": counts["attack_hits"] / 9e3,
        "robust_accuracy": counts["robust_correct"] / 9e3,
    }


def _config(seed: int, attack: str, defense: dict[str, Any]) -> dict[str, Any]:
    training = {
        "epochs": 100,
        "batch_size": 128,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0005,
    }
    schedule = {"kind": "cosine", "period": None, "factor": 0.1, "per": "epoch"}
    label_map = {"label_map": "all_to_one", "target_label": 0, "poison_rate": 0.1}
    return {
        "seed": seed,
        "data": {
            "name": "cifar10",
            "data_dir": None,
            "train_count": None,
            "crop_padding": 4,
            "flip": True,
        },
        "model": {"name": "preact_resnet18", "width": 64, "dtype": "float32"},
        "attack": {"name": attack, **label_map},
        "training": {
            **training,
            "schedule": schedule,
            "label_smoothing": 0.0,
            "augment": "standard",
        },
        "holdout": {"share": 0.05, "per_class": None, "balanced": True, "held_out": False},
        "defense": {**defense, **training, "schedule": schedule, "augment": "standard"},
    }


def _samples(random: np.random.Generator) -> dict[str, np.ndarray]:
    clean = random.integers(0, 256, (IMAGES, SIDE, SIDE, 3), dtype=np.uint8)
    triggered = clean.copy()
    triggered[:, -4:, -4:] = 255
    label = np.arange(IMAGES) % 10
    predictions = {
        f"{which}_{when}": label for which in ("clean", "triggered") for when in ("before", "after")
    }
    return {
        "clean": clean,
        "triggered": triggered,
        "label": label,
        **predictions,
        "triggered_before": 0 * label,
    }


if __name__ == "__main__":
    main()
