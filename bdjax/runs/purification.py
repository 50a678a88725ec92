"""A purification, told in order: read → recognize → images → check → defend → measure → write.

Somebody has one network and some clean images, and knows of no trigger. So nothing here counts an attack: what is
measured is accuracy on images that the defense was not given, what trigger inversion finds, and how far weights moved.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from bdjax import structure
from bdjax.checks import InputError
from bdjax.devices import environment
from bdjax.files import atomic
from bdjax.files.atomic import Plain
from bdjax.models.foreign.normalization import Normalization, parse
from bdjax.runs import (
    chance,
    clean_images,
    distance,
    inversion,
    model_files,
    plans,
    strongest,
    suspect,
)
from bdjax.runs import request as requests
from bdjax.runs.clean_images import CleanImages, Parts
from bdjax.runs.config import Config
from bdjax.runs.execution import Execution
from bdjax.runs.purified import CONFIG, INVERSION, SAFETENSORS, TORCH, PurifiedFolder
from bdjax.runs.request import Request
from bdjax.runs.strongest import Network, Outcome
from bdjax.runs.suspect import Suspect
from bdjax.types import Spec

Tell = Callable[[str], None]  # of each step, one line
_ENOUGH = 0.5  # right answers, below which other ways to give the images are tried


class Prepared(NamedTuple):
    """All that is known before anything is trained."""

    request: Request
    config: Config
    suspect: Suspect
    images: CleanImages
    normalization: Normalization
    network: Network

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the outcome."""
        return requests.identity(
            self.config,
            file=self.suspect.sha256,
            data=self.images.fingerprint,
            shape=list(self.images.spec.shape),
            normalization=[list(self.normalization.mean), list(self.normalization.std)],
            class_order=list(self.request.class_order),
            aside=self.request.aside,
            inversion=self.request.inversion,
        )


def purify(request: Request, execution: Execution, tell: Tell = lambda line: None) -> Plain:
    """Purify a network as asked, or return the record of what is finished; the same is never done twice.

    Args:
      request: what is asked for.
      execution: how; its folder is not looked at.
      tell: called with a line before each step.

    Raises:
      InputError: something asked for cannot be, or the network is no better than a guess on the images.
      bdjax.train.loop.Stopped: `Execution.should_stop` said so; the same call continues.
      bdjax.train.loop.Diverged: the weakest setting of the defense has diverged.
    """
    request.check()
    prepared = prepare(request, tell)
    folder = PurifiedFolder(request.out)
    identity = prepared.identity
    if (there := folder.finished(identity)) is None:
        folder.check_free()
        with folder.locked():
            # Another process may have been faster
            if (there := folder.finished(identity)) is None:
                return _carry_out(prepared, execution, folder, tell)
    tell(f"finished already: {request.out}")
    return there


def prepare(request: Request, tell: Tell = lambda line: None) -> Prepared:
    """Read the network and the images and fit them together; nothing is trained.

    Raises:
      InputError: as for `purify`.
    """
    found = suspect.look(request.file, request.part)
    for note in found.state.notes:
        tell(note)
    given = requests.model_section(request)
    config = requests.resolve(request, suspect.named(found, given))
    size = request.image_size or found.image_size
    seen = found.recognized
    images = clean_images.load(
        request.data,
        num_classes=None if seen is None else seen.num_classes,
        data_dir=request.data_dir,
        image_size=size,
        class_order=request.class_order,
    )
    channels = images.spec.shape[-1] if seen is None else seen.channels
    classes = images.spec.num_classes if seen is None else seen.num_classes
    images = clean_images.fitting(images, channels, classes)
    how = parse(request.mean, request.std, channels)
    how = how or suspect.known_normalization(found, channels, classes)
    if how is None:
        raise _unknown(found, config, images)
    network = _network(found, config, images.spec, how)
    return Prepared(request, config, found, images, how, network)


def _network(found: Suspect, config: Config, spec: Spec, how: Normalization) -> Network:
    name, options = config.model.name, config.model.options
    return Network(*suspect.network(found, name, options, spec, how))


def _unknown(found: Suspect, config: Config, images: CleanImages) -> InputError:
    """Return why nothing is done without a normalization: what each usual one would give."""
    none = parse("none", None, images.spec.shape[-1])
    assert none is not None, "as it was asked for"
    network = _network(found, config, images.spec, none)
    ways = chance.tried(*network, images.split)
    shown = [one for one in ways if not one.reversed and one.order is None][:4]
    each = [f"{chance.flags(way.normalization)} ({way.share:.1%})" for way in shown]
    said = "its normalization is not known; give it, as it was in training"
    return InputError(
        f"{found.file}: {said}: right on {shown[0].of} of your images with {'; '.join(each)}."
    )


# --- Before anything is trained ---------------------------------------------------------------------------------------


def _carry_out(
    prepared: Prepared, execution: Execution, folder: PurifiedFolder, tell: Tell
) -> Plain:
    clock = _Clock()
    request, config = prepared.request, prepared.config
    share = None if config.selection is None else config.selection.aside
    key = plans.key_for(config, "holdout")
    parts = clean_images.divide(key, prepared.images, aside=request.aside, choosing=share)
    tell(_of_parts(parts))
    before = chance.answers(*prepared.network, parts.kept.input)
    tell(f"before: right on {_right(before, parts)} of {len(before)}")
    if not request.anyway:
        _check_better_than_chance(prepared, before, parts)
    clock.lap("checks")
    own = requests.digest(prepared.identity)
    place = functools.partial(folder.trial, own)
    outcome = strongest.defend(config, prepared.network, parts, execution, place, own)
    purified = Network(prepared.network.model, outcome.result.variables)
    clock.lap("defense")
    after = chance.answers(*purified, parts.kept.input)
    tell(f"after: right on {_right(after, parts)} of {len(after)}")
    clock.lap("accuracy")
    found = None
    if request.inversion:
        tell("looking for triggers in both networks")
        found, arrays = inversion.compare(config, prepared.network, purified, parts.given)
        atomic.write_arrays(folder.file(INVERSION), **arrays)
    clock.lap("inversion")
    entry = _write(prepared, purified, folder)
    clock.lap("files")
    record = _record(prepared, parts, outcome, (before, after), found, clock)
    record["files"] = {"entry": entry}
    folder.write_record(record)
    folder.clear()
    return record


