"""Steps of SFT, fast SFT and NFT against their papers' objectives in NumPy, derived by finite differences in float64.

Of bdjax there is the network's ``apply``, and of MixUp's draws what they were. Everything else is written from the
papers: cross-entropy, the exact trace of the Fisher information (itself from finite differences), its diagonal, the
anchor, singular values, mixed labels, masks and their box. The network has tanh in place of ReLU, which has no kinks.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick import quick_jit

from bdjax import structure
from bdjax.data.modalities.images import image_spec
from bdjax.defenses.fast_sft import fast_sft
from bdjax.defenses.nft import nft
from bdjax.defenses.sft import sft
from bdjax.models._layers import BatchNorm, Dense, LinenModel, conv
from bdjax.optim import Schedule
from bdjax.optim.anchor import AnchorState
from bdjax.types import Split

KEY = jax.random.key(0)
SPEC = image_spec("tiny", (4, 4, 1), 3, (0.5,), (0.25,))
ETA_F, ETA_R, ETA_C, RATE, MOMENTUM = 0.3, 5.0, 0.02, 0.1, 0.9
NEAR, FAR = 1e-5, 1e-4  # steps of the inner and the outer differences
# Rows are output filters
KERNELS = {"first": (2, 9), "second": (3, 2), "third": (2, 3), "last": (3, 2)}
NORMS = ("norm1", "norm2", "norm3")


class Smooth(nn.Module):
    """Three convolutions with batch norm and tanh, and a dense layer."""

    @nn.compact
    def __call__(self, x, *, train: bool, valid=None):
        for size, width, name, norm in (
            (3, 2, "first", 1),
            (1, 3, "second", 2),
            (1, 2, "third", 3),
        ):
            x = conv(width, size, name=name)(x)
            x = jnp.tanh(BatchNorm(name=f"norm{norm}")(x, train=train, valid=valid))
        return Dense(3, name="last")(x.mean((1, 2)))


MODEL = LinenModel(Smooth(), SPEC)


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def start(float64):
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        value = rng.uniform(-1, 1, leaf.shape)
        return jnp.asarray(1 + 0.3 * value if path[-1].key in ("scale", "var") else value)

    return jax.tree.map_with_path(draw, jax.eval_shape(MODEL.init, KEY))


@pytest.fixture(scope="module")
def batch(float64):
    image = np.random.default_rng(1).uniform(size=(5, *SPEC.shape))
    return Split(jnp.asarray(image), jnp.arange(5) % 3, jnp.ones(5, bool))


# --- the papers' objectives, in NumPy --------------------------------------------------------------------------------


def vector(tree):
    """All numbers of a tree, in its order."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def like(tree, values):
    """The tree with these numbers."""
    leaves, treedef = jax.tree.flatten(tree)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = np.split(values, ends)
    return jax.tree.unflatten(
        treedef, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    )


def slope(function, at, step):
    """Central differences of a function, all perturbed points of which are given to it at once."""
    moves = step * np.eye(at.size)
    return (function(at + moves) - function(at - moves)).T / (2 * step)


@quick_jit
def many_logits(params, stats, image):
    return jax.vmap(lambda each: MODEL.apply({"params": each, "batch_stats": stats}, image)[0])(
        params
    )


@quick_jit
def many_training_logits(params, stats, image):
    return jax.vmap(
        lambda each: MODEL.apply({"params": each, "batch_stats": stats}, image, train=True)[0]
    )(params)


def negative_log_likelihoods(logits, label):
    """−log [softmax f(x_i)]_y of every image."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -log_p[..., np.arange(len(label)), label]


class Space:
    """What is tuned, as points of a vector space, and the likelihood of the labels there."""

    def __init__(self, start):
        self.start = start

    @property
    def origin(self) -> np.ndarray:
        """The suspect network."""
        raise NotImplementedError

    def params(self, point):
        """The network's parameters at a point."""
        raise NotImplementedError

    def losses(self, points, split, train):
        """Losses [point, image], normalized by the batch or by the running statistics of the victim."""
        stacked = [self.params(point) for point in points]
        params = jax.tree.map(lambda *leaves: np.stack(leaves), *stacked)
        run = many_training_logits if train else many_logits
        logits = np.asarray(run(params, self.start["batch_stats"], split.input))
        return negative_log_likelihoods(logits, np.asarray(split.label))

    def gradients(self, point, split):
        """∂ℓ_i/∂φ_k of each image, [image, k], batch norm in evaluation mode."""
        return slope(lambda points: self.losses(points, split, train=False), point, NEAR)

    def trace(self, points, split):
        """Tr F = E‖∇ log p‖², eq. 4, at each point."""
        return np.array([(self.gradients(point, split) ** 2).sum(-1).mean() for point in points])

    def importance(self, split):
        """diag F̄ at the suspect network."""
        return (self.gradients(self.origin, split) ** 2).mean(0)


class Weights(Space):
    """SFT: all weights θ."""

    @property
    def origin(self):
        return vector(self.start["params"])

    def params(self, point):
        return like(self.start["params"], point)


class Shifts(Space):
    """Fast SFT: δ in U diag(relu(σ + δ)) Vᵀ, for every layer."""

    def __init__(self, start):
        super().__init__(start)
        leaves = structure.flat(start["params"])
        kernels = {path: np.asarray(leaf) for path, leaf in leaves.items() if path[-1] == "kernel"}
        rows = {path: kernel.reshape(-1, kernel.shape[-1]).T for path, kernel in kernels.items()}
        assert {path[0]: matrix.shape for path, matrix in rows.items()} == KERNELS
        self.factors = {
            path: np.linalg.svd(matrix, full_matrices=False) for path, matrix in rows.items()
        }
        self.tuned = structure.nested(
            {path: np.zeros_like(s) for path, (_, s, _) in self.factors.items()}
        )

    @property
    def origin(self):
        return vector(self.tuned)

    def params(self, point):
        leaves = dict(structure.flat(self.start["params"]))
        for path, shift in structure.flat(like(self.tuned, point)).items():
            u, s, vt = self.factors[path]
            matrix = u @ np.diag(np.maximum(s + shift, 0)) @ vt
            leaves[path] = matrix.T.reshape(leaves[path].shape)
        return structure.nested(leaves)


