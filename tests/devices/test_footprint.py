"""What is asked of the memory: refused from shapes alone, with the numbers, and never where there is room."""

from __future__ import annotations

import dataclasses

import jax
import networks
import numpy as np
import pytest

from bdjax import attacks, cli, data, models, pytree, registry
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.devices import footprint
from bdjax.runs import plan_checks
from bdjax.train.supervised import supervised
from bdjax.types import Split, Trigger

SPEC = image_spec("tiny", (8, 8, 3), 4, (0.5,) * 3, (0.25,) * 3)
GIB = 2**30


@pytest.mark.parametrize("name", networks.KINDS)
def test_a_network_of_the_usual_width_fits_and_one_of_any_other_is_judged_without_being_made(name):
    spec = networks.spec_for(name, SPEC)
    footprint.check_network(networks.create(name, spec, width=8), 128, GIB)
    if "width" not in networks.options_of(name):
        return
    for width in (10**8, 2**31 - 1):
        with pytest.raises(
            InputError,
            match=r"the network has \d\.\de\d+ parameters; .* need .* GiB, and the device",
        ):
            footprint.check_network(models.create(name, spec, width=width), 128, 64 * GIB)


def test_the_parameters_are_counted_three_times():
    """Themselves, their gradient and its momentum."""
    model = models.create("small_cnn", SPEC, width=4)
    count = sum(
        x.size for x in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))["params"])
    )
    footprint.check_network(model, 1, 12 * count)
    with pytest.raises(InputError, match=f"the network has {count:,} parameters"):
        footprint.check_network(model, 1, 12 * count - 1)


def test_the_largest_array_of_a_batch_has_to_fit():
    """The first layers keep the size of the images, with a map for each of their channels."""
    model = models.create("small_cnn", dataclasses.replace(SPEC, shape=(4096, 4096, 3)), width=8)
    footprint.check_network(model, 1, 4 * GIB)
    with pytest.raises(
        InputError,
        match=r"computes one array of .* GiB of a batch of 64 images of \(4096, 4096\) pix",
    ):
        footprint.check_network(model, 64, 4 * GIB)


@pytest.mark.parametrize("name", ["lira", "ssba", "input_aware"])
def test_a_trigger_of_too_many_channels_is_refused(name):
    footprint.check_trigger(attacks.create(name, spec=SPEC).trigger, SPEC, GIB)
    wide = attacks.create(name, spec=SPEC, width=10**8).trigger
    with pytest.raises(
        InputError, match=r"the trigger with these options takes .* GiB, and the device has 1.0 GiB"
    ):
        footprint.check_trigger(wide, SPEC, GIB)


def test_a_trigger_with_an_array_is_judged_too():
    @pytree.dataclass
    class Bank(Trigger):
        rows: np.ndarray

        def init(self, key, spec):
            del key, spec
            return self.rows

        def apply(self, key, state, image):
            del key, state
            return image

    footprint.check_trigger(Bank(np.zeros(10, np.float32)), SPEC, 40)
    with pytest.raises(InputError, match="the trigger"):
        footprint.check_trigger(Bank(np.zeros(11, np.float32)), SPEC, 40)


def test_images_that_no_machine_holds_are_refused_before_they_are_resized():
    assert footprint.machine_bytes() is None or footprint.machine_bytes() > GIB
    footprint.check_images(10, (32, 32, 3))
    with pytest.raises(
        InputError, match=r"image_size must be less: 1797 images of 10000000×10000000 pixels take"
    ):
        data.load("digits", image_size=10**7)


# --- from the command line -------------------------------------------------------------------------------------------