def _write(prepared: Prepared, purified: Network, folder: PurifiedFolder) -> str:
    """Write the network in both formats; return the entry of PyTorch's in which the weights are, empty where bare."""
    content = model_files.config(
        prepared.config.model.name,
        prepared.config.model.options,
        purified.model,
        purified_by=prepared.config.to_dict()["defense"],
        purified_from=prepared.suspect.sha256,
    )
    weights, described = folder.file(SAFETENSORS), folder.file(CONFIG)
    model_files.write_safetensors(weights, described, *purified, content)
    return model_files.write_torch(folder.file(TORCH), *purified, prepared.suspect.state)


def _check_better_than_chance(
    prepared: Prepared, answer: Int[np.ndarray, " n"], parts: Parts
) -> None:
    """Refuse a network that is given its images in another way than in its training, as far as that can be told.

    Raises:
      InputError: it is no better than a guess, or another way to give it the images is far better.
    """
    label, of = parts.kept.label, len(answer)
    right = _right(answer, parts)
    at_chance = chance.is_at_chance(right, label, prepared.images.spec.num_classes)
    if not at_chance and right >= _ENOUGH * of:
        return
    ways = chance.tried(*prepared.network, prepared.images.split, prepared.normalization)
    best = chance.likely(ways, right / of)
    if best is None and not at_chance:
        return
    names = prepared.images.spec.class_names
    reason = "no normalization, order of channels or numbers of classes that was tried is better"
    if best is not None:
        reason = f"better with {chance.words(best, prepared.normalization, names)}"
    said = f"{prepared.request.file} is right on {right} of {of} clean images"
    guess = ", no more than a guess" if at_chance else ""
    raise InputError(f"{said}{guess}; {reason} (--anyway goes on all the same).")


# --- What is told and kept --------------------------------------------------------------------------------------------


def _record(
    prepared: Prepared,
    parts: Parts,
    outcome: Outcome,
    answers: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]],
    found: Plain | None,
    clock: _Clock,
) -> Plain:
    before, after = answers
    network, result = prepared.network, outcome.result
    of = len(before)
    return {
        "identity": prepared.identity,
        "suspect": _suspect(prepared.suspect),
        "network": _of_network(prepared),
        "normalization": _normalization(prepared.normalization),
        "data": _data(prepared.images, parts),
        "defense": prepared.config.to_dict()["defense"],
        "selection": _selection(prepared.config, outcome),
        "accuracy": {
            "before": {"right": _right(before, parts), "of": of},
            "after": {"right": _right(after, parts), "of": of},
            "changed_answers": int((before != after).sum()),
        },
        "weights": distance.between(network.variables, result.variables),
        "inversion": found,
        "history": [row._asdict() for row in result.history],
        "seconds": clock.seconds,
        "versions": environment.versions(),
        "device": environment.device(1),
    }


def _suspect(found: Suspect) -> Plain:
    state = found.state
    return {
        "name": found.file.name,
        "sha256": found.sha256,
        "format": state.format,
        "wrappers": list(state.wrappers),
        "notes": list(state.notes),
    }


def _of_network(prepared: Prepared) -> Plain:
    seen, spec = prepared.suspect.recognized, prepared.images.spec
    model = prepared.config.to_dict()["model"]
    sizes = [np.size(leaf) for leaf in structure.flat(prepared.network.variables["params"]).values()]
    return {
        "name": model.pop("name"),
        "options": model,
        "num_classes": spec.num_classes,
        "class_names": list(spec.class_names),
        "shape": list(spec.shape),
        "parameters": int(sum(sizes)),
        "why": "as asked for" if seen is None else seen.why,
    }


def _normalization(how: Normalization) -> Plain:
    return {"mean": list(how.mean), "std": list(how.std), "why": how.why}


def _data(images: CleanImages, parts: Parts) -> Plain:
    return {
        "name": images.name,
        "fingerprint": images.fingerprint,
        "count": len(images.split.label),
        "given": len(parts.given.label),
        "choosing": 0 if parts.choosing is None else len(parts.choosing.label),
        "kept": len(parts.kept.label),
        "notes": list(images.notes),
    }


def _selection(config: Config, outcome: Outcome) -> Plain | None:
    if outcome.chosen is None or config.strength is None or config.selection is None:
        return None
    return {
        "option": config.strength.path.removeprefix("defense."),
        "chosen": outcome.chosen,
        "within_budget": outcome.within_budget,
        "budget": config.selection.budget,
        "right_before": outcome.right_before,
        "values": list(config.strength.values),
        "trials": [trial._asdict() for trial in outcome.trials],
    }


def _of_parts(parts: Parts) -> str:
    choosing = "" if parts.choosing is None else f", {len(parts.choosing.label)} to choose its strength"
    return f"{len(parts.given.label)} images for the defense{choosing}, {len(parts.kept.label)} kept aside"


def _right(answer: Int[np.ndarray, " n"], parts: Parts) -> int:
    return int((answer == parts.kept.label).sum())


class _Clock:
    """How long each step took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the seconds since the last step ended, under the name of this one."""
        now = time.perf_counter()
        self.seconds[name], self._since = now - self._since, now
