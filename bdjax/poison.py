"""The poisoner: pure functions, and the only code that changes inputs or labels."""

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
from bdjax.types import Attack, Modality, PoisonedSplit, Split, Trigger, TriggerState

_IMAGES = Images((0.0,), (1.0,))  # what an attack is of that says nothing else
_BATCH = 250  # so many inputs at a time go through a network that a trigger may have


@pytree.dataclass
class Stamp:
    """Puts a trigger on stored inputs, each by itself: stored ← store(apply(load(stored))).

    It is a `bdjax.types.TriggerSource` too: what a defender who knows the trigger can do to his inputs.

    Attributes:
      trigger, state: what is put on them.
      rounding: how an image returns to 8 bits: ``nearest``, or ``truncate`` as BackdoorBench does.
      modality: what the inputs are.
    """

    trigger: Trigger
    state: TriggerState
    rounding: str = pytree.static(default="nearest")
    modality: Modality = pytree.static(default=_IMAGES)

    def __call__(self, key: Key[Array, ""], input: Num[Array, "n ..."]) -> Num[Array, "n ..."]:
        """Return the inputs with the trigger; their labels are whatever they were."""
        return self.on(_row_keys(key, input), jnp.arange(input.shape[0]), input)

    def on(
        self,
        key: Key[Array, " n"],
        position: Int[Array, " n"],
        input: Num[Array, "n ..."],
    ) -> Num[Array, "n ..."]:
        """Return the inputs with the trigger, each with its own key and its position among those that get it."""

        def on_one(row: tuple[Key[Array, ""], Array, Array]) -> Array:
            key, position, stored = row
            loaded = self.modality.load(stored)
            if "apply_part" in self.trigger.hooks:
                triggered = self.trigger.apply_part(key, self.state, position, loaded)
            else:
                triggered = self.trigger.apply(key, self.state, loaded)
            return self.modality.store(triggered, stored, self.rounding)

        # A vmap in pieces: as float32 images take four times their room, so not all are in that form at once.
        return jax.lax.map(on_one, (key, position, input), batch_size=_BATCH)


def trigger_source(
    attack: Attack,
    state: TriggerState,
    *,
    rounding: str = "nearest",
    at_test: bool = False,
) -> Stamp:
    """Return what puts the attack's trigger on inputs.

    Args:
      attack: of which the trigger is.
      state: the trigger's.
      rounding: of `Stamp`.
      at_test: take the trigger that test inputs get.

    Raises:
      InputError: an unknown rounding.
    """
    one_of(ROUNDINGS, rounding=rounding)
    trigger = attack.trigger_at_test if at_test else attack.trigger
    return Stamp(trigger, state, rounding, _modality(attack))


