"""Clips of the embedded digits that move across a black field: a second kind of input, small and offline."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bdjax.data.modalities.clips import Clips
from bdjax.data.modalities.images import Images
from bdjax.data.sources import _dataset, digits
from bdjax.tasks.single_label import SingleLabel
from bdjax.types import Dataset, Spec, Split

DEFAULTS = digits.DEFAULTS
FRAMES, SIDE, DIGIT = 6, 14, 8


def digits_clips(data_dir: Path | None = None) -> Dataset:
    """Clips of one moving handwritten digit, 6 frames of 14×14 gray, 10 classes: 1,347 to train and 450 to test.

    Every image of `digits` moves along a straight line, at most a pixel a frame in each direction, within the field.
    Embedded; the lines are the same ones everywhere, drawn by a generator whose numbers do not change.
    """
    del data_dir
    source = digits.digits()
    generator = np.random.RandomState(0)  # whose stream NumPy keeps as it is
    train, test = _clips(generator, source.train), _clips(generator, source.test)
    mean, std = _dataset.channel_statistics(np.asarray(train.input).reshape(-1, SIDE, SIDE, 1))
    spec = Spec(
        "digits_clips",
        (FRAMES, SIDE, SIDE, 1),
        Clips(Images(mean, std)),
        SingleLabel(10, source.spec.class_names),
    )
    return Dataset(train, test, spec)


def _clips(generator: np.random.RandomState, split: Split) -> Split:
    image, count, room = np.asarray(split.input), len(split.label), SIDE - DIGIT
    start, end = generator.randint(0, room + 1, (2, count, 2))
    speed = np.clip(end - start, -FRAMES + 1, FRAMES - 1) / (FRAMES - 1)
    clip = np.zeros((count, FRAMES, SIDE, SIDE, 1), np.uint8)
    for frame in range(FRAMES):
        place = np.rint(start + frame * speed).astype(int)
        for row, (top, left) in enumerate(place):
            clip[row, frame, top : top + DIGIT, left : left + DIGIT] = image[row]
    return _dataset.split(clip, np.asarray(split.label))
