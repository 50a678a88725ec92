"""LC: label-consistent poisoning, images that are hard to recognize and four corners (Turner et al., 2019)."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from bdjax import pytree
from bdjax.attacks._clean_label import clean_label
from bdjax.attacks._label_maps import AllToOne
from bdjax.checks import InputError, integer, non_negative, unit_interval
from bdjax.optim.pgd import pgd
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

# 1 is white; the right blocks are its mirror
_LEFT = np.array([[1, -1, -1], [-1, 1, -1], [1, -1, 1]], np.float32)


class CornersState(NamedTuple):
    """Where the corners go up (1), down (−1) or stay (0), and the surrogate's variables, if there is one."""

    signs: Float[Array, "h w 1"]
    surrogate: Variables


@pytree.dataclass
class Corners(Trigger):
    """A black and white block in each corner: x' = x + a S, clipped, which for a = 1 replaces the pixels."""

    amplitude: HParam = 1.0

    def init(self, key: Key[Array, ""], spec: Spec) -> CornersState:
        """Return the signs S: blocks of 3 × 3 cells, a cell one pixel, or k × k from 32k pixels on.

        Raises:
          InputError: the blocks do not fit side by side.
        """
        del key
        height, width, _ = spec.shape
        if min(height, width) < 6:
            raise InputError(
                f"the four corners need images of 6 × 6 pixels or more, got {height} × {width}."
            )
        cell = max(min(height, width) // 32, 1)
        left = np.kron(_LEFT, np.ones((cell, cell), np.float32))
        signs, size = np.zeros((height, width, 1), np.float32), 3 * cell
        for rows in (slice(0, size), slice(height - size, height)):
            signs[rows, :size, 0], signs[rows, width - size :, 0] = left, left[:, ::-1]
        return CornersState(jnp.asarray(signs), {})

    def apply(self, key: Key[Array, ""], state: CornersState, image: Image) -> Image:
        """Put the corners on one image."""
        del key
        return jnp.clip(image + self.amplitude * state.signs, 0, 1)


@pytree.dataclass
class PerturbedCorners(Trigger):
    """The corners on an image that the surrogate no longer takes for the target; without a model just the corners."""

    corners: Corners
    epsilon: HParam
    step_size: HParam
    steps: int = pytree.static()
    target_label: int = pytree.static()
    model: Model | None = pytree.static()

    hooks = ("fit",)
    epochs = 1
    batch_size = None

    def init(self, key: Key[Array, ""], spec: Spec) -> CornersState:
        """Return the corners' signs and, until the surrogate is trained, a new network's variables."""
        state = self.corners.init(key, spec)
        return state if self.model is None else state._replace(surrogate=self.model.init(key))

    def fit(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        state: CornersState,
        batch: Split,
    ) -> tuple[CornersState, Info]:
        """Keep the surrogate: images are perturbed when they are poisoned."""
        del key, model, batch
        if self.model is not None:
            state = state._replace(surrogate=variables)
        return state, Info(jnp.float32(0), jnp.float32(0), jnp.int32(0))

    def apply(self, key: Key[Array, ""], state: CornersState, image: Image) -> Image:
        """Perturb one image of the target class by ascent on the surrogate's loss, and put the corners on it."""
        model = self.model
        if model is not None:

            def loss_fn(image: Array) -> Array:
                logits, _ = model.apply(state.surrogate, image[None])
                own = jnp.array([self.target_label])
                return model.spec.task.negative_log_likelihood(logits, own)[0]

            steps, size = self.steps, self.step_size
            image = pgd(key, loss_fn, image, self.epsilon, steps, size, random_start=False)
        return self.corners.apply(key, state, image)


def lc(
    label_map: LabelMap = AllToOne(),
    poison_rate: float | None = None,
    target_class_rate: float = 0.8,
    amplitude: float = 1.0,
    epsilon: float = 8 / 255,
    step_size: float = 1.5 / 255,
    steps: int = 100,
    model: Model | None = None,
) -> Attack:
    """Create LC, also called CLA and CLB: perturbed images of the target class with four corners, labels as they are.

    x' = clip(x_K + a S), where x₀ = x and x_{k+1} = Π(x_k + s sign ∇ CE(f(x_k), t)); Π is the projection on the cube
    ‖x_k − x‖∞ ≤ ε and on [0, 1], f an adversarially trained network and t the target, the images' own class. What is
    left of their content no longer tells the class, so the victim learns the corners S. At test time there are the
    corners alone. S has 3 × 3 cells in each corner, + white and − black: ``+−−/−+−/+−+`` on the left, mirrored on the
    right.

    Args:
      label_map: the attacker's labels; all-to-one.
      poison_rate: share of the whole training split, in [0, 1]; beyond the target class's share all of it is poisoned.
        If given, ``target_class_rate`` counts for nothing.
      target_class_rate: share of the target class, in [0, 1]; 80 % is SFT's and NFT's. FT-SAM's 10 % of CIFAR-10 is all
        of it.
      amplitude: a in [0, 1]; at 1 the corners replace what is there.
      epsilon: ε ≥ 0 in units of the full range; 16/255 is what BackdoorBench's main branch loads.
      step_size: s ≥ 0 of each step, likewise.
      steps: number K of steps.
      model: the network, for the surrogate; without it images get the corners alone. Not an option of a config.

    Raises:
      InputError: a value out of range, or a label map other than all-to-one.

    Departures: the surrogate has the victim's architecture and training, adversarial in bdjax's way (two steps within
    1/255 on normalized inputs), where the released arrays come from a stronger, external network without
    normalization. Images at 64 × 64 get cells of 2 × 2 pixels, as there.

    References:
      Turner, Tsipras & Madry, Label-Consistent Backdoor Attacks, 2019, sections 3 and 4; SFT and NFT, "CLB".
    """
    if not isinstance(label_map, AllToOne):
        raise InputError(
            "label_map must be 'all_to_one' for a clean-label attack: lc ascends the one target's loss."
        )
    unit_interval(amplitude=amplitude)
    non_negative(epsilon=epsilon, step_size=step_size)
    integer(steps=steps)
    corners = Corners(amplitude)
    trigger = PerturbedCorners(corners, epsilon, step_size, steps, label_map.target_label, model)
    return clean_label(
        trigger, label_map, poison_rate, target_class_rate, corners, surrogate="robust"
    )