class Masks(Space):
    """NFT: a factor on the scale of every batch norm but the first."""

    @property
    def origin(self):
        return np.ones(5)

    def params(self, point):
        params = {name: dict(layer) for name, layer in self.start["params"].items()}
        for name, mask in zip(NORMS[1:], np.split(point, [3]), strict=True):
            params[name]["scale"] = params[name]["scale"] * mask
        return params


# --- SFT and fast SFT ------------------------------------------------------------------------------------------------

CASES = {"sft": (sft, Weights), "fast_sft": (fast_sft, Shifts)}


@pytest.mark.parametrize("name", CASES)
def test_two_steps_descend_the_objective_of_sft(name, start, batch):
    """min L(φ) + η_F Tr F(φ) + (η_r/2) Σ F̄ (φ − φ̄)², eq. 6: a step without the trace, and one with it and the anchor.

    The second starts far from φ̄, for fast SFT with singular values that were pushed below zero.
    """
    options = {
        "eta_f": ETA_F,
        "eta_r": ETA_R,
        "every": 2,
        "estimator": "per_sample",
        "chunk": 3,
        "schedule": Schedule(),
    }
    create, space_of = CASES[name]
    learner = create(**options, learning_rate=RATE, momentum=MOMENTUM, batch_size=5, augment="none")
    space = space_of(start)
    importance = space.importance(batch)
    state = quick_jit(lambda: learner.init(KEY, MODEL, start, batch))()
    (anchor,) = [part for part in state.optimizer[0] if isinstance(part, AnchorState)]
    np.testing.assert_allclose(vector(anchor.importance), importance, rtol=1e-5, atol=1e-9)

    def plain(points):
        return space.losses(points, batch, train=True).mean(-1)

    update = quick_jit(lambda state: learner.update(KEY, MODEL, state, batch)[0])
    at = space.origin
    buffer = slope(plain, at, NEAR)
    state = update(state)
    np.testing.assert_allclose(vector(state.tuned), at - RATE * buffer, atol=1e-8)

    at = at + np.random.default_rng(2).uniform(-0.3, 0.3, at.size)
    if name == "fast_sft":
        at[0] = -1.1 * space.factors["first", "kernel"][1][0]
    # The running statistics have moved, and the terms of Fisher see those.
    space.start = {**start, "batch_stats": state.batch_stats}
    anchor = ETA_R * importance * (at - space.origin)
    trace = slope(lambda points: space.trace(points, batch), at, FAR)
    assert np.abs(ETA_F * trace).max() > 1e-3
    assert np.abs(anchor).max() > 1e-3
    buffer = MOMENTUM * buffer + slope(plain, at, NEAR) + ETA_F * trace + anchor
    state = update(state._replace(tuned=like(state.tuned, at)))
    np.testing.assert_allclose(vector(state.tuned), at - RATE * buffer, atol=1e-6)
    exported = learner.finalize(MODEL, state)["params"]
    np.testing.assert_allclose(
        vector(exported), vector(space.params(vector(state.tuned))), atol=1e-9
    )


# --- NFT -------------------------------------------------------------------------------------------------------------


def test_a_step_descends_the_objective_of_nft_and_stays_in_its_box(start, batch):
    """min L_mix(m) + η_c Σ |1 − m|, then into [α exp(−β l), 1], l = 1, 2 for the second and third batch norm."""
    alpha, beta, rate = 0.8, 0.5, 3.0
    learner = nft(alpha, beta, ETA_C, learning_rate=rate, momentum=0.0, batch_size=5)
    draws = quick_jit(lambda: SPEC.modality.augmented(KEY, batch.input, "mixup"))()
    image, partner, weight = map(np.asarray, draws)
    own = np.asarray(batch.input)
    np.testing.assert_allclose(image, weight * own + (1 - weight) * own[partner], rtol=1e-6)
    assert 0.01 < weight < 0.99
    assert (partner != np.arange(5)).any()
    space = Masks(start)
    mixed, other = (
        batch._replace(input=image),
        batch._replace(input=image, label=batch.label[partner]),
    )

    def objective(points):
        two = [space.losses(points, split, train=True).mean(-1) for split in (mixed, other)]
        return weight * two[0] + (1 - weight) * two[1] + ETA_C * np.abs(1 - points).sum(-1)

    at = np.array([0.9, 0.6, 0.97, 0.5, 0.35])
    lower = np.repeat([alpha * np.exp(-beta), alpha * np.exp(-2 * beta)], [3, 2])
    state = quick_jit(lambda: learner.init(KEY, MODEL, start, batch))()
    np.testing.assert_array_equal(vector(state.tuned), np.ones(5))
    assert set(state.tuned) == set(NORMS[1:])
    update = quick_jit(lambda state: learner.update(KEY, MODEL, state, batch)[0])
    state = update(state._replace(tuned=like(state.tuned, at)))
    free = at - rate * slope(objective, at, NEAR)
    np.testing.assert_allclose(vector(state.tuned), np.clip(free, lower, 1), atol=1e-6)
    inside = (free > lower) & (free < 1)
    assert inside.any()
    assert not inside.all()
    exported = learner.finalize(MODEL, state)["params"]
    np.testing.assert_allclose(
        vector(exported), vector(space.params(vector(state.tuned))), rtol=1e-6
    )
