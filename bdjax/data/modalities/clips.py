"""Clips: uint8 [t, h, w, c] at rest, float32 in [0, 1] once they are worked on; frames are images."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from bdjax import pytree
from bdjax.checks import one_of
from bdjax.data.mixing import Mixed, mixup
from bdjax.data.modalities.images import Images
from bdjax.types import HParam, Spec, Trigger, TriggerState

AUGMENTATIONS = ("standard", "none", "mixup")


@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips whose frames are stored, normalized and augmented as images are; hashable.

    Attributes:
      frames: what a frame is.
    """

    frames: Images

    @property
    def unit(self) -> str:
        """What messages call an input."""
        return "clip"

    def lift(self, trigger: Trigger) -> Trigger:
        """Return a trigger of one image as one of clips: each frame gets it, with the same draw."""
        return OnFrames(trigger)

    def load(self, stored: Num[Array, "*n t h w c"]) -> Float[Array, "*n t h w c"]:
        """Return stored clips as they are worked on; float clips pass unchanged."""
        return self.frames.load(stored)

    def store(
        self,
        clip: Float[Array, "*n t h w c"],
        stored: Num[Array, "*n t h w c"],
        rounding: str = "nearest",
    ) -> Num[Array, "*n t h w c"]:
        """Return clips as the ``stored`` ones are. Arguments and errors as for `Images.store`."""
        return self.frames.store(clip, stored, rounding)

    def picture(
        self, stored: Num[Array | np.ndarray, "n t h w c"]
    ) -> Num[Array | np.ndarray, "n h tw c"]:
        """Return the frames of each clip side by side."""
        count, frames, height, width, channels = stored.shape
        return stored.transpose(0, 2, 1, 3, 4).reshape(count, height, frames * width, channels)

    def normalize(self, clip: Float[Array, "n t h w c"]) -> Float[Array, "n t h w c"]:
        """Return (x − mean) / std for each channel."""
        return self.frames.normalize(clip)

    def moved(
        self, key: Key[Array, ""], clip: Num[Array, "n t h w c"], augmentation: str
    ) -> Num[Array, "n t h w c"]:
        """Crop and flip all frames of a clip alike.

        Raises:
          InputError: an augmentation that there is for images alone.
        """
        one_of(AUGMENTATIONS, augment=augmentation)
        # Each frame is drawn for with the same key, so that the frames of a clip stay together.
        return jax.vmap(
            lambda frame: self.frames.moved(key, frame, augmentation), in_axes=1, out_axes=1
        )(clip)

    def mixed(
        self,
        key: Key[Array, ""],
        clip: Num[Array, "n t h w c"],
        augmentation: str,
        alpha: HParam = 1.0,
    ) -> Mixed:
        """Return `moved` clips worked on, and mixed in pairs by ``mixup``."""
        clip = self.load(clip)
        if augmentation == "mixup":
            return mixup(self.frames.own_key(key), clip, alpha)
        return Mixed(clip, jnp.arange(clip.shape[0]), jnp.float32(1))


@pytree.dataclass
class OnFrames(Trigger):
    """A trigger of one image on each frame of a clip."""

    frame: Trigger

    works_on = "clip"

    def init(self, key: Key[Array, ""], spec: Spec) -> TriggerState:
        """Return the state for images as the frames are."""
        frames: Images = spec.modality.frames  # type: ignore[attr-defined]
        return self.frame.init(key, Spec(spec.name, spec.shape[1:], frames, spec.task))

    def apply(
        self, key: Key[Array, ""], state: TriggerState, clip: Float[Array, "t h w c"]
    ) -> Float[Array, "t h w c"]:
        """Put the trigger on all frames alike."""
        return jax.vmap(self.frame.apply, (None, None, 0))(key, state, clip)
