"""Attacks: one file per published attack, found by its name."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

from bdjax import checks, registry
from bdjax.attacks import _label_maps, _modalities
from bdjax.attacks._label_maps import AddLabel as AddLabel
from bdjax.attacks._label_maps import AllToAll as AllToAll
from bdjax.attacks._label_maps import AllToOne as AllToOne
from bdjax.attacks._label_maps import OneToOne as OneToOne
from bdjax.attacks._label_maps import namesake as namesake
from bdjax.attacks._label_maps import target_class as target_class
from bdjax.types import Attack, ClassLabel, LabelMap, Model, Spec


def names() -> list[str]:
    """Return the names of all attacks."""
    return registry.names(__name__)


def create(
    name: str,
    *,
    preset: str = "paper",
    label_map: LabelMap | str = "all_to_one",
    target_label: ClassLabel = 0,
    spec: Spec | None = None,
    model: Model | None = None,
    **options: Any,
) -> Attack:
    """Create an attack; ``options`` are the arguments of the function of that name.

    Args:
      name: the file's name.
      preset: ``paper``, or another of the attack's presets.
      label_map: ``all_to_one``, ``all_to_all``, ``add_label`` (for sets of classes) or a label map of one's own.
      target_label: the target of ``all_to_one`` or ``add_label``, by number or by name.
      spec: the data set's specification: all-to-all and names of classes need it, it lets the target be checked, and
        it says what the inputs are; without it they are images.
      model: the network, for triggers that are made with one; without it their state does as little as it can.
      options: ``poison_rate`` and whatever else the attack takes.

    Raises:
      InputError: unknown name or option, a value out of range, a label map for other labels than the data set's, an
        attack that is not to be put on its inputs, or a file whose function returns no attack.
    """
    if isinstance(label_map, str):
        label_map = _label_maps.create(label_map, target_label, spec)
    if spec is not None:
        _label_maps.check_labels(label_map, spec)
    for option in class_options(name):
        if isinstance(options.get(option), str):
            options[option] = _label_maps.class_number(options[option], spec, option)
    if "model" in inspect.signature(registry.factory(__name__, name)).parameters:
        options["model"] = model
    attack = registry.create(__name__, name, preset=preset, label_map=label_map, **options)
    checks.is_a(Attack, "a bdjax.types.Attack", **{f"what {name} returns": attack})
    return attack if spec is None else _modalities.on_inputs(attack, name, spec)


def class_options(name: str) -> list[str]:
    """Return an attack's own options that are a class, by number or by name."""
    return list(_class_options(registry.factory(__name__, name)))


@functools.cache  # the configs of a sweep ask for the same ones thousands of times
def _class_options(factory: Callable[..., Any]) -> tuple[str, ...]:
    hints = typing.get_type_hints(factory)
    return tuple(option for option, kind in hints.items() if kind == ClassLabel)
