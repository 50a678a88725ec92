"""The real handwritten digits that scikit-learn ships, embedded: no network, no extra package."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import numpy as np

from bdjax.data.sources import _dataset
from bdjax.types import Dataset

# The papers' schedules are for CIFAR-10 and larger; 1,347 small digits want steps of another size.
DEFAULTS = {
    "training": {"epochs": 20, "batch_size": 64, "learning_rate": 0.05},
    "holdout": {"per_class": 20},
    "defense": {"epochs": 100, "batch_size": 100, "learning_rate": 0.05},
}
# Of what does not tune weights by SGD the rate is another one, and its own
DEFENSES = {
    "anp": {"epochs": 500, "learning_rate": 0.2},
    "awm": {"epochs": 20, "learning_rate": 0.01},
    "rnp": {"epochs": 20, "learning_rate": 0.2},
}


def digits(data_dir: Path | None = None) -> Dataset:
    """Handwritten digits, 8×8 gray, 10 classes: 1,347 to train and 450 to test. Embedded; ``data_dir`` is not read.

    The images are the 1,797 of ``sklearn.datasets.load_digits``. Their values 0 … 16 become round(255·v/16), half to
    even, so that they fill uint8 like the pixels of any other image.

    The split is fixed and depends on no key: the images are sorted by class, in scikit-learn's order within a class,
    and every fourth of them, the first included, is a test image (44 to 46 of each class). Both splits keep
    scikit-learn's order.

    Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    1998, https://doi.org/10.24432/C50P49, the test part; licensed under CC BY 4.0. Changes: rescaled and split as
    above.
    """
    del data_dir
    with importlib.resources.files("bdjax.data").joinpath("digits.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        value, label = stored["image"], stored["label"].astype(np.int32)
    image = np.round(value[..., None] * (255 / 16)).astype(np.uint8)
    is_test = np.zeros(len(label), bool)
    is_test[np.argsort(label, kind="stable")[::4]] = True
    arrays = _dataset.Arrays(image[~is_test], label[~is_test], image[is_test], label[is_test])
    return _dataset.build("digits", arrays, tuple("0123456789"))