RUN, SWEEP = ("run", "--defense", "none"), ("sweep", "--defense", "none")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (*RUN, "--training.epochs", 2**63 - 1),
            "training.epochs must be at most 1000000, got 9223372036854775807.",
        ),
        ((*RUN, "--training.epochs", 10**9), "training.epochs must be at most 1000000"),
        (("run", "--defense.epochs", 2**31), "defense.epochs must be at most 1000000"),
        (
            (*RUN, "--training.batch_size", 2**63 - 1),
            "training.batch_size must be at most 2147483647",
        ),
        ((*RUN, "--data.train_count", 2**63 - 1), "data.train_count must be at most 2147483647"),
        ((*RUN, "--data.train_count", 2**31 - 1), "data.train_count must be at most 1347"),
        ((*RUN, "--data.image_size", 2**63 - 1), "data.image_size must be at most 2147483647"),
        (
            (*RUN, "--data.image_size", 10**6),
            "image_size must be less: 1797 images of 1000000×1000000 pixels take",
        ),
        (
            (*RUN, "--data.crop_padding", 10**9),
            "data.crop_padding must be at most 8, the images' side; got 1000000000.",
        ),
        ((*RUN, "--holdout.per_class", 2**63 - 1), "holdout.per_class must be at most 2147483647"),
        (
            (*RUN, "--holdout.per_class", 2**31 - 1),
            "holdout.per_class must be at most 130: class '8' has only 130",
        ),
        ((*RUN, "--model.width", 2**63 - 1), "model.width must be at most 2147483647"),
        (
            (*RUN, "--model.width", 10**8),
            "the network has 9.0e17 parameters; with their gradient and momentum they need",
        ),
        (
            (*RUN, "--attack", "lira", "--attack.width", 10**8),
            "attack: the trigger with these options takes",
        ),
        (
            (*RUN, "--attack", "ssba", "--attack.bits", 2**31 - 1),
            "attack: the trigger with these options takes",
        ),
        (
            (*RUN, "--attack", "cba", "--attack.bank", 2**31 - 1),
            "attack: the trigger with these options takes",
        ),
        ((*RUN, "--attack", "wanet", "--attack.grid", 10**8), "attack.grid must be at most 1024"),
        (
            (*SWEEP, "--over", "seed=0", "--seeds", 10**9),
            "seeds must be at most 100000, got 1000000000",
        ),
        ((*SWEEP, "--seeds", 10**9), "seeds must be at most 100000"),
        (
            (
                *SWEEP,
                "--seeds",
                1000,
                "--over",
                f"attack.poison_rate={','.join(str(i / 1000) for i in range(101))}",
            ),
            "a sweep must have at most 100000 points, got 101000: 101 of attack.poison_rate × 1000 of seed.",
        ),
        ((*SWEEP, "--seeds", 2, "--at-once", 10**12), "at_once must be at most 2147483647"),
        (("sweep", "--seeds", 2, "--jobs", 10**9), "jobs must be at most 100000"),
        (("demo", "--seeds", 10**9), "seeds must be at most 100000"),
    ],
)
def test_numbers_beyond_sense_are_refused_before_a_folder_is_made(
    words, message, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("bdjax.devices.compilation.enable_cache", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert cli.main([*map(str, words), "--out", "runs"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_so_are_more_steps_than_their_number_can_count():
    rows = 3000
    split = Split(
        np.zeros((rows, 1, 1, 1), np.uint8), np.zeros(rows, np.int32), np.ones(rows, bool)
    )
    plan_checks.check_steps("training", supervised(epochs=10**6, batch_size=2), split)
    with pytest.raises(
        InputError,
        match=r"training\.epochs must make at most 2147483647 steps in all; 1000000 make 30",
    ):
        plan_checks.check_steps("training", supervised(epochs=10**6, batch_size=1), split)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--draws", 10**9), "draws must be at most 1000000, got 1000000000"),
        (("--images", 2**63 - 1), "images must be at most 2147483647"),
        (("--chunk", 2**63 - 1), "chunk must be at most 2147483647"),
    ],
)
def test_so_are_those_of_a_measurement(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bdjax.devices.compilation.enable_cache", lambda: None)
    assert cli.main(["smoothness", str(tmp_path), *map(str, words)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("analysis", "option"),
    [
        ("spectrum", "steps"),
        ("spectrum", "starts"),
        ("smoothness", "draws"),
        ("weight_histogram", "bins"),
    ],
)
def test_and_of_an_analysis(analysis, option):
    with pytest.raises(InputError, match=f"{option} must be at most"):
        registry.create("bdjax.analysis", analysis, **{option: 10**9})
