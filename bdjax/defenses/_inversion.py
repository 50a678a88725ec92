"""Trigger inversion: for each class, the smallest patch that sends other images to it (Wang et al., 2019)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Num

from bdjax import pytree
from bdjax.checks import InputError, integer, one_of, positive, unit_interval
from bdjax.types import HParam, Model, Split, Variables

PRESETS = ("quick_look", "paper")
_DOWN = 1.5  # the weight is divided by the factor to this power, as in the released code
_GAIN = 0.01  # a norm that is lower by less than this share is no improvement
_SMALLER = 0.9  # of the start's norm: a mask that is no smaller is what the search began with, and no finding


@pytree.dataclass
class Settings:
    """How hard to search. A number that is not static may change without another compilation.

    Attributes:
      rounds: most rounds, after each of which the weight λ of the mask's norm may change.
      batch_size: images a step for each class.
      steps: steps a round; None is a pass over the images.
      at_once: images at once in the network, which bounds the memory; at least one class's batch.
      learning_rate: of Adam.
      start: the masks' value everywhere at the start, in (0, 1).
      weight: λ at the start, of the norm as a share of the pixels.
      factor: λ is multiplied by it after ``wait`` successful rounds in a row, and divided by its power of 1.5 after as
        many others; above 1.
      wait: so many rounds.
      success: share of a round's images, in [0, 1], that must reach the class.
      patience: rounds in a row without a norm lower by 1 % after which a class is done, once λ has moved both ways.

    Raises:
      InputError: a value out of range.
    """

    rounds: HParam = 80
    batch_size: int = pytree.static(default=32)
    steps: int | None = pytree.static(default=None)
    at_once: int = pytree.static(default=256)
    learning_rate: HParam = 0.1
    start: HParam = 0.88
    weight: HParam = 1.0
    factor: HParam = 2.0
    wait: HParam = 5
    success: HParam = 0.98
    patience: HParam = 25

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        integer(1, rounds=self.rounds, batch_size=self.batch_size, at_once=self.at_once)
        integer(1, wait=self.wait, patience=self.patience)
        if self.steps is not None:
            integer(1, steps=self.steps)
        positive(learning_rate=self.learning_rate, weight=self.weight)
        unit_interval(success=self.success, start=self.start)
        if self.start in (0, 1):
            raise InputError(f"start must lie between 0 and 1, and be neither, got {self.start!r}.")
        if self.factor <= 1:
            raise InputError(f"factor must be above 1, got {self.factor!r}.")


def of_preset(preset: str) -> Settings:
    """Return ``paper``, as published, or ``quick_look``: few steps on few images, for a processor."""
    one_of(PRESETS, preset=preset)
    if preset == "paper":
        return Settings()
    return Settings(
        rounds=16,
        batch_size=4,
        steps=2,
        at_once=40,
        learning_rate=0.2,
        start=0.5,
        factor=1.3,
        wait=1,
        success=0.85,
        patience=6,
    )


class Inverted(NamedTuple):
    """What was found for each of k classes.

    ``norm`` is the sum of the mask, in pixels; ``success`` the share of the images of other classes that get the class
    with mask and pattern on them. ``found`` is False where no round was successful with a mask smaller by a tenth than
    that of the start: then mask and norm are about those of the start, and a smaller trigger may exist or not.
    """

    mask: Float[np.ndarray, "k h w"]
    pattern: Float[np.ndarray, "k h w c"]
    norm: Float[np.ndarray, " k"]
    success: Float[np.ndarray, " k"]
    found: Bool[np.ndarray, " k"]

    @property
    def size(self) -> Float[np.ndarray, " k"]:
        """The norms to compare: where no trigger was found, the whole image at least, as the start is no finding."""
        whole = self.mask[0].size
        return np.where(self.found, self.norm, np.maximum(self.norm, whole))


class Found(NamedTuple):
    """The same inside a program, whether all of it are numbers, and the gradients of a class's batch that it took."""

    mask: Float[Array, "k h w"]
    pattern: Float[Array, "k h w c"]
    norm: Float[Array, " k"]
    success: Float[Array, " k"]
    found: Bool[Array, " k"]
    finite: Bool[Array, ""]
    gradient_evaluations: Int[Array, ""]

    @property
    def size(self) -> Float[Array, " k"]:
        """As of `Inverted`."""
        whole = self.mask[0].size
        return jnp.where(self.found, self.norm, jnp.maximum(self.norm, whole))


