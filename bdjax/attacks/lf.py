"""LF: one smooth pattern, made against a clean network (Zeng et al., ICCV 2021)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from bdjax import pytree
from bdjax.attacks._label_maps import AddLabel, AllToOne
from bdjax.checks import InputError, integer, non_negative, positive, unit_interval
from bdjax.data.augment import as_float
from bdjax.types import (
    Attack,
    HParam,
    Image,
    Info,
    LabelMap,
    Model,
    Spec,
    Split,
    Trigger,
    Variables,
)

_TAPS, _SIGMA, _SIDE = 30, 6.0, 32  # pixels of the filter and of the images that it was chosen for
_LAST = 5  # rates that are compared
_SETTLED = 0.01


class LowFrequencyState(NamedTuple):
    """The pattern, and how far the search for it is."""

    pattern: Image
    seed: UInt32[Array, " s"]  # of the images that the search looks at
    rates: Float[Array, " 5"]  # fooling rates of the last passes, oldest first; −1 before the first
    found: Bool[Array, ""]


@pytree.dataclass
class LowFrequency(Trigger):
    """Add a smooth pattern of values in [0, a] to the image: x' = x + P."""

    amplitude: HParam
    overshoot: HParam
    fooling_rate: HParam
    epochs: int = pytree.static()
    images: int = pytree.static()
    iterations: int = pytree.static()
    target_label: int = pytree.static()

    hooks = ("fit",)
    batch_size = None

    def init(self, key: Key[Array, ""], spec: Spec) -> LowFrequencyState:
        """Return the state before the search; until then the pattern is filtered noise."""
        noise = jax.random.normal(key, spec.shape)
        seed = jax.random.key_data(jax.random.fold_in(key, 1))
        unknown = jnp.full(_LAST, jnp.float32(-1))
        pattern = stretched(smooth(noise), self.amplitude)
        return LowFrequencyState(pattern, seed, unknown, jnp.array(False))

    def apply(self, key: Key[Array, ""], state: LowFrequencyState, image: Image) -> Image:
        """Put the pattern on one image."""
        del key
        return image + state.pattern

    def fit(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        state: LowFrequencyState,
        batch: Split,
    ) -> tuple[LowFrequencyState, Info]:
        """Go through the chosen images once, in a new order, unless the pattern is found; then this costs nothing."""
        rows = min(self.images, batch.label.shape[0])
        score = jax.random.uniform(jax.random.wrap_key_data(state.seed), batch.label.shape)
        if batch.valid is not None:
            score = jnp.where(batch.valid, score, -1)
        _, chosen = jax.lax.top_k(score, rows)
        images = as_float(batch.input[chosen])
        logits = functools.partial(_logits, model, variables)

        def one_pass() -> tuple[LowFrequencyState, Int[Array, ""]]:
            first = (state.rates < 0).all()
            pattern = jnp.where(first, 0, state.pattern)
            visit = functools.partial(self._visit, logits)
            order = jax.random.permutation(key, images)
            (pattern, passes), _ = jax.lax.scan(visit, (pattern, jnp.int32(0)), order)
            clean = _predict(model, variables, images)
            rate = jnp.mean(clean != _predict(model, variables, images + pattern))
            rates = jnp.append(state.rates[1:], rate)
            settled = (rates >= 0).all() & (rates.max() - rates.min() < _SETTLED)
            # Where no image moved, nothing was found, and the pattern from before is better than none.
            pattern = jnp.where((pattern != 0).any(), pattern, state.pattern)
            found = (rate >= self.fooling_rate) | settled
            return LowFrequencyState(pattern, state.seed, rates, found), passes

        state, passes = jax.lax.cond(state.found, lambda: (state, jnp.int32(0)), one_pass)
        evaluations = -(-passes // batch.label.shape[0])  # of single images
        return state, Info(1 - state.rates[-1], state.rates[-1], evaluations)

    def _visit(
        self,
        logits: Any,
        carry: tuple[Array, Array],
        image: Array,
    ) -> tuple[tuple[Array, Array], None]:
        """Move the pattern towards what makes one image the target, if it does not change that image's class yet."""
        pattern, passes = carry
        start = image + pattern

        def search() -> tuple[Array, Array]:
            step, used = deepfool(logits, start, self.target_label, self.iterations, self.overshoot)
            moved = stretched(smooth(pattern + smooth(step)), self.amplitude)
            reached = (used > 0) & (used < self.iterations - 1)
            return jnp.where(reached, moved, pattern), passes + used + 1

        unchanged = jnp.argmax(logits(image)) == jnp.argmax(logits(start))
        return jax.lax.cond(unchanged, search, lambda: (pattern, passes)), None


def deepfool(
    logits: Any, image: Image, target: int, iterations: int, overshoot: HParam
) -> tuple[Image, Int[Array, ""]]:
    """Return (1 + o) r that makes an image the target, and the number of steps, each to the linearized boundary.

    r ← r + |f_t − f_a| ∇(f_t − f_a) / ‖∇(f_t − f_a)‖² at x + (1 + o) r, with a the class at the start, until the class
    is t; a step that is not finite is left out.

    Args:
      logits: f, of one image.
      image: x.
      target: t.
      iterations: how many steps at most.
      overshoot: o ≥ 0.
    """
    origin = jnp.argmax(logits(image))

    def difference(image: Array) -> tuple[Array, Array]:
        values = logits(image)
        return values[target] - values[origin], jnp.argmax(values)

    evaluate = jax.value_and_grad(difference, has_aux=True)

    def going(carry: Any) -> Array:
        _, ((_, label), _), used = carry
        return (label != target) & (used < iterations)

    def step(carry: Any) -> Any:
        r, ((value, _), slope), used = carry
        step = jnp.abs(value) * slope / jnp.sum(slope**2)
        r = r + jnp.where(jnp.isfinite(step).all(), step, 0)
        return r, evaluate(image + (1 + overshoot) * r), used + 1

    start = (jnp.zeros_like(image), evaluate(image), jnp.int32(0))
    r, _, used = jax.lax.while_loop(going, step, start)
    return (1 + overshoot) * r, used


def smooth(image: Image) -> Image:
    """Filter with a Gaussian of 30 taps and σ = 6 pixels at 32 × 32, and in proportion at other sizes; zeros around."""
    height, width, _ = image.shape
    return jnp.einsum("ih,jw,hwc->ijc", _blur(height), _blur(width), image, precision="highest")


def _blur(side: int) -> Float[np.ndarray, "n n"]:
    taps = max(round(_TAPS * side / _SIDE), 1)
    offset = np.arange(taps) - (taps - 1) / 2
    weight = np.exp(-0.5 * (offset / (_SIGMA * side / _SIDE)) ** 2)
    tap = np.arange(side) - np.arange(side)[:, None] + (taps - 1) // 2  # of input j for output i
    inside = (tap >= 0) & (tap < taps)
    return np.where(inside, (weight / weight.sum())[tap.clip(0, taps - 1)], 0).astype(np.float32)


def stretched(pattern: Image, amplitude: HParam) -> Image:
    """Bring a pattern to [0, a] by its least and greatest value; one of equal values is returned as it is."""
    low, high = pattern.min(), pattern.max()
    spread = jnp.where(high > low, high - low, 1)
    return jnp.where(high > low, amplitude * (pattern - low) / spread, pattern)


def _logits(model: Model, variables: Variables, image: Image) -> Float[Array, " k"]:
    return model.apply(variables, image[None])[0][0]


def _predict(
    model: Model,
    variables: Variables,
    image: Float[Array, "n h w c"],
) -> Int[Array, " n"]:
    return jnp.argmax(model.apply(variables, image)[0], -1)


def lf(
    label_map: LabelMap = AllToOne(),
    poison_rate: float = 0.1,
    amplitude: float = 0.2,
    images: int = 100,
    passes: int = 50,
    fooling_rate: float = 0.2,
    iterations: int = 200,
    overshoot: float = 0.02,
) -> Attack:
    """Create LF: x' = x + P with one smooth pattern P in [0, a], a universal perturbation of a clean network f.

    From P = 0, in passes over random training images x: where f(x + P) has the class of f(x), DeepFool finds the r that
    makes x + P + r the target, and P ← stretch(G(P + G r)), where G is a Gaussian filter and stretch brings the least
    and greatest value to 0 and a. The passes end when P changes the class of enough of these images, or when the
    last five of these shares differ by less than 0.01.

    Args:
      label_map: the attacker's labels; DeepFool's target is that of all-to-one, else class 0.
      poison_rate: share of the whole training split, in [0, 1].
      amplitude: a in [0, 1].
      images: how many training images the search looks at.
      passes: how many times at most.
      fooling_rate: share of changed classes at which it ends, in [0, 1]: the paper's 1 − δ.
      iterations: steps of DeepFool at most; an image that needs as many, or one fewer, moves nothing.
      overshoot: o ≥ 0, how far DeepFool goes beyond the boundary.

    Raises:
      InputError: a value out of range.

    Departures: BackdoorBench measures the share on a single test image, and without normalization in part; here it is
    measured on the images of the search, as the authors do. They also let the target be found (the class that most
    images get), keep the best P, and re-filter P at images that already are the target; here the target is given, P is
    the last, and such images change nothing. The filter has 30 taps and σ = 6 pixels at 32 × 32; at other sizes both
    are scaled with the image.

    References:
      Zeng et al., Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective, ICCV 2021, section 4;
      Moosavi-Dezfooli et al., DeepFool, CVPR 2016.
    """
    unit_interval(poison_rate=poison_rate, amplitude=amplitude, fooling_rate=fooling_rate)
    integer(1, images=images, passes=passes, iterations=iterations)
    positive(amplitude=amplitude)
    non_negative(overshoot=overshoot)
    if isinstance(label_map, AddLabel):
        raise InputError(
            f"label_map must map a class to a class: the search moves images to one; got {label_map!r}."
        )
    target = label_map.target_label if isinstance(label_map, AllToOne) else 0
    trigger = LowFrequency(amplitude, overshoot, fooling_rate, passes, images, iterations, target)
    return Attack(trigger, label_map, poison_rate, surrogate="clean")
