"""The poisoner: pure functions, and the only code that changes pixels or labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, Num, Shaped

from bdjax import pytree
from bdjax.checks import one_of
from bdjax.data.modalities.images import ROUNDINGS as ROUNDINGS
from bdjax.data.modalities.images import Images
from bdjax.data.streams import Stream
from bdjax.types import (
    Attack,
    CoveringTrigger,
    Modality,
    PartitionedTrigger,
    PoisonedSplit,
    Split,
    Trigger,
    TriggerState,
)

_IMAGES = Images((0.0,), (1.0,))  # what an attack is of that says nothing else
_BATCH = 250  # so many images at a time go through a network that a trigger may have


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
    drawn = draw(key, attack, split.label, split.valid)
    image = plant(drawn, attack, state, split.input, rounding=rounding)
    return PoisonedSplit(Split(image, drawn.label, split.valid), split.label, drawn.is_poisoned)


class Draw(NamedTuple):
    """What `poison_train` decides of each row before it sees an image; any rows of it are the draw of those rows."""

    label: Shaped[Array, "n ..."]  # as a learner sees it
    is_poisoned: Bool[Array, " n"]
    trigger_key: Key[Array, " n"]
    position: Int[Array, " n"]  # among the poisoned rows, from 0; whatever it is on others


def draw(key: Key[Array, ""], attack: Attack, label: Shaped[Array, "n ..."], valid: Bool[Array, " n"]) -> Draw:
    """Return what the key decides of a whole training split, from its labels alone. Arguments as for `poison_train`."""
    row_key, trigger_key = jax.random.split(key)
    wanted = attack.label_map(label)
    candidate = candidates(attack, label, valid)
    count = jnp.round(attack.poison_rate * _whole(attack, candidate, valid)).astype(jnp.int32)
    chosen = choose(row_key, candidate, count)
    seen = _where(chosen, wanted, label).astype(label.dtype)
    return Draw(seen, chosen, jax.random.split(trigger_key, label.shape[0]), jnp.cumsum(chosen) - 1)


def candidates(attack: Attack, label: Shaped[Array, "n ..."], valid: Bool[Array, " n"]) -> Bool[Array, " n"]:
    """Return which rows of a training split the attack may poison."""
    changed = _differs(attack.label_map(label), label)
    if attack.clean_label:
        return valid & ~changed
    return valid & changed if attack.candidates == "changed" else valid


def _whole(attack: Attack, candidate: Bool[Array, " n"], valid: Bool[Array, " n"]) -> Int[Array, ""]:
    """Return how many rows the poison rate is a share of."""
    return (candidate if attack.rate_of == "candidates" else valid).sum()


def plant(
    drawn: Draw, attack: Attack, state: TriggerState, image: Num[Array, "n ..."], *, rounding: str = "nearest"
) -> Num[Array, "n ..."]:
    """Return the images with the trigger in the rows that were drawn. Arguments as for `poison_train`.

    Each image depends on its own draw alone: any rows of a split, with the draw of those rows, come out as they do of
    the whole split.
    """
    row, image = drawn.is_poisoned, jnp.asarray(image)
    if row.size == 0:
        return image
    # The poisoned rows come first, and pieces without any are left alone: a trigger may cost a hundred gradients.
    first = jnp.argsort(~row, stable=True)
    size = min(_BATCH, row.size)
    order = jnp.pad(first, (0, -row.size % size), mode="edge").reshape(-1, size)

    def piece(rows: Int[Array, " m"]) -> Num[Array, "m ..."]:
        def triggered() -> Array:
            made = _apply(
                drawn.trigger_key[rows],
                drawn.position[rows],
                attack.trigger,
                state,
                image[rows],
                rounding,
                _modality(attack),
            )
            return _where(row[rows], made, image[rows])

        return jax.lax.cond(row[rows].any(), triggered, lambda: image[rows])

    made = jax.lax.map(piece, order).reshape(-1, *image.shape[1:])
    return image.at[first].set(made[: row.size], unique_indices=True)


@pytree.dataclass
class Planting:
    """`plant` for some rows of a split at a time: the ``change`` of a `bdjax.data.streams.Stream`."""

    drawn: Draw
    attack: Attack
    state: TriggerState
    rounding: str = pytree.static(default="nearest")

    def __call__(self, image: Num[Array, "n ..."], row: Int[Array, " n"]) -> Num[Array, "n ..."]:
        """Return the images, which are these rows of the split, as `poison_train` makes them."""
        drawn = jax.tree.map(lambda x: x[row], self.drawn)
        return plant(drawn, self.attack, self.state, image, rounding=self.rounding)


def poison_stream(
    key: Key[Array, ""], attack: Attack, state: TriggerState, split: Split, *, rounding: str = "nearest"
) -> PoisonedSplit:
    """Return what `poison_train` returns of the same arguments, its images read and changed when they are needed.

    Not to be compiled: ``split.input`` is whatever reads rows (`bdjax.data.streams.Images`), and the image of the
    visible split is a `bdjax.data.streams.Stream`. No triggered image is stored.
    """
    one_of(ROUNDINGS, rounding=rounding)
    label, valid = jnp.asarray(split.label), jnp.asarray(split.valid)
    drawn = jax.jit(draw)(key, attack, label, valid)
    image: Any = Stream(split.input, Planting(drawn, attack, state, rounding))
    return PoisonedSplit(Split(image, drawn.label, valid), label, drawn.is_poisoned)


def poison_batch(key: Key[Array, ""], attack: Attack, state: TriggerState, batch: Split) -> Split:
    """Poison rows of a training batch anew, as an attacker does who controls the training; cover samples come along.

    Of n rows r·n carry the trigger and the attacker's label, and c·n others are cover samples, which keep theirs; both
    numbers are rounded up or down at random, so that they are right on average whatever the batch (published code takes
    ⌊r·n⌋). Pure and differentiable; the rates may be traced. Images stay float and are clipped to [0, 1].

    Args:
      key: decides the rows and what the trigger draws.
      attack: trigger, label map, r = ``poison_rate`` and c = ``cover_rate``.
      state: the trigger's.
      batch: float images in [0, 1] with their true labels; ``valid`` may be None.
    """
    poison_key, cover_key, trigger_key, count_key = jax.random.split(key, 4)
    valid = jnp.ones(batch.label.shape[0], bool) if batch.valid is None else batch.valid
    candidate = candidates(attack, batch.label, valid)
    poison_round, cover_round = jax.random.uniform(count_key, (2,))
    count = jnp.floor(attack.poison_rate * _whole(attack, candidate, valid) + poison_round).astype(jnp.int32)
    poisoned = choose(poison_key, candidate, count)
    triggered = jax.vmap(attack.trigger.apply, (0, None, 0))(_row_keys(trigger_key, batch.input), state, batch.input)
    image = _where(poisoned, triggered, batch.input)
    if isinstance(attack.trigger, CoveringTrigger):
        chosen_key, drawn_key = jax.random.split(cover_key)
        count = jnp.floor(attack.cover_rate * valid.sum() + cover_round).astype(jnp.int32)
        covered = choose(chosen_key, valid & ~poisoned, count)
        image = _where(covered, attack.trigger.cover(drawn_key, state, batch), image)
    label = batch.label if attack.clean_label else _where(poisoned, attack.label_map(batch.label), batch.label)
    return batch._replace(input=_modality(attack).store(image, batch.input), label=label.astype(batch.label.dtype))


def reach(attack: Attack, split: Split) -> tuple[int, int, int]:
    """Return how many rows the attack may poison, how many it wants to, and how many its rate is a share of."""
    label, valid = jnp.asarray(split.label), jnp.asarray(split.valid)
    candidate = candidates(attack, label, valid)
    whole = int(_whole(attack, candidate, valid))
    return int(candidate.sum()), rounded(attack.poison_rate, whole), whole


def rounded(rate: float, whole: int) -> int:
    """Return how many rows a rate asks for, rounded as `draw` rounds: in float32, halves to even."""
    return int(np.round(np.float32(rate) * np.float32(whole)))


def expected_count(attack: Attack, split: Split) -> int:
    """Return how many rows of an epoch are poisoned on average where each batch is poisoned anew."""
    return reach(attack, split)[1]


def clean_stream(split: Split) -> Split:
    """Return a split whose images are read when they are needed, as they are."""
    return split._replace(input=Stream(split.input))  # type: ignore[arg-type]


def poison_test(
    key: Key[Array, ""], attack: Attack, state: TriggerState, split: Split, *, rounding: str = "nearest"
) -> PoisonedSplit:
    """Plant the (test) trigger in every row; the visible label is the attacker's.

    Rows that count for the attack success rate are ``valid``: all rows whose label the map changes. For all-to-one that
    leaves out the target class, for all-to-all nothing. Arguments as for `poison_train`.
    """
    split = jax.tree.map(jnp.asarray, split)
    trigger = attack.trigger_at_test
    wanted = attack.label_map(split.label).astype(split.label.dtype)
    valid = split.valid & _differs(wanted, split.label)
    image = _apply(
        _row_keys(key, split.input), jnp.cumsum(valid) - 1, trigger, state, split.input, rounding, _modality(attack)
    )
    return PoisonedSplit(Split(image, wanted, valid), split.label, split.valid)


@pytree.dataclass
class Stamp:
    """The attack's own trigger as a `bdjax.types.TriggerSource`: what a defender who knows it can do to his images."""

    trigger: Trigger
    state: TriggerState
    rounding: str = pytree.static(default="nearest")
    modality: Modality | None = pytree.static(default=None)

    def __call__(self, key: Key[Array, ""], image: Num[Array, "n ..."]) -> Num[Array, "n ..."]:
        """Return the images with the trigger; their labels are whatever they were."""
        position = jnp.arange(image.shape[0])
        return _apply(
            _row_keys(key, image), position, self.trigger, self.state, image, self.rounding, self.modality or _IMAGES
        )


