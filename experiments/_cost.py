"""What runs will cost: gradients over images, and hours from a few steps timed on this machine."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bdjax import data, models
from bdjax.bench import measure
from bdjax.runs import config
from bdjax.runs.config import Config
from bdjax.runs.folder import RunsFolder
from bdjax.train import attacker
from bdjax.train.supervised import ATTACK_STEPS, Supervised, supervised
from bdjax.types import Learner

_STEPS = 2  # in a timed epoch; a step of a full-size network takes a CPU many seconds
# Gradients for each image of an epoch where it is not one. The trace of SFT, on every tenth step, is left out.
_GRADIENTS = {"ft_sam": 2, "grad_prune": 2}


class Cost(NamedTuple):
    """What is still to be done.

    Attributes:
      victims, runs: how many.
      gradients: forward and backward passes, times the images in them, by network and data.
    """

    victims: int
    runs: int
    gradients: Mapping[str, float]

    def describe(self, seconds: Mapping[str, float] | None = None) -> str:
        """Say what is to be done, and how long it takes where the seconds of one image's gradient are known."""
        if not self.runs:
            return "Nothing is left to run."
        total = sum(self.gradients.values())
        text = f"To run: victims: {self.victims}, runs: {self.runs}, gradients of images: {total / 1e6:.3g} million"
        if seconds is None:
            return text + "."
        hours = sum(self.gradients[key] * seconds[key] for key in self.gradients) / 3600
        how_long = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
        return f"{text}; about {how_long} here (an estimate from {_STEPS} timed steps, without compiling)."


def of(configs: Iterable[Config], sizes: Mapping[str, tuple[int, int]], out: Path) -> Cost:
    """Count what is not finished yet; victims whose training has begun count whole.

    Args:
      configs: the runs.
      sizes: training images and classes of each data set.
      out: where runs lie.
    """
    gradients: dict[str, float] = defaultdict(float)
    missing = [one for one in configs if RunsFolder(out).run(one.run_id).finished() is None]
    done = {one.victim_id for one in configs if one not in missing}
    victims = {one.victim_id: one for one in missing if one.victim_id not in done}
    for one in victims.values():
        gradients[_kind(one)] += _of_victim(one, _images(one, sizes))
    for one in missing:
        images = _images(one, sizes)
        gradients[_kind(one)] += _of_defense(one, _holdout(one, images, sizes[one.data.name][1]))
    return Cost(len(victims), len(missing), dict(gradients))


def seconds(configs: Iterable[Config]) -> dict[str, float]:
    """Time a plain training step of each network on each data set; return the seconds of one image."""
    found: dict[str, float] = {}
    for one in configs:
        if _kind(one) not in found:
            found[_kind(one)] = _time(one)
    return found


def _time(one: Config) -> float:
    spec = data.load(one.data.name, data_dir=one.data.data_dir, image_size=one.data.image_size).spec
    model = models.create(one.model.name, spec, **one.model.options)
    size = one.training["batch_size"]
    epoch = measure.TimedEpoch(
        supervised(batch_size=size), model, measure.random_split(spec, size * _STEPS)
    )
    return measure.interleaved({"plain": epoch}, rounds=1)["plain"] / (size * _STEPS)


def _kind(one: Config) -> str:
    """Return what decides how long an image takes."""
    return f"{one.data.name} {one.data.image_size} {one.model.name} {sorted(one.model.options.items())}"


def _images(one: Config, sizes: Mapping[str, tuple[int, int]]) -> int:
    return one.data.train_count or sizes[one.data.name][0]


def _holdout(one: Config, images: int, classes: int) -> float:
    return (
        one.holdout.per_class * classes
        if one.holdout.per_class
        else (one.holdout.share or 0) * images
    )


def _of_victim(one: Config, images: int) -> float:
    trained = attacker.stages(config.build_attack(one), *config.build_training(one))
    return sum(images * stage.learner.epochs * _gradients(stage.learner) for stage in trained)


def _gradients(learner: Learner) -> int:
    """Return the gradients that a stage of the attacker takes of each image."""
    if isinstance(learner, attacker.Controlled):  # a generator learns with one more
        return _gradients(learner.training) + ("learn" in learner.attack.trigger.hooks)
    attacked = isinstance(learner, Supervised) and learner.augment == "adversarial"
    return 1 + ATTACK_STEPS * attacked


def _of_defense(one: Config, holdout: float) -> float:
    paths = config.stage_paths(one)
    names = [_at(one.to_dict(), path)["name"] for path in paths]
    learners = config.build_defense(one).stages
    return sum(
        holdout * each.epochs * _GRADIENTS.get(name, 1)
        for name, each in zip(names, learners, strict=True)
    )


def _at(values: Mapping[str, Any], path: str) -> Any:
    for key in path.split("."):
        values = values[key]
    return values
