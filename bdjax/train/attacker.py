"""What an attacker trains: a surrogate, the trigger, and the victim, one after another in the loop that all share."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Key

from bdjax import poison, pytree
from bdjax.checks import InputError
from bdjax.parametrizations import Identity
from bdjax.train import batches, states
from bdjax.train.supervised import Supervised
from bdjax.train.transformations import PlainSgd
from bdjax.types import (
    Attack,
    Info,
    Learner,
    LearnerState,
    Model,
    Split,
    Trigger,
    TriggerState,
    Variables,
)

TRIGGER = "trigger"  # where the variables of a stage that knows the trigger hold its state
SURROGATES = ("none", "clean", "robust")


class Stage(NamedTuple):
    """One thing that the attacker trains: ``surrogate``, ``trigger`` or ``victim``.

    The victim is the last and starts from a new network, unless its training says otherwise. Only a victim whose
    batches are not poisoned one by one is given the poisoned split, the others the clean one.
    """

    name: str
    learner: Learner
    starts_afresh: bool = False  # whether it is a victim that starts from a new network

    @property
    def sees_poisoned(self) -> bool:
        return self.name == "victim" and not isinstance(self.learner, Controlled)


def stages(attack: Attack, training: Supervised, start: str = "scratch") -> list[Stage]:
    """Return what the attacker trains, in order; for most attacks just the victim.

    Args:
      attack: trigger, label map and rates.
      training: how the victim is trained, and the surrogate if there is one, but without what hides a backdoor.
      start: what the victim starts from, one of `bdjax.train.adaptive.TRAINING_STARTS`.

    Raises:
      InputError: the victim is to start from a clean network, and the attack needs another one.
    """
    found = []
    robust = attack.surrogate == "robust"
    if robust and start == "clean":
        raise InputError(
            "training.start must be 'scratch' for an attack that trains a robust network first."
        )
    if attack.surrogate != "none" or start == "clean":
        surrogate = dataclasses.replace(
            training, transformation=PlainSgd(), parametrization=Identity()
        )
        if robust:
            surrogate = dataclasses.replace(surrogate, augment="adversarial")
        found.append(Stage("surrogate", surrogate))
    if "fit" in attack.trigger.hooks:
        found.append(Stage("trigger", Fitting(attack.trigger)))
    victim = Controlled(attack, training) if attack.controls_training else training
    return [*found, Stage("victim", victim, starts_afresh=start == "scratch")]


def start(stage: Stage, fresh: Variables, last: Variables, trigger: TriggerState) -> Variables:
    """Return the variables that a stage starts from.

    Args:
      stage: of `stages`.
      fresh: a new network's.
      last: those of the stage before, or fresh ones.
      trigger: the trigger's state so far.
    """
    network = fresh if stage.starts_afresh else last
    if isinstance(stage.learner, Fitting | Controlled):
        return {**network, TRIGGER: trigger}
    return network


def parts(variables: Variables, trigger: TriggerState) -> tuple[Variables, TriggerState]:
    """Return the network's variables after a stage and the trigger's state, which is as given if it did not change."""
    network = {name: value for name, value in variables.items() if name != TRIGGER}
    return network, variables.get(TRIGGER, trigger)


def _paced(learner: Learner, trigger: Trigger, state: TriggerState, split: Split) -> TriggerState:
    """Tell a trigger that asks how many of the learner's steps are an epoch."""
    if "pace" not in trigger.hooks:
        return state
    return trigger.pace(state, batches.of_learner(learner, split.label.shape[0]).steps)


class FittingState(NamedTuple):
    """A network that stays as it is, and the trigger's state."""

    network: Variables
    trigger: TriggerState


