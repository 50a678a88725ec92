"""The poisoner: two pure functions, and the only code that changes pixels or labels."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Num

from bdjax.checks import one_of
from bdjax.data.augment import as_float
from bdjax.types import Attack, PoisonedSplit, Split, Trigger, TriggerState

ROUNDINGS = ("nearest", "truncate")
_BATCH = 1000


def poison_train(
    key: Key[Array, ""], attack: Attack, state: TriggerState, split: Split, *, rounding: str = "nearest"
) -> PoisonedSplit:
    """Plant the trigger in exactly round(r·N) rows of a training split, chosen at random by the key alone.

    N counts all valid rows and r is ``attack.poison_rate``. Candidates are all valid rows, those of the target class
    included. For a clean-label attack they are the rows whose label the map leaves alone; the labels stay, and if
    there are fewer than round(r·N), all are taken. Every other row is bit-identical to the input. Pure, jittable and
    differentiable in the attack's floats but for the rounding; ``poison_rate`` may be traced.

    Args:
      key: decides the rows and what the trigger draws for each of them.
      attack: trigger, label map and rate.
      state: of ``attack.trigger.init``.
      split: uint8 images, or float in [0, 1].
      rounding: how a triggered image returns to 8 bits: ``nearest``, or ``truncate`` as BackdoorBench does. Float
        images are clipped to [0, 1] and not rounded.

    Returns:
      The split as a learner sees it, the true labels, and which rows carry the trigger.

    Raises:
      InputError: an unknown rounding.
    """
    split = jax.tree.map(jnp.asarray, split)
    row_key, trigger_key = jax.random.split(key)
    wanted = attack.label_map(split.label)
    candidate = split.valid & (wanted == split.label) if attack.clean_label else split.valid
    count = jnp.round(attack.poison_rate * split.valid.sum()).astype(jnp.int32)
    chosen = choose(row_key, candidate, count)
    image = _apply(trigger_key, attack.trigger, state, split.image, rounding)
    rows = chosen.reshape(-1, 1, 1, 1)
    visible = Split(
        jnp.where(rows, image, split.image),
        jnp.where(chosen, wanted, split.label).astype(split.label.dtype),
        split.valid,
    )
    return PoisonedSplit(visible, split.label, chosen)


def poison_test(
    key: Key[Array, ""], attack: Attack, state: TriggerState, split: Split, *, rounding: str = "nearest"
) -> PoisonedSplit:
    """Plant the (test) trigger in every row; the visible label is the attacker's.

    Rows that count for the attack success rate are ``valid``: all rows whose label the map changes. For all-to-one that
    leaves out the target class, for all-to-all nothing. Arguments as for `poison_train`.
    """
    split = jax.tree.map(jnp.asarray, split)
    trigger = attack.trigger if attack.test_trigger is None else attack.test_trigger
    wanted = attack.label_map(split.label).astype(split.label.dtype)
    image = _apply(key, trigger, state, split.image, rounding)
    valid = split.valid & (wanted != split.label)
    return PoisonedSplit(Split(image, wanted, valid), split.label, split.valid)


@flax.struct.dataclass
class Stamp:
    """The attack's own trigger as a `bdjax.types.TriggerSource`: what a defender who knows it can do to his images."""

    trigger: Trigger
    state: TriggerState
    rounding: str = flax.struct.field(pytree_node=False, default="nearest")

    def __call__(self, key: Key[Array, ""], image: Num[Array, "n h w c"]) -> Num[Array, "n h w c"]:
        """Return the images with the trigger; their labels are whatever they were."""
        return _apply(key, self.trigger, self.state, image, self.rounding)


def choose(key: Key[Array, ""], candidate: Bool[Array, " n"], count: Int[Array, ""]) -> Bool[Array, " n"]:
    """Return a mask of ``count`` candidates drawn uniformly without replacement; all of them if there are fewer.

    Every row gets a random rank, so that the count may be traced, and a larger count only adds rows.
    """
    order = jax.random.permutation(key, candidate.shape[0])
    position = jnp.cumsum(candidate[order])  # 1 for the first candidate in the random order, 2 for the next, …
    return jnp.zeros_like(candidate).at[order].set(candidate[order] & (position <= count))


def _apply(
    key: Key[Array, ""], trigger: Trigger, state: TriggerState, image: Num[Array, "n h w c"], rounding: str
) -> Num[Array, "n h w c"]:
    one_of(ROUNDINGS, rounding=rounding)

    def one(inputs: tuple[Key[Array, ""], Array]) -> Array:
        key, pixels = inputs
        triggered = jnp.clip(trigger.apply(key, state, as_float(pixels)), 0, 1)
        return _to_uint8(triggered, rounding) if pixels.dtype == jnp.uint8 else triggered

    # A vmap in pieces: as float32 the images take four times their room, so not all are in that form at once.
    return jax.lax.map(one, (jax.random.split(key, image.shape[0]), image), batch_size=_BATCH)


def _to_uint8(image: Float[Array, "h w c"], rounding: str) -> Num[Array, "h w c"]:
    # k / 255 · 255 can fall just short of k in float32; a level that is whole up to rounding error must stay whole.
    offset = 0.5 if rounding == "nearest" else 1e-3
    return jnp.floor(image * 255 + offset).astype(jnp.uint8)
