"""Attacks on other inputs than images: lifted where a modality can do it, else refused by name."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from bdjax import attacks, poison
from bdjax.checks import InputError
from bdjax.data.modalities.clips import Clips
from bdjax.data.modalities.images import Images, image_spec
from bdjax.tasks.single_label import SingleLabel
from bdjax.types import Spec, Split

KEY = jax.random.key(5)
FRAMES = image_spec("frames", (8, 8, 1), 3, (0.5,), (0.25,))


@dataclasses.dataclass(frozen=True)
class Points(Images):
    """What images cannot be put on."""

    unit = "point cloud"

    def lift(self, trigger):
        return None


CLIPS = Spec("walks", (2, 8, 8, 1), Clips(Images((0.5,), (0.25,))), SingleLabel(3))
POINTS = Spec("chairs", (16, 3), Points((0.5,), (0.25,)), SingleLabel(3))


def clips(rows: int = 6) -> Split:
    clip = np.random.default_rng(0).integers(0, 256, (rows, 2, 8, 8, 1), dtype=np.uint8)
    return Split(clip, np.arange(rows) % 3, np.ones(rows, bool))


def lifted(name: str) -> bool:
    try:
        attacks.create(name, spec=CLIPS)
    except InputError:
        return False
    return True


def test_formulas_are_lifted_and_no_others():
    formulas = {name for name in attacks.names() if not attacks.create(name).trigger.hooks}
    assert {name for name in attacks.names() if lifted(name)} == formulas
    assert {"badnets", "blended", "sig"} <= formulas


@pytest.mark.parametrize("options", [{}, {"test_alpha": 0.4}])
def test_each_frame_gets_the_trigger_that_an_image_gets(options):
    attack = attacks.create("blended", spec=CLIPS, **options)
    assert attack.modality is CLIPS.modality
    split, state = clips(), attack.trigger.init(KEY, CLIPS)
    test = poison.poison_test(KEY, attack, state, split)
    of_images = attacks.create("blended", spec=FRAMES, **options)
    frames = Split(split.input[:, 1], split.label, split.valid)
    alone = poison.poison_test(KEY, of_images, of_images.trigger.init(KEY, FRAMES), frames)
    np.testing.assert_array_equal(test.visible.input[:, 1], alone.visible.input)
    assert (test.visible.input != split.input).any()


def test_images_take_triggers_as_they_are():
    attack = attacks.create("badnets", spec=FRAMES)
    assert attack.trigger == attacks.create("badnets").trigger
    assert attack.modality is FRAMES.modality
    assert FRAMES.modality.lift(attack.trigger) is attack.trigger
    assert attacks.create("badnets").modality is None


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        (
            "ssba",
            CLIPS,
            r"on clips, which walks holds; 'ssba' needs images, as its trigger has the hook 'fit'\.",
        ),
        ("wanet", CLIPS, "'wanet' needs images, as its trigger has the hook 'cover'"),
        (
            "badnets",
            POINTS,
            r"name must be an attack on point clouds, which chairs holds; 'badnets' needs images\.",
        ),
    ],
)
def test_others_are_refused_by_name(name, spec, words):
    with pytest.raises(InputError, match=words):
        attacks.create(name, spec=spec)


def test_a_trigger_of_clips_is_not_put_on_images(monkeypatch):
    made = attacks.create("badnets", spec=CLIPS)
    monkeypatch.setattr("bdjax.registry.create", lambda *_, **__: made)
    with pytest.raises(
        InputError, match=r"an attack on images, which frames holds; 'badnets' needs clips\."
    ):
        attacks.create("badnets", spec=FRAMES)