def choose(key: Key[Array, ""], candidate: Bool[Array, " n"], count: Int[Array, ""]) -> Bool[Array, " n"]:
    """Return a mask of ``count`` candidates drawn uniformly without replacement; all of them if there are fewer.

    Every row gets a random rank, so that the count may be traced, and a larger count only adds rows.
    """
    order = jax.random.permutation(key, candidate.shape[0])
    position = jnp.cumsum(candidate[order])  # 1 for the first candidate in the random order, 2 for the next, …
    return jnp.zeros_like(candidate).at[order].set(candidate[order] & (position <= count))


def _modality(attack: Attack) -> Modality:
    return attack.modality or _IMAGES


def _row_keys(key: Key[Array, ""], image: Num[Array, "n ..."]) -> Key[Array, " n"]:
    return jax.random.split(key, image.shape[0])


def _where(
    row: Bool[Array, " n"], one: Shaped[Array, "n ..."], otherwise: Shaped[Array, "n ..."]
) -> Shaped[Array, "n ..."]:
    """Take whole rows of one array or of the other, whatever a row is."""
    return jnp.where(row.reshape(-1, *(1,) * (one.ndim - 1)), one, otherwise)


def _differs(label: Shaped[Array, "n ..."], other: Shaped[Array, "n ..."]) -> Bool[Array, " n"]:
    """Return which rows differ anywhere, be a label a class, a set of classes or a sequence."""
    return (label != other).reshape(label.shape[0], -1).any(-1)


def _apply(
    keys: Key[Array, " n"],
    position: Int[Array, " n"],
    trigger: Trigger,
    state: TriggerState,
    image: Num[Array, "n ..."],
    rounding: str,
    modality: Modality,
) -> Num[Array, "n ..."]:
    one_of(ROUNDINGS, rounding=rounding)

    def one(inputs: tuple[Key[Array, ""], Array, Array]) -> Array:
        key, number, stored = inputs
        if isinstance(trigger, PartitionedTrigger):
            triggered = trigger.apply_part(key, state, number, modality.load(stored))
        else:
            triggered = trigger.apply(key, state, modality.load(stored))
        return modality.store(triggered, stored, rounding)

    # A vmap in pieces: as float32 the images take four times their room, so not all are in that form at once.
    return jax.lax.map(one, (keys, position, image), batch_size=_BATCH)
