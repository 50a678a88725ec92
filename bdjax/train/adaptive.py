"""The attacker who knows the defense: how a victim is trained so that its backdoor is hard to remove."""

from __future__ import annotations

from typing import NamedTuple

import optax

from bdjax import optim, pytree
from bdjax.checks import InputError, integer, non_negative, one_of
from bdjax.parametrizations import FrozenConvolutions, Identity
from bdjax.train.recipe import VICTIM_RECIPE, Recipe, with_recipe
from bdjax.train.supervised import Supervised
from bdjax.train.transformations import PlainSgd, Setting, Transformation, batch_fisher_trace
from bdjax.types import HParam, Parametrization

TRAINING_STARTS = ("scratch", "clean")


class Training(NamedTuple):
    """How a victim is trained, and from what: from a new network (``scratch``), or from a ``clean`` one."""

    learner: Supervised
    start: str = "scratch"


@pytree.dataclass
class SharpnessAware:
    """The gradient at θ + ε, ε the worst adaptive perturbation of radius ρ."""

    rho: HParam

    def __call__(self, setting: Setting, /) -> optax.GradientTransformationExtraArgs:
        """Return the chain of FT-SAM's step."""
        return optax.chain(optim.sam(self.rho, adaptive=True), setting.sgd)


@pytree.dataclass
class FisherTrace:
    """g + η_F ∇Tr F(θ) on every tenth step."""

    eta_f: HParam

    def __call__(self, setting: Setting, /) -> optax.GradientTransformationExtraArgs:
        """Return the chain of SFT's step, without its anchor."""
        return optax.chain(batch_fisher_trace(self.eta_f), setting.sgd)


@with_recipe(VICTIM_RECIPE)
def training(
    recipe: Recipe,
    *,
    drop_last: bool = True,
    start: str = "scratch",
    frozen_convolutions: int = 0,
    rho: float | None = None,
    eta_f: float | None = None,
) -> Training:
    """Create the training of a victim: the papers', and what an adaptive attacker adds to it.

    Args:
      drop_last: as for `bdjax.train.supervised.supervised`.
      start: ``clean`` is for an attacker who first trains a network like this on clean images, with none of these four
        options, and goes on from there with poisoned ones; ``scratch`` is a new network.
      frozen_convolutions: the kernels of so many of the last convolutions stay as they are at the start, so that a
        backdoor has to hide in earlier layers (5 in NFT's table 13, with a clean start).
      rho: radius ρ ≥ 0 of FT-SAM's adaptive sharpness-aware minimization: an attacker who plants a backdoor where the
        loss is flat, and a defense that flattens it finds little to do.
      eta_f: weight η_F ≥ 0 of SFT's trace of the Fisher information, on every tenth step, to the same end; instead of
        ``rho``.

    Raises:
      InputError: a value out of range, or options that exclude each other.
    """
    one_of(TRAINING_STARTS, start=start)
    integer(frozen_convolutions=frozen_convolutions)
    parametrization: Parametrization = Identity()
    if frozen_convolutions:
        parametrization = FrozenConvolutions(frozen_convolutions)
    learner = Supervised.of(
        recipe,
        transformation=_flattening(rho, eta_f),
        parametrization=parametrization,
        drop_last=drop_last,
    )
    return Training(learner, start)


def _flattening(rho: float | None, eta_f: float | None) -> Transformation:
    if rho is not None:
        non_negative(rho=rho)
    if eta_f is not None:
        non_negative(eta_f=eta_f)
    if rho is not None and eta_f is not None:
        raise InputError(f"eta_f must be left out where rho = {rho} is given; got {eta_f}.")
    if rho is not None:
        return SharpnessAware(rho)
    return PlainSgd() if eta_f is None else FisherTrace(eta_f)
