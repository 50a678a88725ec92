"""SFT's tables of image classification (FIP's, in its released code), each value beside ours.

    python experiments/sft_tables.py table6 --debug
    python experiments/sft_tables.py table1 --estimate --data-dir ~/tensorflow_datasets
    bdjax smoothness runs       (before table15, for its eigenvalues and traces)

Protocol (sections 6.1, A.4 and A.5; victims and baselines: `_karim.py`). SFT is there what bdjax calls fast SFT, of
singular values; Table 6 has that of all weights. 1 % of CIFAR-10, 100 epochs, SGD 0.01, a tenth every 40 epochs, eta_F
0.001, eta_r 5, the trace's gradient every 10 steps; the batch, which is not said, is 128. GTSRB: 3 %. Tiny-ImageNet:
5 %, 15 epochs, times 0.3 each. ImageNet: 3 %, 2 epochs at 0.001. Seconds (Tables 5, 6, 14) are of an RTX 3090 there.
"""

from __future__ import annotations

import _karim
from _paper_configs import Options, Paper, protocol
from _paper_table import main

from bdjax.report.published import Value

NETWORKS = {
    "cifar10": "preact_resnet18",
    "gtsrb": "wrn_16_1",
    "tiny_imagenet": "resnet34",
    "imagenet": "resnet50",
}
SCHEDULES: dict[str, Options] = {
    "tiny_imagenet": {"epochs": 15, "schedule": {"kind": "step", "period": 1, "factor": 0.3}},
    "imagenet": {"epochs": 2, "learning_rate": 0.001, "schedule": {"kind": "constant"}},
}


def defense(value: Value, part: Options) -> Options:
    """Return the options of SFT on a data set, or a baseline's."""
    if part["name"] in ("sft", "fast_sft"):
        return SCHEDULES.get(value.dataset, {})
    return _karim.baseline(value, part)


SFT = Paper(
    source="Protocol: SFT, sections 6.1, A.4 and A.5 (experiments/sft_tables.py).",
    protocol=protocol(__doc__, _karim.__doc__),
    training=_karim.training,
    defense=defense,
    networks=NETWORKS,
    **_karim.SHARED,
)
TABLES = {f"table{n}": ("sft", f"Table {n}") for n in (1, 5, 6, 7, 10, 11, *range(13, 22))}

if __name__ == "__main__":
    main(SFT, TABLES, description=__doc__)
