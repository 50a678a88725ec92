"""Combined attacks: several triggers at once, each on an equal share of the poisoned images (SFT, NFT)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key

from bdjax import attacks, pytree
from bdjax.attacks._label_maps import AllToOne
from bdjax.checks import InputError, one_of, unit_interval
from bdjax.types import (
    Attack,
    Image,
    Info,
    LabelMap,
    Model,
    Spec,
    Split,
    Trigger,
    TriggerState,
    Variables,
)


@pytree.dataclass
class Mixture(Trigger):
    """One of k triggers on each image: that of number position mod k."""

    parts: tuple[Trigger, ...]

    hooks = ("apply_part",)

    def init(self, key: Key[Array, ""], spec: Spec) -> TriggerState:
        """Return the states of all parts."""
        states = []
        for number, part in enumerate(self.parts):
            states.append(part.init(jax.random.fold_in(key, number), spec))
        return tuple(states)

    def apply(self, key: Key[Array, ""], state: TriggerState, image: Image) -> Image:
        """Put a random one of the triggers on one image."""
        part_key, key = jax.random.split(key)
        position = jax.random.randint(part_key, (), 0, len(self.parts))
        return self.apply_part(key, state, position, image)

    def apply_part(
        self,
        key: Key[Array, ""],
        state: TriggerState,
        position: Int[Array, ""],
        image: Image,
    ) -> Image:
        """Put the trigger of the image at this position on it."""
        number = position % len(self.parts)
        triggered = []
        for part, own in zip(self.parts, state, strict=True):
            triggered.append(part.apply(key, own, image))
        return jnp.stack(triggered)[number]


@pytree.dataclass
class FittedMixture(Mixture):
    """A mixture of which one part is fitted first."""

    fitted: int = pytree.static()

    hooks = ("apply_part", "fit")

    @property
    def epochs(self) -> int:
        """Return the part's."""
        return self.parts[self.fitted].epochs

    @property
    def batch_size(self) -> int | None:
        """Return the part's."""
        return self.parts[self.fitted].batch_size

    def fit(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        state: TriggerState,
        batch: Split,
    ) -> tuple[TriggerState, Info]:
        """Fit the part and leave the others."""
        part = self.parts[self.fitted]
        own, info = part.fit(key, model, variables, state[self.fitted], batch)
        return (*state[: self.fitted], own, *state[self.fitted + 1 :]), info


def combined(
    label_map: LabelMap = AllToOne(),
    poison_rate: float = 0.1,
    parts: str = "badnets+blended+trojan",
    model: Model | None = None,
) -> Attack:
    """Create a combined attack: k triggers, each on its share of the poisoned images, all with the same labels.

    The ⌊r N⌉ images are drawn once and dealt out in turn, so that the shares are disjoint and differ by one at most,
    the first parts having the larger ones. At test time the triggers take turns as well, and the attack success rate is
    the mean over the parts. Each part has its own default options. If they are clean-label attacks, images of the
    target class are poisoned; else images of the other classes only.

    Args:
      label_map: the attacker's labels.
      poison_rate: share of the whole training split that is poisoned, all parts together, in [0, 1].
      parts: names of two attacks or more with ``+`` between them. Not among them: one that controls the training, a
        combined one, clean-label attacks beside others, and more than one whose trigger is fitted first.
      model: the network, for parts that are made with one.

    Raises:
      InputError: parts that cannot be combined, or a rate out of range.

    The papers combine BadNets, Blended and a Trojan at rates of 0.1 to 0.5, and SIG with label-consistent images, at
    80 % of the target class together (0.08 on ten balanced classes). Neither says how the images are shared out.

    References:
      SFT's table 21; NFT's table 12.
    """
    unit_interval(poison_rate=poison_rate)
    made = []
    for name in _names(parts):
        made.append(attacks.create(name, label_map=label_map, poison_rate=poison_rate, model=model))
        _check_part(name, made[-1], parts)
    if len({attack.clean_label for attack in made}) > 1:
        raise InputError(f"parts must all be clean-label attacks, or none of them; got {parts!r}.")
    triggers = tuple(attack.trigger for attack in made)
    trigger, surrogate = Mixture(triggers), "none"
    fitted = [number for number, part in enumerate(triggers) if part.hooks]
    if len(fitted) > 1:
        raise InputError(
            f"parts must hold one attack at most whose trigger is fitted first; got {parts!r}."
        )
    if fitted:
        trigger, surrogate = FittedMixture(triggers, fitted[0]), made[fitted[0]].surrogate
    test_trigger = None
    if any(attack.test_trigger is not None for attack in made):
        test_trigger = Mixture(tuple(attack.trigger_at_test for attack in made))
    return Attack(
        trigger,
        label_map,
        poison_rate,
        clean_label=made[0].clean_label,
        test_trigger=test_trigger,
        candidates="changed",
        surrogate=surrogate,
    )


def _names(parts: str) -> list[str]:
    """Return the names of the parts."""
    names = parts.split("+")
    known = [name for name in attacks.names() if name != "combined"]
    for name in names:
        one_of(known, parts=name)
    if len(set(names)) < max(2, len(names)):
        raise InputError(
            f"parts must be two different attacks or more, such as 'badnets+blended'; got {parts!r}."
        )
    return names


def _check_part(name: str, attack: Attack, parts: str) -> None:
    """Refuse an attack of which more than ``fit`` would have to be called."""
    if attack.controls_training:
        raise InputError(f"parts must not control the training, as {name} does; got {parts!r}.")
    if further := set(attack.trigger.hooks) - {"fit"}:
        raise InputError(
            f"parts must have no hook but 'fit', and {name} has {further}; got {parts!r}."
        )
