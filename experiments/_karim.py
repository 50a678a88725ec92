"""What SFT and NFT share.

Protocol of victims and baselines (SFT A.5, NFT 2.1 and 2.3):

- SGD, momentum 0.9. CIFAR-10: 250 epochs, 0.01, a tenth every 100 epochs, weight decay 5e-4, batches of 128. GTSRB: 200
  epochs (NFT: 250), 0.01. Tiny-ImageNet: 150 epochs, 0.005, a tenth every 60, weight decay 1e-4. ImageNet: 200 epochs,
  0.02, a tenth every 75, weight decay 1e-4, batches of 32.
- Poison rate 10 % (Tiny-ImageNet and ImageNet 5 %), SIG and LC 80 % of the target class; LIRA and CBA at their own
  rates: LIRA shows every image both ways, and CBA poisons one class alone.
- BadNets 3 x 3 checkerboard at the lower left, Blend of noise at 0.2, SIG at 0.2, Trojan as a static watermark.
- The defender's images are held out of the victim's training, so each size of them has a victim of its own.
- FT: 125 epochs at 0.01 (Tiny-ImageNet 25, ImageNet 3). FT-SAM: 100 epochs, 0.01, weight decay 1e-4, batches of 128;
  rho is not said, so FT-SAM's own.
"""

from __future__ import annotations

from typing import Any

from _paper_configs import Options

from bdjax.report.published import Value

# What the tables of both papers have in common, as arguments of `_paper_configs.Paper`.
SHARED: dict[str, Any] = {
    "attacks": {
        "badnets": {"preset": "sft"},
        "sig": {"preset": "sft"},
        "trojan": {"form": "watermark"},
    },
    "clean_data": {"cifar10": "1%", "gtsrb": "3%", "tiny_imagenet": "5%", "imagenet": "3%"},
    "held_out": True,
    # The papers draw from one permutation of all images, whatever sign they show
    "holdout": {"gtsrb": {"by_group": False}},
    "of_target_class": True,
    "own_rate": ("lira", "cba"),
    "averaged": (
        *(
            "badnets_a2o",
            "blended",
            "trojan",
            "trojan_a2a",
            "sig",
            "input_aware",
            "input_aware_a2a",
            "lc",
        ),
        *("cba", "fba", "lira", "wanet", "ssba", "bpp"),
    ),
}
_STEP: Options = {"kind": "step", "factor": 0.1}
_TRAINING: dict[str, Options] = {
    "cifar10": {"epochs": 250, "schedule": {**_STEP, "period": 100}},
    "gtsrb": {"epochs": 200, "schedule": {"kind": "constant"}},
    "tiny_imagenet": {
        "epochs": 150,
        "learning_rate": 0.005,
        "weight_decay": 1e-4,
        "schedule": {**_STEP, "period": 60},
    },
    "imagenet": {
        "epochs": 200,
        "learning_rate": 0.02,
        "weight_decay": 1e-4,
        "batch_size": 32,
        "schedule": {**_STEP, "period": 75},
    },
}


def training(dataset: str, attack: str) -> Options:
    """Return the victim's training, the same for all attacks."""
    del attack
    return _TRAINING[dataset]


def baseline(value: Value, part: Options) -> Options:
    """Return the options of FT and FT-SAM."""
    if part["name"] == "ft":
        return {
            "epochs": {"tiny_imagenet": 25, "imagenet": 3}.get(value.dataset, 125),
            "batch_size": 128,
        }
    if part["name"] == "ft_sam":
        rho = 2 if value.dataset == "cifar10" else 8
        return {"rho": rho, "batch_size": 128, "epochs": 100}
    if part["name"] == "fine_pruning" and "epochs" not in part:
        return {"epochs": 100}
    return {}