def poison_train(
    key: Key[Array, ""],
    attack: Attack,
    state: TriggerState,
    split: Split,
    *,
    rounding: str = "nearest",
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
      split: inputs as they are stored, such as uint8 images, or worked on, such as images in [0, 1].
      rounding: how a triggered image returns to 8 bits: ``nearest``, or ``truncate`` as BackdoorBench does. Float
        images are clipped to [0, 1] and not rounded.

    Returns:
      The split as a learner sees it, the true labels, and which rows carry the trigger.

    Raises:
      InputError: an unknown rounding.
    """
    split = jax.tree.map(jnp.asarray, split)
    decision = decide(key, attack, split.label, split.valid)
    input = stamp_chosen(decision, trigger_source(attack, state, rounding=rounding), split.input)
    visible = Split(input, decision.label, split.valid)
    return PoisonedSplit(visible, split.label, decision.is_poisoned)


class Decision(NamedTuple):
    """What `poison_train` decides of each row before it sees an input; any rows of it are the decision of those."""

    label: Shaped[Array, "n ..."]  # as a learner sees it
    is_poisoned: Bool[Array, " n"]
    trigger_key: Key[Array, " n"]
    position: Int[Array, " n"]  # among the poisoned rows, from 0; whatever it is on others


def decide(
    key: Key[Array, ""],
    attack: Attack,
    label: Shaped[Array, "n ..."],
    valid: Bool[Array, " n"],
) -> Decision:
    """Return what the key decides of a whole training split, from its labels alone. Arguments as for `poison_train`."""
    row_key, trigger_key = jax.random.split(key)
    wanted = attack.label_map(label)
    candidate = candidates(attack, label, valid)
    count = jnp.round(attack.poison_rate * _whole(attack, candidate, valid)).astype(jnp.int32)
    chosen = random_subset(row_key, candidate, count)
    seen = _where(chosen, wanted, label).astype(label.dtype)
    keys = jax.random.split(trigger_key, label.shape[0])
    return Decision(seen, chosen, keys, jnp.cumsum(chosen) - 1)


def candidates(
    attack: Attack,
    label: Shaped[Array, "n ..."],
    valid: Bool[Array, " n"],
) -> Bool[Array, " n"]:
    """Return which rows of a training split the attack may poison."""
    changed = differ(attack.label_map(label), label)
    if attack.clean_label:
        return valid & ~changed
    return valid & changed if attack.candidates == "changed" else valid


def _whole(
    attack: Attack,
    candidate: Bool[Array, " n"],
    valid: Bool[Array, " n"],
) -> Int[Array, ""]:
    """Return how many rows the poison rate is a share of."""
    return (candidate if attack.rate_of == "candidates" else valid).sum()


def stamp_chosen(
    decision: Decision,
    stamp: Stamp,
    input: Num[Array, "n ..."],
) -> Num[Array, "n ..."]:
    """Return the inputs with the trigger on the rows that were decided on.

    Each input depends on its own decision alone: any rows of a split, with the decision of those rows, come out as they
    do of the whole split.
    """
    row, input = decision.is_poisoned, jnp.asarray(input)
    if row.size == 0:
        return input
    # The poisoned rows come first, and pieces without any are left alone: a trigger may cost a hundred gradients.
    first = jnp.argsort(~row, stable=True)
    size = min(_BATCH, row.size)
    order = jnp.pad(first, (0, -row.size % size), mode="edge").reshape(-1, size)

    def piece(rows: Int[Array, " m"]) -> Num[Array, "m ..."]:
        def stamped() -> Array:
            made = stamp.on(decision.trigger_key[rows], decision.position[rows], input[rows])
            return _where(row[rows], made, input[rows])

        return jax.lax.cond(row[rows].any(), stamped, lambda: input[rows])

    made = jax.lax.map(piece, order).reshape(-1, *input.shape[1:])
    return input.at[first].set(made[: row.size], unique_indices=True)


@pytree.dataclass
class StampChosen:
    """`stamp_chosen` for some rows of a split at a time: the ``change`` of a `bdjax.data.streams.Stream`."""

    decision: Decision
    stamp: Stamp

    def __call__(self, input: Num[Array, "n ..."], row: Int[Array, " n"]) -> Num[Array, "n ..."]:
        """Return the inputs, which are these rows of the split, as `poison_train` makes them."""
        decision = jax.tree.map(lambda x: x[row], self.decision)
        return stamp_chosen(decision, self.stamp, input)


def poison_stream(
    key: Key[Array, ""],
    attack: Attack,
    state: TriggerState,
    split: Split,
    *,
    rounding: str = "nearest",
) -> PoisonedSplit:
    """Return what `poison_train` returns of the same arguments, its inputs read and changed when they are needed.

    Not to be compiled: ``split.input`` is whatever reads rows (`bdjax.data.streams.ReadByRow`), and the input of the
    visible split is a `bdjax.data.streams.Stream`. No triggered input is stored.
    """
    made = trigger_source(attack, state, rounding=rounding)
    label, valid = jnp.asarray(split.label), jnp.asarray(split.valid)
    decision = jax.jit(decide)(key, attack, label, valid)
    input: Any = Stream(split.input, StampChosen(decision, made))
    return PoisonedSplit(Split(input, decision.label, valid), label, decision.is_poisoned)


def poison_batch(key: Key[Array, ""], attack: Attack, state: TriggerState, batch: Split) -> Split:
    """Poison rows of a training batch anew, as an attacker does who controls the training; cover samples come along.

    Of n rows r·n carry the trigger and the attacker's label, and c·n others are cover samples, which keep theirs; both
    numbers are rounded up or down at random, so that they are right on average whatever the batch (published code takes
    ⌊r·n⌋). Pure and differentiable; the rates may be traced. Images stay float and are clipped to [0, 1].

    Args:
      key: decides the rows and what the trigger draws.
      attack: trigger, label map, r = ``poison_rate`` and c = ``cover_rate``.
      state: the trigger's.
      batch: inputs worked on with their true labels; ``valid`` may be None.
    """
    poison_key, cover_key, trigger_key, count_key = jax.random.split(key, 4)
    trigger, input = attack.trigger, batch.input
    valid = jnp.ones(batch.label.shape[0], bool) if batch.valid is None else batch.valid
    candidate = candidates(attack, batch.label, valid)
    poison_round, cover_round = jax.random.uniform(count_key, (2,))
    count = attack.poison_rate * _whole(attack, candidate, valid) + poison_round
    count = jnp.floor(count).astype(jnp.int32)
    poisoned = random_subset(poison_key, candidate, count)
    triggered = jax.vmap(trigger.apply, (0, None, 0))(_row_keys(trigger_key, input), state, input)
    changed = _where(poisoned, triggered, input)
    if "cover" in trigger.hooks:
        subset_key, made_key = jax.random.split(cover_key)
        count = jnp.floor(attack.cover_rate * valid.sum() + cover_round).astype(jnp.int32)
        covered = random_subset(subset_key, valid & ~poisoned, count)
        changed = _where(covered, trigger.cover(made_key, state, batch), changed)
    label = batch.label
    if not attack.clean_label:
        label = _where(poisoned, attack.label_map(label), label).astype(label.dtype)
    return batch._replace(input=_modality(attack).store(changed, input), label=label)


def reach(attack: Attack, split: Split) -> tuple[int, int, int]:
    """Return how many rows the attack may poison, how many it wants to, and how many its rate is a share of."""
    label, valid = jnp.asarray(split.label), jnp.asarray(split.valid)
    candidate = candidates(attack, label, valid)
    whole = int(_whole(attack, candidate, valid))
    return int(candidate.sum()), rounded(attack.poison_rate, whole), whole


def rounded(rate: float, whole: int) -> int:
    """Return how many rows a rate asks for, rounded as `decide` rounds: in float32, halves to even."""
    return int(np.round(np.float32(rate) * np.float32(whole)))


def expected_count(attack: Attack, split: Split) -> int:
    """Return how many rows of an epoch are poisoned on average where each batch is poisoned anew."""
    return reach(attack, split)[1]


def clean_stream(split: Split) -> Split:
    """Return a split whose inputs are read when they are needed, as they are."""
    return split._replace(input=Stream(split.input))  # type: ignore[arg-type]


def poison_test(
    key: Key[Array, ""],
    attack: Attack,
    state: TriggerState,
    split: Split,
    *,
    rounding: str = "nearest",
) -> PoisonedSplit:
    """Plant the (test) trigger in every row; the visible label is the attacker's.

    Rows that count for the attack success rate are ``valid``: all rows whose label the map changes. For all-to-one that
    leaves out the target class, for all-to-all nothing. Arguments and errors as for `poison_train`.
    """
    split = jax.tree.map(jnp.asarray, split)
    wanted = attack.label_map(split.label).astype(split.label.dtype)
    valid = split.valid & differ(wanted, split.label)
    made = trigger_source(attack, state, rounding=rounding, at_test=True)
    input = made.on(_row_keys(key, split.input), jnp.cumsum(valid) - 1, split.input)
    return PoisonedSplit(Split(input, wanted, valid), split.label, split.valid)


def random_subset(
    key: Key[Array, ""],
    candidate: Bool[Array, " n"],
    count: Int[Array, ""],
) -> Bool[Array, " n"]:
    """Return a mask of ``count`` candidates drawn uniformly without replacement; all of them if there are fewer.

    Every row gets a random rank, so that the count may be traced, and a larger count only adds rows.
    """
    order = jax.random.permutation(key, candidate.shape[0])
    position = jnp.cumsum(candidate[order])  # 1 for the first candidate in the random order, …
    return jnp.zeros_like(candidate).at[order].set(candidate[order] & (position <= count))


def _modality(attack: Attack) -> Modality:
    return attack.modality or _IMAGES


def _row_keys(key: Key[Array, ""], input: Num[Array, "n ..."]) -> Key[Array, " n"]:
    return jax.random.split(key, input.shape[0])


def _where(
    row: Bool[Array, " n"], one: Shaped[Array, "n ..."], otherwise: Shaped[Array, "n ..."]
) -> Shaped[Array, "n ..."]:
    """Take whole rows of one array or of the other, whatever a row is."""
    return jnp.where(row.reshape(-1, *(1,) * (one.ndim - 1)), one, otherwise)


def differ(label: Shaped[Array, "n ..."], other: Shaped[Array, "n ..."]) -> Bool[Array, " n"]:
    """Return which rows differ anywhere, be a label a class, a set of classes or a sequence."""
    return (label != other).reshape(label.shape[0], -1).any(-1)
