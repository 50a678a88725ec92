"""Combined attacks: several triggers at once, each on an equal share of the poisoned images (SFT, NFT)."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from bdjax import attacks, pytree
from bdjax.attacks._label_maps import AllToOne
from bdjax.checks import InputError, one_of, unit_interval
from bdjax.types import Attack, FittedTrigger, Info, LabelMap, Model, Spec, Split, Trigger, TriggerState, Variables


@pytree.dataclass
class Mixture:
    """One of k triggers on each image: that of number position mod k."""

    parts: tuple[Trigger, ...]

    def init(self, key: Key[Array, ""], spec: Spec) -> TriggerState:
        """Return the states of all parts."""
        return tuple(part.init(jax.random.fold_in(key, number), spec) for number, part in enumerate(self.parts))

    def apply(self, key: Key[Array, ""], state: TriggerState, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """Put a random one of the triggers on one image."""
        part_key, key = jax.random.split(key)
        return self.apply_part(key, state, jax.random.randint(part_key, (), 0, len(self.parts)), image)

    def apply_part(
        self,
        key: Key[Array, ""],
        state: TriggerState,
        position: Int[Array, ""],
        image: Float[Array, "h w c"],
    ) -> Float[Array, "h w c"]:
        """Put the trigger of the image at this position on it."""
        number = position % len(self.parts)
        triggered = [part.apply(key, own, image) for part, own in zip(self.parts, state, strict=True)]
        return jnp.stack(triggered)[number]


@pytree.dataclass
class FittedMixture:
    """A mixture of which one part is fitted first."""

    mixture: Mixture
    fitted: int = pytree.static()

    @property
    def _part(self) -> FittedTrigger:
        return cast(FittedTrigger, self.mixture.parts[self.fitted])

    @property
    def epochs(self) -> int:
        """Return the part's."""
        return self._part.epochs

    @property
    def batch_size(self) -> int | None:
        """Return the part's."""
        return self._part.batch_size

    def init(self, key: Key[Array, ""], spec: Spec) -> TriggerState:
        """Return the states of all parts."""
        return self.mixture.init(key, spec)

    def fit(
        self, key: Key[Array, ""], model: Model, variables: Variables, state: TriggerState, batch: Split
    ) -> tuple[TriggerState, Info]:
        """Fit the part and leave the others."""
        own, info = self._part.fit(key, model, variables, state[self.fitted], batch)
        return (*state[: self.fitted], own, *state[self.fitted + 1 :]), info

    def apply(self, key: Key[Array, ""], state: TriggerState, image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        """Put a random one of the triggers on one image."""
        return self.mixture.apply(key, state, image)

    def apply_part(
        self,
        key: Key[Array, ""],
        state: TriggerState,
        position: Int[Array, ""],
        image: Float[Array, "h w c"],
    ) -> Float[Array, "h w c"]:
        """Put the trigger of the image at this position on it."""
        return self.mixture.apply_part(key, state, position, image)


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

    The papers combine BadNets, Blended and a Trojan at rates of 0.1 to 0.5, and SIG with label-consistent images, at
    80 % of the target class together (0.08 on ten balanced classes). Neither says how the images are shared out.

    Args:
      label_map: the attacker's labels.
      poison_rate: share of the whole training split that is poisoned, all parts together, in [0, 1].
      parts: names of two attacks or more with ``+`` between them. Not among them: one that controls the training, a
        combined one, clean-label attacks beside others, and more than one whose trigger is fitted first.
      model: the network, for parts that are made with one.

    Raises:
      InputError: parts that cannot be combined, or a rate out of range.

    References:
      SFT's table 21; NFT's table 12.
    """
    unit_interval(poison_rate=poison_rate)
    names = parts.split("+")
    for name in names:
        one_of([known for known in attacks.names() if known != "combined"], parts=name)
    if len(set(names)) < max(2, len(names)):
        raise InputError(f"parts must be two different attacks or more, such as 'badnets+blended'; got {parts!r}.")
    made = [attacks.create(name, label_map=label_map, poison_rate=poison_rate, model=model) for name in names]
    for name, attack in zip(names, made, strict=True):
        if attack.controls_training:
            raise InputError(f"parts must not control the training, as {name} does; got {parts!r}.")
    if len({attack.clean_label for attack in made}) > 1:
        raise InputError(f"parts must all be clean-label attacks, or none of them; got {parts!r}.")
    fitted = [number for number, attack in enumerate(made) if isinstance(attack.trigger, FittedTrigger)]
    if len(fitted) > 1:
        raise InputError(f"parts must hold one attack at most whose trigger is fitted first; got {parts!r}.")
    trigger: Any = Mixture(tuple(attack.trigger for attack in made))
    test_trigger = None
    if any(attack.test_trigger is not None for attack in made):
        test_trigger = Mixture(tuple(attack.test_trigger or attack.trigger for attack in made))
    surrogate = "none"
    if fitted:
        trigger, surrogate = FittedMixture(trigger, fitted[0]), made[fitted[0]].surrogate
    return Attack(
        trigger,
        label_map,
        poison_rate,
        clean_label=made[0].clean_label,
        test_trigger=test_trigger,
        candidates="changed",
        surrogate=surrogate,
    )
