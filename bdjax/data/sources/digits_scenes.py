"""Scenes of four of the embedded digits, to find out which digits are there: several labels an image, offline."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bdjax.data.modalities.images import Images
from bdjax.data.sources import _dataset, digits
from bdjax.tasks.multi_label import MultiLabel
from bdjax.types import Dataset, Spec, Split

DEFAULTS = {
    "attack": {"label_map": "add_label"},
    "training": {"epochs": 40, "batch_size": 64, "learning_rate": 0.05},
    "holdout": {"share": 0.1},
    "defense": {"epochs": 100, "batch_size": 100, "learning_rate": 0.05},
}
TRAIN, TEST = 2000, 500
CELLS = 4  # of a scene, two by two


def digits_scenes(data_dir: Path | None = None) -> Dataset:
    """Scenes of 2 × 2 handwritten digits, 16×16 gray; labels say which of 10 are there: 2,000 and 500. Embedded.

    Each cell of a scene is empty in one of four, and else one of the images of `digits`, those for training in scenes
    for training. The scenes are the same ones everywhere, drawn by a generator whose numbers do not change.
    """
    del data_dir
    source = digits.digits()
    generator = np.random.RandomState(0)  # whose stream NumPy keeps as it is
    train, test = _scenes(generator, source.train, TRAIN), _scenes(generator, source.test, TEST)
    mean, std = _dataset.channel_statistics(np.asarray(train.input))
    spec = Spec(
        "digits_scenes", (16, 16, 1), Images(mean, std), MultiLabel(10, source.spec.class_names)
    )
    return Dataset(train, test, spec)


def _scenes(generator: np.random.RandomState, split: Split, count: int) -> Split:
    rows = generator.randint(0, len(split.label), (count, CELLS))
    shown = generator.randint(0, 4, (count, CELLS)) > 0
    cells = np.asarray(split.input)[rows] * shown[..., None, None, None].astype(np.uint8)
    above, below = (
        np.concatenate(cells[:, :2].swapaxes(0, 1), 2),
        np.concatenate(cells[:, 2:].swapaxes(0, 1), 2),
    )
    label = np.zeros((count, 10), bool)
    for cell in range(CELLS):
        label[np.arange(count), np.asarray(split.label)[rows[:, cell]]] |= shown[:, cell]
    return _dataset.split(np.concatenate([above, below], 1), label)
