"""A purification, told in order: prepare → check → defend → measure → write.

Somebody has one network and some clean images, and knows of no trigger. So nothing here counts an attack: what is
measured is accuracy on images that the defense was not given, what trigger inversion finds, and how far weights moved.
"""

from __future__ import annotations

import functools
import time
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from bdjax.checks import InputError
from bdjax.files import atomic
from bdjax.files.atomic import Plain
from bdjax.runs import (
    chance,
    clean_images,
    inversion,
    model_files,
    plans,
    purified_record,
    strongest,
)
from bdjax.runs import request as requests
from bdjax.runs.clean_images import Parts
from bdjax.runs.execution import Execution
from bdjax.runs.preparation import Prepared, Tell, prepare
from bdjax.runs.purified import CONFIG, INVERSION, SAFETENSORS, TORCH, PurifiedFolder
from bdjax.runs.request import Request
from bdjax.runs.strongest import Network

_ENOUGH = 0.5  # right answers, below which other ways to give the images are tried


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
        checked = _checked(prepared, tell)  # of what is refused, nothing is left behind
        with folder.locked():
            # Another process may have been faster
            if (there := folder.finished(identity)) is None:
                return _carry_out(prepared, checked, execution, folder, tell)
    folder.clear()  # what a kill has left between the record and the end
    tell(f"finished already: {request.out}")
    return there


class _Checked(NamedTuple):
    """The images by what they are for, the network's answers to those kept aside, and the clock."""

    parts: Parts
    before: Int[np.ndarray, " n"]
    clock: _Clock


def _checked(prepared: Prepared, tell: Tell) -> _Checked:
    """Divide the images, and refuse a network that is given them in another way than in its training."""
    clock, config = _Clock(), prepared.config
    share = None if config.selection is None else config.selection.aside
    key = plans.key_for(config, "holdout")
    parts = clean_images.divide(key, prepared.images, aside=prepared.request.aside, choosing=share)
    tell(_of_parts(parts))
    before = chance.answers(*prepared.network, np.asarray(parts.kept.input))
    tell(f"before: right on {_right(before, parts)} of {len(before)}")
    if not prepared.request.anyway:
        _check_better_than_chance(prepared, before, parts)
    clock.lap("checks")
    return _Checked(parts, before, clock)


def _carry_out(
    prepared: Prepared,
    checked: _Checked,
    execution: Execution,
    folder: PurifiedFolder,
    tell: Tell,
) -> Plain:
    request, config = prepared.request, prepared.config
    parts, before, clock = checked
    own = requests.digest(prepared.identity)
    folder.check_unfinished(own)
    folder.begin(own)
    place = functools.partial(folder.trial, own)
    outcome = strongest.defend(config, prepared.network, parts, execution, place, own)
    purified = Network(prepared.network.model, outcome.result.variables)
    clock.lap("defense")
    after = chance.answers(*purified, np.asarray(parts.kept.input))
    tell(f"after: right on {_right(after, parts)} of {len(after)}")
    clock.lap("accuracy")
    found = None
    if request.inversion:
        tell("looking for triggers in both networks")
        found, arrays = inversion.compare(config, prepared.network, purified, parts.given)
        atomic.write_arrays(folder.file(INVERSION), **arrays)
    clock.lap("inversion")
    entry = _write(prepared, outcome.chosen, purified, folder)
    files = {"entry": entry, "prefix": prepared.suspect.state.prefix}
    clock.lap("files")
    more = {"inversion": found, "files": files, "seconds": clock.seconds}
    record = purified_record.finished(prepared, parts, outcome, (before, after), more)
    folder.write_record(record)
    folder.clear()
    return record


def _write(
    prepared: Prepared, chosen: float | None, purified: Network, folder: PurifiedFolder
) -> str:
    """Write the network in both formats; return the entry of PyTorch's in which the weights are, empty where bare."""
    content = model_files.config(
        prepared.config.model.name,
        prepared.config.model.options,
        purified.model,
        purified_by=purified_record.defense(prepared.config, chosen),
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
    label, of = np.asarray(parts.kept.label), len(answer)
    right = _right(answer, parts)
    at_chance = chance.is_at_chance(right, label, prepared.images.spec.num_classes)
    if not at_chance and right >= _ENOUGH * of:
        return
    ways = chance.tried(*prepared.network, prepared.images.split, prepared.normalization)
    # On the same images: those kept aside are others, and may be a few
    asked = next(
        way
        for way in ways
        if way.normalization == prepared.normalization and not way.reversed and way.order is None
    )
    best = chance.likely(ways, asked.share)
    if best is None and not at_chance:
        return
    names = prepared.images.spec.class_names
    reason = "no normalization, order of channels or numbers of classes that was tried is better"
    if best is not None:
        reason = f"better with {chance.words(best, prepared.normalization, names)}"
    said = f"{prepared.request.file} is right on {right} of {of} clean images"
    guess = ", no more than a guess" if at_chance else ""
    size = f"; {prepared.size_hint}" if prepared.size_hint else ""
    raise InputError(f"{said}{guess}; {reason}{size} (--anyway goes on all the same).")


def _of_parts(parts: Parts) -> str:
    choosing = (
        "" if parts.choosing is None else f", {len(parts.choosing.label)} to choose its strength"
    )
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
