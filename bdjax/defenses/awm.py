"""AWM: adversarial weight masking (Chai and Chen, NeurIPS 2022)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

from bdjax import pytree
from bdjax.checks import integer, non_negative, positive, unit_interval
from bdjax.parametrizations import WeightMasks
from bdjax.train.recipe import Recipe, with_recipe
from bdjax.types import BatchStats, HParam, Info, Model, Split, Variables

PRESETS = {
    "paper": {},
    "one_shot": {"alpha": 0.99, "tau": 100.0, "batch_size": 32},  # one image of each class
    "sft": {"epochs": 100, "weight_decay": 1e-3},  # as SFT's and NFT's authors ran it
}
STRENGTHS = {  # what ``auto`` tries
    "alpha": (0.99, 0.97, 0.9, 0.8, 0.6, 0.3),
    "tau": (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0),
}
_COPIES = 9  # of each image where there is one of each class
_TINY = 1e-12  # so that no perturbation stays none


class MaskingState(NamedTuple):
    """The masks and what their steps need, beside the network that they are of."""

    round: Int[Array, ""]
    tuned: Any
    frozen: Any
    batch_stats: BatchStats
    optimizer: optax.OptState


@pytree.dataclass
class WeightMasking:
    """Rounds of two phases: find a perturbation of all images, then tune the masks against it.

    A round is an epoch of the loop, which hands it the whole holdout. Batch norm is in evaluation
    mode throughout.

    Attributes:
      learning_rate, weight_decay, decay, alpha, tau, gamma, ascent_rate, passes, copies, epochs: as of `awm`.
      rows: images a step.
    """

    learning_rate: HParam = 0.01
    weight_decay: HParam = 0.0
    decay: HParam = 1.0
    alpha: HParam = 0.9
    tau: HParam = 1000.0
    gamma: HParam = 1e-8
    ascent_rate: HParam = 10.0
    passes: int = pytree.static(default=5)
    copies: int | None = pytree.static(default=None)
    epochs: int = pytree.static(default=20)
    rows: int = pytree.static(default=128)

    @property
    def batch_size(self) -> int | None:
        return None

    @property
    def drop_last(self) -> bool:
        return False

    def init(
        self, key: Key[Array, ""], model: Model, variables: Variables, split: Split
    ) -> MaskingState:
        """Return the state before the first round."""
        del key, split
        tuned, frozen = WeightMasks().init(model, variables)
        optimizer = self._chain(jnp.int32(0), frozen).init(tuned)
        return MaskingState(jnp.int32(0), tuned, frozen, variables["batch_stats"], optimizer)

    def update(
        self, key: Key[Array, ""], model: Model, state: MaskingState, batch: Split
    ) -> tuple[MaskingState, Info]:
        """Take one round. What is reported is of the second phase's steps."""
        copy_key, ascent_key, descent_key = jax.random.split(key, 3)
        input, label = self._images(copy_key, model, batch)
        rows = label.shape[0]
        size = min(self.rows, rows)
        steps = self.passes * (rows // size)

        def draw(key: Key[Array, ""]) -> Int[Array, "steps size"]:
            return jax.random.randint(key, (steps, size), 0, rows)

        delta = self.perturbation(model, self.finalize(model, state), input, draw(ascent_key))

        def step(
            state: MaskingState, index: Int[Array, " size"]
        ) -> tuple[MaskingState, tuple[Array, Array]]:
            some = Split(input[index], label[index], jnp.ones(size, bool))
            return self._descend(model, state, some, delta)

        state, (loss, right) = jax.lax.scan(step, state, draw(descent_key))
        # Of each step: one of the images, one of the masks on the images and one on the others
        return state._replace(round=state.round + 1), Info(
            loss.mean(), right.mean(), jnp.int32(3 * steps)
        )

    def perturbation(
        self,
        model: Model,
        variables: Variables,
        input: Array,
        drawn: Int[Array, "steps size"],
    ) -> Float[Array, "..."]:
        """Return the one perturbation δ that was found to change answers, ‖δ‖₁ ≤ τ.

        It starts at 0 and climbs the loss with respect to the network's own answers; at the end it is
        scaled into the ball.

        Args:
          model: the network.
          variables: its.
          input: the images, stored or worked on.
          drawn: the rows of each step.
        """
        task, load = model.spec.task, model.spec.modality.load

        def climb(delta: Array, index: Array) -> tuple[Array, None]:
            images = load(input[index])
            answer = task.answer(model.apply(variables, images)[0])

            def loss_fn(delta: Array) -> Array:
                return task.loss(model.apply(variables, images + delta)[0], answer).mean()

            return delta + self.ascent_rate * jax.grad(loss_fn)(delta), None

        start = jnp.zeros_like(load(input[:1])[0])
        delta, _ = jax.lax.scan(climb, start, drawn)
        return delta * jnp.minimum(1, self.tau / (jnp.abs(delta).sum() + _TINY))

    def _descend(
        self, model: Model, state: MaskingState, batch: Split, delta: Array
    ) -> tuple[MaskingState, tuple[Array, Array]]:
        """Take a step with the masks; return the loss without penalty, and the accuracy without perturbation."""
        task = model.spec.task
        images = model.spec.modality.load(batch.input)
        both = jnp.concatenate([images, jnp.clip(images + delta, 0, 1)])

        def loss_fn(tuned: Any) -> tuple[Array, Array]:
            params = WeightMasks().apply(tuned, state.frozen)
            output, _ = model.apply({"params": params, "batch_stats": state.batch_stats}, both)
            clean, perturbed = jnp.split(output, 2)
            loss = self.alpha * task.loss(clean, batch.label).mean()
            loss += (1 - self.alpha) * task.loss(perturbed, batch.label).mean()
            return loss, task.correct(task.answer(clean), batch.label).astype(jnp.float32).mean()

        (loss, right), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.tuned)
        chain = self._chain(state.round, state.frozen)
        updates, optimizer = chain.update(grads, state.optimizer, state.tuned)
        tuned = optax.apply_updates(state.tuned, updates)
        return state._replace(tuned=tuned, optimizer=optimizer), (loss, right)

    def finalize(self, model: Model, state: MaskingState) -> Variables:
        """Return the network with the masks on its weights."""
        del model
        params = WeightMasks().apply(state.tuned, state.frozen)
        return {"params": params, "batch_stats": state.batch_stats}

    def kept(self, state: MaskingState) -> MaskingState:
        """Return the state without what is frozen."""
        return state._replace(frozen=(), batch_stats=())

    def restored(self, kept: MaskingState, model: Model, variables: Variables) -> MaskingState:
        """Return the state with what is frozen, made again from the variables of the start."""
        _, frozen = WeightMasks().init(model, variables)
        return kept._replace(frozen=frozen, batch_stats=variables["batch_stats"])

    def _images(self, key: Key[Array, ""], model: Model, batch: Split) -> tuple[Array, Array]:
        """Return the images, with augmented copies behind them, and the labels of all."""
        few = batch.label.shape[0] <= model.spec.num_classes
        copies = self.copies
        if copies is None:
            copies = _COPIES if few else 0
        if not copies:
            return batch.input, batch.label
        modality = model.spec.modality
        more = jnp.concatenate([batch.input] * copies)
        moved = modality.moved(key, more, "standard")
        return jnp.concatenate([batch.input, moved]), jnp.tile(batch.label, copies + 1)

    def _chain(self, round: Int[Array, ""], frozen: Any) -> optax.GradientTransformation:
        """Return Adam on the loss with its penalties, and the projection to [0, 1]."""

        def penalized(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
            return jax.tree.map(
                lambda u, m: u + self.gamma * jnp.sign(m) + self.weight_decay * m, updates, params
            )

        rate = self.learning_rate * self.decay ** round.astype(jnp.float32)
        return optax.chain(
            optax.stateless(penalized),
            optax.scale_by_adam(),
            optax.scale(-rate),
            WeightMasks().constraint(frozen),
        )


@with_recipe(
    Recipe(epochs=20, batch_size=128, learning_rate=0.01, weight_decay=0.0),
    without=("momentum", "label_smoothing", "schedule", "augment"),
)
def awm(
    recipe: Recipe,
    alpha: float = 0.9,
    tau: float = 1000.0,
    gamma: float = 1e-8,
    ascent_rate: float = 10.0,
    passes: int = 5,
    copies: int | None = None,
    decay: float = 1.0,
) -> WeightMasking:
    """Create AWM: min_m max_{‖δ‖₁ ≤ τ} α L(x) + (1 − α) L(clip(x + δ)) + γ ‖m‖₁ over a mask 0 ≤ m ≤ 1 for each weight.

    All weights are frozen; those of the convolutions have masks, which start at 1 and stay as soft as
    they end (`bdjax.parametrizations.WeightMasks`). A round finds one perturbation δ of all images,
    from 0 upwards in the loss of the network's own answers, and scales it to ‖δ‖₁ ≤ τ; then Adam
    tunes the masks against it, on true labels and on images clipped to [0, 1]. Batch norm is in
    evaluation mode. A round is one compiled call.

    When it works: on digits, two victims of BadNets kept 67 and 29 % of the ASR with the defaults, 15
    (32 with another key) and 3 % after 100 rounds with τ = 30, for 2 to 3 points of accuracy, and 0.5 and 0.2 % with
    the preset ``sft``, for 4.9 and 7.5. Of Blended the defaults and ``sft`` left all, the 100 rounds
    83 and 45 %. Three networks that were never attacked lost 1 to 2 points to the defaults. At the
    paper's size it has not been run.

    With one image of each class, 9 augmented copies of each are added, and the authors take the values
    of the preset ``one_shot``.

    Departures. The copies are drawn anew in each round, by the data set's own augmentation; the
    authors' are made once, by crops of random sizes. τ and the rate of the climb are of images of 32 × 32:
    the ball of smaller ones is larger than it looks.

    Args:
      alpha: α in [0, 1], the share of the loss on the images as they are.
      tau: τ ≥ 0. With 0 nothing is perturbed.
      gamma: γ ≥ 0. However small it is, Adam takes full steps along it where the losses have no
        gradient, as Adam's own ε is 10⁻⁸: what clean images do not need fades.
      ascent_rate: of the climb, above 0.
      passes: each phase takes so many times ⌊n / ``batch_size``⌋ batches, drawn with replacement.
      copies: of each image, at least 0; None is 9 where the images are no more than the classes, else 0.
      decay: in (0, 1], of the rate, from round to round (released code: 0.9, but off).
      epochs: rounds.
      learning_rate: Adam's.
      weight_decay: coupled, on the masks (0.001 in SFT's and NFT's runs).

    Raises:
      InputError: a value out of range, or the network has no weight to mask.

    References:
      Chai and Chen, One-shot Neural Backdoor Erasing via Adversarial Weight Masking, NeurIPS 2022.
    """
    unit_interval(alpha=alpha, decay=decay)
    non_negative(tau=tau, gamma=gamma)
    positive(ascent_rate=ascent_rate, decay=decay)
    integer(1, passes=passes)
    if copies is not None:
        integer(copies=copies, maximum=1000)
    return WeightMasking(
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        decay=decay,
        alpha=alpha,
        tau=tau,
        gamma=gamma,
        ascent_rate=ascent_rate,
        passes=passes,
        copies=copies,
        epochs=recipe.epochs,
        rows=recipe.batch_size,
    )
