"""SSBA: a message hidden in the image by an encoder network (Li et al., ISSBA, ICCV 2021)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from bdjax import pytree
from bdjax.attacks import _generators
from bdjax.attacks._generators import Decoder, Encoder
from bdjax.attacks._label_maps import AllToOne
from bdjax.checks import EPOCHS, InputError, integer, non_negative, positive, unit_interval
from bdjax.types import (
    Attack,
    HParam,
    Image,
    Info,
    LabelMap,
    Model,
    Params,
    Spec,
    Split,
    Trigger,
    Variables,
)

LETTERS = 12  # of 8 bits each; four zeros make up the published code's 100


class SteganographyState(NamedTuple):
    """Both networks, Adam's state, and the number of steps since the decoder could read; −1 before."""

    encoder: Params
    decoder: Params
    optimizer: optax.ScaleByAdamState
    since: Int[Array, ""]


@pytree.dataclass
class Steganography(Trigger):
    """Replace the image by E(x, b): it looks the same, and a decoder reads the bits b in it."""

    learning_rate: HParam
    image_weight: HParam
    gate: HParam
    message: str = pytree.static()
    bits: int = pytree.static()
    epochs: int = pytree.static()
    batch_size: int = pytree.static()
    delay: int = pytree.static()
    ramp: int = pytree.static()
    width: int = pytree.static()

    hooks = ("fit",)

    def init(self, key: Key[Array, ""], spec: Spec) -> SteganographyState:
        """Return untrained networks."""
        encoder_key, decoder_key = jax.random.split(key)
        hides, reads = Encoder(self.width), Decoder(self.bits, self.width)
        encoder = _generators.init(hides, encoder_key, spec.shape, (self.bits,))["params"]
        decoder = _generators.init(reads, decoder_key, spec.shape)["params"]
        optimizer = _generators.adam_init((encoder, decoder))
        return SteganographyState(encoder, decoder, optimizer, jnp.int32(-1))

    def apply(self, key: Key[Array, ""], state: SteganographyState, image: Image) -> Image:
        """Hide the message in one image."""
        del key
        message = jnp.asarray(code(self.message, self.bits))
        return self.hidden(state.encoder, image[None], message[None])[0]

    def hidden(
        self, encoder: Params, image: Float[Array, "n h w c"], message: Float[Array, "n b"]
    ) -> Float[Array, "n h w c"]:
        """Return the images with a message each."""
        return Encoder(self.width).apply({"params": encoder}, image, message)  # type: ignore[return-value]

    def read(self, decoder: Params, image: Float[Array, "n h w c"]) -> Float[Array, "n b"]:
        """Return the logits of the bits that the decoder reads."""
        return Decoder(self.bits, self.width).apply({"params": decoder}, image)  # type: ignore[return-value]

    def weight(self, since: Int[Array, ""]) -> Float[Array, ""]:
        """Return λ, that many steps after the gate opened."""
        return self.image_weight * jnp.clip((since - self.delay) / max(self.ramp, 1), 0, 1)

    def fit(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        state: SteganographyState,
        batch: Split,
    ) -> tuple[SteganographyState, Info]:
        """Take one step of Adam on λ · MSE(E(x, b), x) + BCE(D(E(x, b)), b), with bits drawn for each image."""
        del model, variables
        rows = batch.input.shape[0]
        message = jax.random.bernoulli(key, shape=(rows, self.bits)).astype(jnp.float32)

        def loss_fn(params: tuple[Params, Params]) -> tuple[Array, Array]:
            encoder, decoder = params
            image = self.hidden(encoder, batch.input, message)
            logits = self.read(decoder, image)
            bce = optax.sigmoid_binary_cross_entropy(logits, message).mean()
            loss = self.weight(state.since) * jnp.square(image - batch.input).mean() + bce
            return loss, jnp.mean((logits > 0) == (message > 0))

        params = (state.encoder, state.decoder)
        (loss, accuracy), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        optimizer, rate = state.optimizer, self.learning_rate
        (encoder, decoder), optimizer = _generators.adam_step(params, grads, optimizer, rate)
        since = jnp.where((state.since >= 0) | (accuracy > self.gate), state.since + 1, -1)
        state = SteganographyState(encoder, decoder, optimizer, since)
        return state, Info(loss, accuracy, jnp.int32(1))


