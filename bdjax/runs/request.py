"""What a purification is asked to do, and the name that it has by that."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bdjax import defenses, registry
from bdjax.checks import InputError, below_one, integer, positive
from bdjax.files import atomic, places
from bdjax.runs import config as configs
from bdjax.runs import schema
from bdjax.runs.config import Config

DEFENSE = "ft_sam"
# Where nothing else is asked for: 200 steps on 320 images, as many as the papers' 100 epochs would take there, with an
# eighth of the images a step: minutes, for a ResNet-18 of small images. More steps may remove more (the guide's page).
QUICK = {"epochs": 20, "batch_size": 32}
_SECTIONS = ("model", "defense", "selection")
_SEEN = ("nothing", "holdout")  # what somebody has who knows no trigger


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for. `resolve` makes a config of the part that is about methods.

    Attributes:
      file: of the suspect network.
      data: the clean images, as `bdjax.runs.clean_images.load` takes them.
      out: the folder of what comes out.
      part: the entry of the file with the weights, where it holds several sets.
      values: the sections ``model``, ``defense`` and ``selection`` of a config, as far as they are given.
      seed: of all draws.
      data_dir, image_size, class_order: of the images.
      mean, std: the normalization, as words; None where it is to be known.
      aside: share of the images that the defense is not given, in (0, 1).
      inversion: whether triggers are looked for before and after.
      anyway: whether to go on with a network that is no better than a guess.
    """

    file: Path
    data: str
    out: Path
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    part: str | None = None
    seed: int = 0
    data_dir: str | None = None
    image_size: int | None = None
    class_order: tuple[str, ...] = ()
    mean: str | None = None
    std: str | None = None
    aside: float = 0.2
    inversion: bool = True
    anyway: bool = False

    def check(self) -> None:
        """Raise InputError for a value out of range, or a section that a purification has not."""
        schema.refuse_unknown("", self.values, list(_SECTIONS), "a purification")
        integer(seed=self.seed)
        positive(aside=self.aside)
        below_one(aside=self.aside)
        if self.image_size is not None:
            integer(1, image_size=self.image_size)
        places.check_folder("out", self.out)


def resolve(request: Request, model: Mapping[str, Any]) -> Config:
    """Return the config of the defense, every default filled in; a strength is ``auto`` unless it is given.

    Args:
      request: what is asked for.
      model: the network with its options, as it was recognized; what is asked for lies over it.

    Raises:
      InputError: an unknown method or option, a value out of range, or a defense that sees what nobody has here.
    """
    values = dict(request.values)
    wanted = schema.merge({"model": dict(model)}, {"model": model_section(request)})
    defense = schema.as_mapping("defense", values.get("defense"))
    name = defense.get("name", DEFENSE)
    base = {"name": name, **_defaults(name, defense)}
    chosen = schema.merge({"defense": base}, {"defense": defense})["defense"]
    config = configs.resolve(
        {
            "seed": request.seed,
            "data": {"name": "./images"},  # which brings no defaults of its own
            "model": wanted["model"],
            "defense": chosen,
            "selection": values.get("selection") or {},
        }
    )
    _check_sees(config)
    return config


def model_section(request: Request) -> dict[str, Any]:
    """Return what is asked for of the network: its name, its options, or nothing."""
    return dict(schema.as_mapping("model", request.values.get("model")))


def identity(config: Config, **more: Any) -> dict[str, Any]:
    """Return what decides the outcome, as plain values: of the config what is about methods, and whatever else does."""
    whole = config.to_dict()
    kept = {name: whole[name] for name in ("seed", *_SECTIONS) if name in whole}
    return {**kept, **more}


def digest(of: Mapping[str, Any]) -> str:
    """Return ten hexadecimal digits that name an identity."""
    return atomic.digest(of)[:10]


def _defaults(name: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the defaults of a purification that a defense takes, unless a preset says what to do."""
    if not isinstance(name, str) or name not in defenses.names() or "preset" in given:
        return {}
    found = schema.shared_options(name, QUICK)
    for option in list(registry.strengths("bdjax.defenses", name))[:1]:
        found[option] = schema.AUTO
    return found


def _check_sees(config: Config) -> None:
    others = set(config.built_defense.defense.sees) - set(_SEEN)
    if others:
        able = [name for name in defenses.names() if name != "chain" and _is_able(name)]
        why = f"{config.defense.name} sees the {' and the '.join(sorted(others))}, which nobody has here"
        raise InputError(f"defense must be one of {', '.join(able)}; {why}.")


def _is_able(name: str) -> bool:
    return set(defenses.sees(name)) <= set(_SEEN)
