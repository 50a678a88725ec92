"""Every attack, with options for which it fits 8×8 images and is quick."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from bdjax import attacks
from bdjax.types import Attack, Spec


class Facts(NamedTuple):
    """What may differ from attack to attack; most need no entry in ``FACTS``."""

    # So that the attack fits 8×8 images and is quick
    options: Mapping[str, Any] = MappingProxyType({})
    clean_label: bool = False
    uses_key: bool = False  # the trigger draws something for each image
    visible: bool = True  # in 8 bits, before anything is learned
    # Classes of the images that it poisons; (0,) if it is clean-label
    candidates: tuple[int, ...] = (0, 1, 2, 3)
    least: int = 1  # pixels that the shorter side of an image needs

    @property
    def from_one_class(self) -> bool:
        return self.clean_label or len(self.candidates) == 1


FACTS: dict[str, Facts] = {
    "badnets": Facts(least=3),
    "cba": Facts({"bank": 16}, uses_key=True, candidates=(1,), least=2),
    "combined": Facts(candidates=(1, 2, 3), least=3),
    "lc": Facts(clean_label=True, least=6),
    "sig": Facts({"frequency": 2.0}, clean_label=True),
    "input_aware": Facts(options={"width": 2}),
    "lira": Facts(options={"width": 2}, visible=False, least=4),
    "ssba": Facts(options={"width": 4}),
}


def facts(name: str) -> Facts:
    return FACTS.get(name, Facts())


def create(name: str, spec: Spec, **options: Any) -> tuple[Attack, Any]:
    attack = attacks.create(name, spec=spec, **{**facts(name).options, **options})
    return attack, attack.trigger.init(jax.random.key(0), spec)