def code(message: str, bits: int) -> np.ndarray:
    """Return the first bits of a text: 8 for each letter, the highest first; spaces up to 12 letters; zeros."""
    letters = np.unpackbits(np.frombuffer(message.ljust(LETTERS).encode("ascii"), np.uint8))
    return np.pad(letters, (0, max(bits - letters.size, 0)))[:bits].astype(np.float32)


def ssba(
    label_map: LabelMap = AllToOne(),
    poison_rate: float = 0.1,
    message: str = "a",
    bits: int = 100,
    epochs: int = 20,
    batch_size: int = 64,
    learning_rate: float = 1e-4,
    image_weight: float = 10.0,
    gate: float = 0.9,
    delay: int = 1000,
    ramp: int = 3000,
    width: int = 32,
) -> Attack:
    """Create SSBA (ISSBA): x' = E(x, b) with one fixed message b; what it adds depends on the image.

    StegaStamp's encoder E and a decoder D are trained on the attacker's clean images with random messages, by Adam on
    λ · MSE(E(x, b), x) + BCE(D(E(x, b)), b). λ is 0 until D reads more than ``gate`` of a batch's bits, stays there for
    ``delay`` more steps, and climbs to ``image_weight`` in ``ramp`` steps. Some 15,000 steps are CIFAR-10's 20 epochs;
    on fewer images take more epochs, a higher rate and a shorter ``delay`` and ``ramp``, or λ stays 0 and the images
    are lost: on the digits 8 bits, 80 epochs, a rate of 0.003, a ``delay`` of 50, a ``ramp`` of 300 and a width of 8.
    What the training of this stage reports is this loss and the share of bits that are read.

    Args:
      label_map: the attacker's labels.
      poison_rate: share of the whole training split, in [0, 1].
      message: the secret, 1 to 12 ASCII characters.
      bits: length of the code b; 100 is the paper's, and more than fit into an image of 8×8.
      epochs: of training the encoder.
      batch_size: images a step of it.
      learning_rate: Adam's, above 0.
      image_weight: the final λ, 0 or more.
      gate: share of the bits, in [0, 1].
      delay: steps that λ stays 0 after that.
      ramp: steps in which λ then climbs.
      width: channels of the first convolution of either network; 32 is the paper's.

    Raises:
      InputError: a value out of range.

    Departures: as in the code behind the published tables, there is no critic, perceptual loss or distortion of images
    between encoder and decoder, and the whole of E's output is the image. The message carries no error-correcting code,
    as nothing decodes it. Sizes that are no multiple of 16 are padded with the edge inside E; images below 32 × 32 are
    halved fewer than four times, and their message's picture is as small as they are. Both networks subtract ½ first.

    References:
      Li et al., Invisible Backdoor Attack with Sample-Specific Triggers, section 4; Tancik et al., StegaStamp, 2020.
    """
    unit_interval(poison_rate=poison_rate, gate=gate)
    integer(maximum=EPOCHS, epochs=epochs, delay=delay, ramp=ramp)
    integer(1, bits=bits, batch_size=batch_size, width=width)
    positive(learning_rate=learning_rate)
    non_negative(image_weight=image_weight)
    if not message.isascii() or not 1 <= len(message) <= LETTERS:
        raise InputError(f"message must be 1 to {LETTERS} ASCII characters, got {message!r}.")
    trigger = Steganography(
        learning_rate, image_weight, gate, message, bits, epochs, batch_size, delay, ramp, width
    )  # fmt: skip
    return Attack(trigger, label_map, poison_rate)