class _Trigger(NamedTuple):
    """Mask and pattern before the tanh, for some classes."""

    mask: Float[Array, "k h w"]
    pattern: Float[Array, "k h w c"]

    def squashed(self) -> _Trigger:
        return _Trigger(*((jnp.tanh(x) + 1) / 2 for x in self))


class _Search(NamedTuple):
    """Where the search stands, for each of some classes."""

    number: Int[Array, ""]
    at: _Trigger
    moments: Any
    weight: Float[Array, " k"]
    streak: Int[Array, " k"]  # successful rounds in a row; below 0, others in a row
    raised: Bool[Array, " k"]
    lowered: Bool[Array, " k"]
    best: _Trigger
    norm: Float[Array, " k"]
    waited: Int[Array, " k"]
    found: Bool[Array, " k"]
    ended: Bool[Array, " k"]


class _Rows(NamedTuple):
    """Some classes, with the rows of the images of all others: the first ``count`` of ``order``."""

    target: Int[Array, " k"]
    order: Int[Array, "k n"]
    count: Int[Array, " k"]


def invert(
    key: Key[Array, ""], model: Model, variables: Variables, split: Split, settings: Settings
) -> Inverted:
    """Look for the smallest trigger of each class t: minimize mean CE(f((1 − m)·x + m·p), t) + λ‖m‖₁ over m and p.

    m and p are (tanh + 1) / 2 of what Adam moves. λ rises while the trigger works and falls while it does not; the
    mask with the least norm after a successful round is kept. All classes are one compiled program, and another network
    of the same model compiles nothing.

    Departures from the released code: images of class t itself are left out, in the search and in the success that is
    reported; λ weighs the norm as a share of the pixels, so that 1 is the published 1e-3 at 32×32 and means the same at
    other sizes; patterns start at a draw around the published value; the order of the images is drawn once; what is
    kept is the mask that the last batch of the round has seen, not the one after.

    Args:
      key: decides the order of the images and where the patterns start.
      model: a classifier of images.
      variables: its weights, in evaluation mode.
      split: clean images [n, h, w, c] with their labels; rows that are not ``valid`` are left out.
      settings: how hard to search.

    Raises:
      InputError: images that do not fit the network, or of fewer than two classes; a network that gives no numbers.

    References:
      Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks, 2019, sec. IV; its released code.
    """
    images, label = _checked(model, split)
    rows = _rows(key, label, model.spec.num_classes)
    found = _program()(key, model, variables, jnp.asarray(images), rows, settings)
    if not bool(found.finite):
        raise InputError("the network must give finite logits for the images; it gives NaN.")
    return Inverted(*map(np.asarray, found[: len(Inverted._fields)]))


def check_model(model: Model) -> None:
    """Refuse a network that no trigger can be looked for in.

    Raises:
      InputError: it does not classify images, into two classes or more.
    """
    spec = model.spec
    if spec.modality.unit != "image" or spec.task.labels != "class":
        what = f"{spec.modality.unit}s with a {spec.task.labels} each"
        raise InputError(f"model must classify images, one class each; got {what}.")
    if spec.num_classes < 2:
        raise InputError(f"model must have two classes or more, got {spec.num_classes}.")


def _checked(
    model: Model, split: Split
) -> tuple[Num[np.ndarray, "n h w c"], Int[np.ndarray, " n"]]:
    """Return the valid images and their labels."""
    check_model(model)
    spec, (images, label, valid) = model.spec, map(np.asarray, split)
    if images.shape[1:] != spec.shape:
        raise InputError(f"split must hold images of {spec.shape}, got {images.shape[1:]}.")
    images, label = images[valid], label[valid]
    present = np.unique(label)
    if len(present) < 2:
        held = f"{len(label)} images of {len(present)}"
        raise InputError(f"split must hold images of two classes or more, got {held}.")
    if present[0] < 0 or present[-1] >= spec.num_classes:
        wanted = f"0 to {spec.num_classes - 1}"
        raise InputError(
            f"split must have labels from {wanted}, got {present[0]} to {present[-1]}."
        )
    return images, label


def inverted(
    key: Key[Array, ""],
    model: Model,
    variables: Variables,
    images: Num[Array, "n h w c"],
    label: Int[Array, " n"],
    settings: Settings,
) -> Found:
    """Do what `invert` does as part of a program: a pure function that checks neither model nor images."""
    rows = _rows(key, label, model.spec.num_classes)
    return _all_classes(key, model, variables, images, rows, settings)


