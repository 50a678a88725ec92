"""Every attack, with options for which it fits 8×8 images and is quick."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bdjax import attacks
from bdjax.types import Attack, Spec


class Facts(NamedTuple):
    """What may differ from attack to attack. None is whatever it is."""

    # So that the attack fits 8×8 images and is quick
    options: Mapping[str, Any] = MappingProxyType({})
    clean_label: bool = False
    uses_key: bool | None = False  # the trigger draws something for each image
    visible: bool = True  # in 8 bits, before anything is learned
    # Classes of the images that it poisons; (0,) if it is clean-label
    candidates: tuple[int, ...] = (0, 1, 2, 3)
    least: int | None = 1  # pixels that the shorter side of an image needs

    @property
    def from_one_class(self) -> bool:
        return self.clean_label or len(self.candidates) == 1


# Of bdjax's own attacks; one that is not here tells of itself what a test needs to know.
FACTS: dict[str, Facts] = {
    **dict.fromkeys(("blended", "bpp", "fba", "lf", "trojan", "wanet"), Facts()),
    "badnets": Facts(least=3),
    "cba": Facts({"bank": 16}, uses_key=True, candidates=(1,), least=2),
    "combined": Facts(candidates=(1, 2, 3), least=3),
    "lc": Facts(clean_label=True, least=6),
    "sig": Facts({"frequency": 2.0}, clean_label=True),
    "input_aware": Facts(options={"width": 2}),
    "lira": Facts(options={"width": 2}, visible=False, least=4),
    "ssba": Facts(options={"width": 4}),
}


@functools.cache
def facts(name: str) -> Facts:
    if name in FACTS:
        return FACTS[name]
    attack = attacks.create(name)
    wanted = [int(attack.label_map(jnp.int32(label))) for label in range(4)]
    changed = tuple(label for label in range(4) if wanted[label] != label)
    return Facts(
        clean_label=attack.clean_label,
        uses_key=None,
        visible=attack.by_formula,
        candidates=changed if attack.candidates == "changed" else (0, 1, 2, 3),
        least=None,
    )


def create(name: str, spec: Spec, **options: Any) -> tuple[Attack, Any]:
    attack = attacks.create(name, spec=spec, **{**facts(name).options, **options})
    return attack, attack.trigger.init(jax.random.key(0), spec)