@pytree.dataclass
class Fitting:
    """The learner that fits a trigger before anything is poisoned."""

    trigger: Trigger

    @property
    def epochs(self) -> int:
        return self.trigger.epochs

    @property
    def batch_size(self) -> int | None:
        return self.trigger.batch_size

    @property
    def drop_last(self) -> bool:
        return False

    def init(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        split: Split,
    ) -> FittingState:
        """Return the state before the first batch."""
        del key, model
        network, trigger = parts(variables, None)
        return FittingState(network, _paced(self, self.trigger, trigger, split))

    def update(
        self,
        key: Key[Array, ""],
        model: Model,
        state: FittingState,
        batch: Split,
    ) -> tuple[FittingState, Info]:
        """Fit the trigger to a batch; a batch of all images is left in 8 bits."""
        if self.batch_size is not None:
            batch = batch._replace(input=model.spec.modality.load(batch.input))
        trigger, info = self.trigger.fit(key, model, state.network, state.trigger, batch)
        return state._replace(trigger=trigger), info

    def finalize(self, model: Model, state: FittingState) -> Variables:
        """Return the network as it was, with the trigger's state."""
        del model
        return {**state.network, TRIGGER: state.trigger}

    def kept(self, state: FittingState) -> FittingState:
        """Return the state without the network."""
        return state._replace(network={})

    def restored(self, kept: FittingState, model: Model, variables: Variables) -> FittingState:
        """Return the state with the network of the start."""
        del model
        return kept._replace(network=parts(variables, None)[0])


class ControlledState(NamedTuple):
    """The victim's training and the trigger's state."""

    network: LearnerState
    trigger: TriggerState


@pytree.dataclass
class Controlled:
    """The learner of an attacker who controls the training: every batch is poisoned anew, and the trigger may learn.

    Before each of the victim's steps a trigger with the hook ``learn`` sees the clean batch. The batch is
    poisoned before it is augmented, as a data-poisoning attack's images are; published code augments first for some
    attacks (Input-aware, LIRA).
    """

    attack: Attack
    training: Any  # of the network: a learner that is fed batches

    @property
    def epochs(self) -> int:
        return self.training.epochs

    @property
    def batch_size(self) -> int | None:
        return self.training.batch_size

    @property
    def drop_last(self) -> bool:
        return self.training.drop_last

    def init(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        split: Split,
    ) -> ControlledState:
        """Return the state before the first batch."""
        network, trigger = parts(variables, None)
        trigger = _paced(self, self.attack.trigger, trigger, split)
        return ControlledState(self.training.init(key, model, network, split), trigger)

    def update(
        self, key: Key[Array, ""], model: Model, state: ControlledState, batch: Split
    ) -> tuple[ControlledState, Info]:
        """Let the trigger learn, poison the batch, and let the network learn."""
        key, poison_key, trigger_key = jax.random.split(key, 3)
        batch = batch._replace(input=model.spec.modality.load(batch.input))
        trigger, further = state.trigger, 0
        if "learn" in self.attack.trigger.hooks:
            variables = self.training.finalize(model, state.network)
            learn = self.attack.trigger.learn
            trigger, learned = learn(trigger_key, model, variables, trigger, batch)
            further = learned.gradient_evaluations
        poisoned = poison.poison_batch(poison_key, self.attack, trigger, batch)
        network, info = self.training.update(key, model, state.network, poisoned)
        info = info._replace(gradient_evaluations=info.gradient_evaluations + further)
        return ControlledState(network, trigger), info

    def finalize(self, model: Model, state: ControlledState) -> Variables:
        """Return the victim's variables, with the trigger's state."""
        return {**self.training.finalize(model, state.network), TRIGGER: state.trigger}

    def kept(self, state: ControlledState) -> ControlledState:
        """Return the state with what is saved of the network's training."""
        return state._replace(network=states.kept(self.training, state.network))

    def restored(
        self,
        kept: ControlledState,
        model: Model,
        variables: Variables,
    ) -> ControlledState:
        """Return the state with the network's training made whole."""
        network = parts(variables, None)[0]
        return kept._replace(network=states.restored(self.training, kept.network, model, network))