def _rows(key: Key[Array, ""], label: Int[Array | np.ndarray, " n"], num_classes: int) -> _Rows:
    """Return all classes with the rows of other classes first, each in an order of its own."""
    target = jnp.arange(num_classes)
    own = jnp.asarray(label) == target[:, None]
    score = jax.random.uniform(jax.random.fold_in(key, 0), own.shape) + own
    return _Rows(target, jnp.argsort(score), (~own).sum(1))


@functools.cache
def _program() -> Any:
    return jax.jit(_all_classes, static_argnums=1)


def _all_classes(
    key: Key[Array, ""],
    model: Model,
    variables: Variables,
    images: Num[Array, "n h w c"],
    rows: _Rows,
    settings: Settings,
) -> Found:
    """Search, some classes after others."""
    classes = model.spec.num_classes
    groups = -(-classes * settings.batch_size // settings.at_once)
    groups = min(groups, classes)
    each = -(-classes // groups)
    which = jnp.minimum(jnp.arange(groups * each), classes - 1).reshape(groups, each)

    def group(which: Array) -> tuple[Array, ...]:
        some = jax.tree.map(lambda x: x[which], rows)
        network = _Network(model, variables, images)
        search = _search(key, network, some, settings)
        mask, pattern = search.best.squashed()
        success = _success(network, search.best, some, settings.at_once)
        finite = jnp.isfinite(search.at.mask).all((1, 2))
        spent = jnp.full(each, search.number * _steps(network, settings))
        smaller = search.norm <= _SMALLER * settings.start * mask[0].size
        # Where every image is of the class itself, nothing was looked for.
        known = search.found & smaller & (some.count > 0)
        return mask, pattern, search.norm, success, known, finite, spent

    each_class = jax.lax.map(group, which)
    mask, pattern, norm, success, known, finite, spent = (
        x.reshape(-1, *x.shape[2:])[:classes] for x in each_class
    )
    return Found(mask, pattern, norm, success, known, finite.all(), spent.sum())


class _Network(NamedTuple):
    """A network and the clean images, as they are stored."""

    model: Model
    variables: Variables
    images: Num[Array, "n h w c"]

    def outputs(self, trigger: _Trigger, row: Int[Array, "k b"]) -> Float[Array, "k b c"]:
        """Return the logits of some images for each class, with the class's trigger on them."""
        mask, pattern = trigger.squashed()
        image = self.model.spec.modality.load(self.images[row])
        mask = mask[:, None, :, :, None]
        image = (1 - mask) * image + mask * pattern[:, None]
        logits = self.model.apply(self.variables, image.reshape(-1, *image.shape[2:]))[0]
        return logits.reshape(*row.shape, -1)


def _search(key: Key[Array, ""], network: _Network, rows: _Rows, settings: Settings) -> _Search:
    """Search until every class has ended, or for the most rounds."""
    optimizer = optax.adam(settings.learning_rate, b1=0.5, b2=0.9)

    def unfinished(search: _Search) -> Array:
        return (search.number < settings.rounds) & ~search.ended.all()

    def one(search: _Search) -> _Search:
        at, moments, seen, hits = _round(network, rows, settings, optimizer, search)
        at = _where(search.ended, search.at, at)
        return _judged(search._replace(at=at, moments=moments), seen, hits, settings)

    start = _start(key, network, rows.target, settings, optimizer)
    return jax.lax.while_loop(unfinished, one, start)


def _start(
    key: Key[Array, ""],
    network: _Network,
    target: Int[Array, " k"],
    settings: Settings,
    optimizer: optax.GradientTransformation,
) -> _Search:
    """Return masks of 0.88 everywhere with patterns around 0.88, as published but for the draw around it."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 1), target)
    shape, classes = network.images.shape[1:], len(target)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    mask = jnp.full((classes, *shape[:2]), jnp.arctanh(2 * settings.start - 1))
    at = _Trigger(mask, 1 + 0.1 * noise)
    zero, no = jnp.zeros(classes, jnp.int32), jnp.zeros(classes, bool)
    norm = at.squashed().mask.sum((1, 2))
    weight = jnp.full(classes, settings.weight, jnp.float32)
    return _Search(
        number=jnp.int32(0),
        at=at,
        moments=optimizer.init(at),
        weight=weight,
        streak=zero,
        raised=no,
        lowered=no,
        best=at,
        norm=norm,
        waited=zero,
        found=no,
        ended=no,
    )


def _round(
    network: _Network,
    rows: _Rows,
    settings: Settings,
    optimizer: optax.GradientTransformation,
    search: _Search,
) -> tuple[_Trigger, Any, _Trigger, Float[Array, " k"]]:
    """Take a round's steps; return where they lead, Adam's moments, the last trigger that was seen, and its hits."""
    size, steps = settings.batch_size, _steps(network, settings)
    task = network.model.spec.task

    def loss(trigger: _Trigger, row: Array) -> tuple[Array, Array]:
        logits = network.outputs(trigger, row)
        wanted = jnp.repeat(rows.target, size)
        losses = task.loss(logits.reshape(wanted.shape[0], -1), wanted)
        norm = trigger.squashed().mask.mean((1, 2))
        hits = (logits.argmax(-1) == rows.target[:, None]).mean(1)
        # The classes share no variable: the gradient of the sum is each one's own.
        return losses.sum() / size + (search.weight * norm).sum(), hits

    def step(carry: tuple[_Trigger, Any], number: Array) -> tuple[Any, Any]:
        trigger, moments = carry
        place = (search.number * steps + number) * size + jnp.arange(size)
        row = jnp.take_along_axis(rows.order, place % rows.count[:, None], axis=1)
        gradient, hits = jax.grad(loss, has_aux=True)(trigger, row)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(trigger, updates), moments), (trigger, hits)

    (at, moments), (seen, hits) = jax.lax.scan(step, (search.at, search.moments), jnp.arange(steps))
    return at, moments, jax.tree.map(lambda x: x[-1], seen), hits.mean(0)


def _steps(network: _Network, settings: Settings) -> int:
    """Return the steps of a round."""
    return settings.steps or -(-network.images.shape[0] // settings.batch_size)


def _judged(
    search: _Search, seen: _Trigger, hits: Float[Array, " k"], settings: Settings
) -> _Search:
    """Keep the least mask that works, move the weights, and end the classes that get no smaller."""
    works = (hits >= settings.success - 1e-6) & ~search.ended
    norm = seen.squashed().mask.sum((1, 2))
    better = works & ((norm < search.norm) | ~search.found)
    gained = better & ((norm < (1 - _GAIN) * search.norm) | ~search.found)
    waited = jnp.where(gained, 0, search.waited + 1)
    streak = jnp.where(works, jnp.maximum(search.streak, 0) + 1, jnp.minimum(search.streak, 0) - 1)
    up, down = streak >= settings.wait, streak <= -settings.wait
    weight = jnp.where(up, search.weight * settings.factor, search.weight)
    weight = jnp.where(down, weight / settings.factor**_DOWN, weight)
    raised, lowered = search.raised | up, search.lowered | down
    return search._replace(
        number=search.number + 1,
        weight=weight,
        streak=jnp.where(up | down, 0, streak),
        raised=raised,
        lowered=lowered,
        best=_where(better, seen, search.best),
        norm=jnp.where(better, norm, search.norm),
        waited=waited,
        found=search.found | works,
        ended=search.ended | (raised & lowered & (waited >= settings.patience)),
    )


def _where(which: Bool[Array, " k"], new: _Trigger, old: _Trigger) -> _Trigger:
    """Take the first for some of the classes, and the second for the others."""

    def leaf(new: Array, old: Array) -> Array:
        return jnp.where(which.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(leaf, new, old)


def _success(network: _Network, trigger: _Trigger, rows: _Rows, at_once: int) -> Float[Array, " k"]:
    """Return the share of the images of other classes that get each class, with its trigger on them."""
    classes, number = rows.order.shape
    size = min(max(1, at_once // classes), number)
    steps = -(-number // size)

    def add(total: Array, step: Array) -> tuple[Array, None]:
        place = step * size + jnp.arange(size)
        row = rows.order[:, jnp.minimum(place, number - 1)]
        hit = network.outputs(trigger, row).argmax(-1) == rows.target[:, None]
        counts = place < rows.count[:, None]
        return total + (hit & counts).sum(1), None

    hits, _ = jax.lax.scan(add, jnp.zeros(classes, jnp.int32), jnp.arange(steps))
    return hits / rows.count
