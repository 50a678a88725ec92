"""On which inputs an attack can be put, and how one of images is lifted to those that are made of images."""

from __future__ import annotations

import dataclasses

from bdjax.checks import InputError
from bdjax.types import Attack, Spec, Trigger


def on_inputs(attack: Attack, name: str, spec: Spec) -> Attack:
    """Return the attack on the inputs of a data set.

    A trigger of one image that is a formula, without hooks, is lifted by the modality if that can do it: each frame of
    a clip gets it, say. A trigger that learns from images, or whose parts are dealt out, stays with images.

    Args:
      attack: as its factory made it.
      name: its own, for the message.
      spec: the data set's specification.

    Raises:
      InputError: it works on other inputs.
    """
    test_trigger = attack.test_trigger
    if test_trigger is not None:
        test_trigger = _on_inputs(test_trigger, name, spec)
    return dataclasses.replace(
        attack,
        trigger=_on_inputs(attack.trigger, name, spec),
        test_trigger=test_trigger,
        modality=spec.modality,
    )


def _on_inputs(trigger: Trigger, name: str, spec: Spec) -> Trigger:
    unit = spec.modality.unit
    if trigger.works_on == unit:
        return trigger
    lifted = None
    if trigger.works_on == "image" and not trigger.hooks:
        lifted = spec.modality.lift(trigger)
    if lifted is None:
        why = f", as its trigger has the hook {trigger.hooks[0]!r}" if trigger.hooks else ""
        raise InputError(
            f"name must be an attack on {unit}s, which {spec.name} holds; {name!r} needs {trigger.works_on}s{why}."
        )
    return lifted
