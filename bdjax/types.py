"""The central types: what flows is a ``NamedTuple`` of arrays, what is configured is a frozen dataclass."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Num

from bdjax import pytree
from bdjax.tasks.metrics import Metric

HParam: TypeAlias = Any  # a float; an array with a leading axis in a sweep; any leaf under tree.map
Variables: TypeAlias = dict[str, Any]  # {"params": …, "batch_stats": …}, as Flax keeps them
BatchStats: TypeAlias = Any
TriggerState: TypeAlias = Any
ClassLabel: TypeAlias = int | str  # a class, by its number or by its name
LearnerState: TypeAlias = Any
Params: TypeAlias = Any


@runtime_checkable
class Modality(Protocol):
    """What an input is: how it is stored and worked on. A frozen dataclass; hashable.

    Only what is stored has another type than what is worked on: ``load`` of a stored input is worked on, and ``store``
    of that is stored again.
    """

    @property
    def unit(self) -> str:
        """What messages call an input: image, clip, …"""
        ...

    def load(self, stored: Num[Array, "..."], /) -> Num[Array, "..."]: ...

    def store(
        self, input: Num[Array, "..."], stored: Num[Array, "..."], /, rounding: str = "nearest"
    ) -> Num[Array, "..."]: ...

    def picture(self, stored: Num[Array, "n ..."], /) -> Num[Array, "n h w c"]:
        """Return an image of each input, to be looked at and compared with others."""
        ...

    def normalize(self, input: Num[Array, "n ..."], /) -> Num[Array, "n ..."]:
        """Return what a network computes with."""
        ...

    def moved(self, key: Key[Array, ""], input: Num[Array, "n ..."], /, augmentation: str) -> Num[Array, "n ..."]:
        """Return what an augmentation starts with: what moves parts of an input and computes none."""
        ...

    def mixed(self, key: Key[Array, ""], input: Num[Array, "n ..."], /, augmentation: str, alpha: HParam = 1.0) -> Any:
        """Return the augmented inputs, worked on, with their partners (`bdjax.data.mixing.Mixed`)."""
        ...


@runtime_checkable
class Task(Protocol):
    """What a label is, how an output is judged, and what is measured. A frozen dataclass; hashable.

    ``answer`` is what is kept of an output to be counted later. All methods are pure and work on whole batches.
    """

    metrics: ClassVar[tuple[Metric, ...]]

    @property
    def num_classes(self) -> int: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def strata(self) -> int:
        """Number of groups of ``stratum``."""
        ...

    def loss(self, output: Array, label: Array, label_smoothing: HParam = 0.0) -> Float[Array, " n"]: ...

    def negative_log_likelihood(self, output: Array, label: Array) -> Float[Array, " n"]: ...

    def answer(self, output: Array) -> Array: ...

    def correct(self, answer: Array, label: Array) -> Array:
        """Return how right each answer is, in [0, 1] or as bools."""
        ...

    def hit(self, answer: Array, wanted: Array, original: Array) -> Bool[Array, " n"]:
        """Return which answers are what the attacker wants, whose label was ``original``."""
        ...

    def stratum(self, label: Array) -> Int[Array, " n"]:
        """Return the group of each row of which a balanced set has equally many."""
        ...

    def count(self, clean_answer: Array, triggered_answer: Array, clean: Split, triggered: PoisonedSplit) -> Any:
        """Return a NamedTuple of what the metrics are made from, with a property or field for each of them."""
        ...


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is known of a data set before an input is seen; hashable, so it may be a static argument.

    Attributes:
      name: the data set's.
      shape: of one input; (height, width, channels) of an image.
      modality: what an input is.
      task: what a label is.
    """

    name: str
    shape: tuple[int, ...]
    modality: Modality
    task: Task

    @property
    def num_classes(self) -> int:
        """Number of classes, which is the number of outputs of a classifier."""
        return self.task.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:
        """Their names; none where they have none."""
        return self.task.class_names


class Split(NamedTuple):
    """What a learner or a defender may see.

    ``input`` is uint8 in [0, 255] at rest and float32 in [0, 1] once it is worked on; ``valid`` is False on rows that
    only pad the arrays (or that a metric leaves out); inside a training step it is None where every row counts.
    """

    input: Num[Array, "n ..."]
    label: Num[Array, "n ..."] | Bool[Array, "n ..."]
    valid: Bool[Array, " n"]


class PoisonedSplit(NamedTuple):
    """What only the referee knows: the visible split, the true labels, and which rows carry a trigger."""

    visible: Split
    original_label: Num[Array, "n ..."] | Bool[Array, "n ..."]
    is_poisoned: Bool[Array, " n"]


class Dataset(NamedTuple):
    """A loaded data set: uint8 splits and their specification."""

    train: Split
    test: Split
    spec: Spec


class Metrics(NamedTuple):
    """Counts on the clean and the triggered test images, so that sums over batches and devices are exact.

    The rates are properties; their denominators are ``clean_total`` and ``attack_total``.
    """

    clean_correct: Int[Array, "..."]
    clean_total: Int[Array, "..."]
    attack_hits: Int[Array, "..."]
    robust_correct: Int[Array, "..."]
    attack_total: Int[Array, "..."]

    @property
    def clean_accuracy(self) -> Any:
        """Share of the clean test images that get their true label (ACC)."""
        return self.clean_correct / self.clean_total

    @property
    def attack_success_rate(self) -> Any:
        """Share of the triggered test images that get the attacker's label (ASR)."""
        return self.attack_hits / self.attack_total

    @property
    def robust_accuracy(self) -> Any:
        """Share of the same triggered test images that get their true label (RA)."""
        return self.robust_correct / self.attack_total


class Info(NamedTuple):
    """What one step reports. ``loss`` and ``accuracy`` are means over the valid rows of the batch."""

    loss: Float[Array, "..."]
    accuracy: Float[Array, "..."]
    gradient_evaluations: Int[Array, "..."]  # forward and backward passes over the batch


@runtime_checkable
class Model(Protocol):
    """A network as two pure functions; the only view of Flax outside ``models/``. Hashable and compared by value."""

    @property
    def spec(self) -> Spec: ...

    def init(self, key: Key[Array, ""]) -> Variables: ...

    def apply(
        self,
        variables: Variables,
        input: Num[Array, "n ..."],
        /,
        *,
        train: bool = False,
        valid: Bool[Array, " n"] | None = None,
    ) -> tuple[Float[Array, "n k"], BatchStats]:
        """Return logits and the batch statistics after the pass (unchanged unless ``train``).

        Kernels among the parameters may be `bdjax.structure.FactoredKernel`.
        """
        ...

    def features(self, variables: Variables, input: Num[Array, "n ..."], /) -> Float[Array, "n d"]:
        """Return what the last layer, the classifier, takes in, in evaluation mode."""
        ...


@runtime_checkable
class ProbedModel(Model, Protocol):
    """A network whose layers can be looked at, as some analyses need."""

    def probe(
        self, variables: Variables, input: Num[Array, "n ..."], /, layer: tuple[str, ...], shift: Any = 0.0
    ) -> tuple[Float[Array, "n k"], Float[Array, "n *d"]]:
        """Return the logits, and what a layer puts out, ``shift`` added to it, in evaluation mode.

        ``layer`` is the path of its kernel. The gradient with respect to ``shift`` at 0 is that with respect to the
        output.
        """
        ...


@runtime_checkable
class Parametrization(Protocol):
    """What is tuned, as a function to the network's parameters: θ = apply(tuned, frozen).

    A `bdjax.pytree.dataclass` whose floats are leaves. Both parts are trees of arrays, so that they can be
    checkpointed and mapped over; ``apply`` of what ``init`` returns is the parameters at the start, to the bit.
    """

    def init(self, model: Model, variables: Variables) -> tuple[Any, Any]:
        """Return the values to tune and whatever stays as it is."""
        ...

    def apply(self, tuned: Any, frozen: Any) -> Params:
        """Return the network's parameters."""
        ...

    def factored(self, tuned: Any, frozen: Any) -> Params:
        """Return the same parameters in the form that is cheapest for gradients of single examples."""
        ...

    def constraint(self, frozen: Any) -> optax.GradientTransformation:
        """Return the transformation, last in the chain, that keeps the tuned values where they must be."""
        ...


@runtime_checkable
class LabelMap(Protocol):
    """The attacker's label for each true label. A frozen dataclass: equal values share one compilation."""

    def __call__(self, label: Int[Array, "*n"]) -> Int[Array, "*n"]: ...


@runtime_checkable
class Trigger(Protocol):
    """Puts the trigger on one image; the poisoner maps it over a split.

    A `bdjax.pytree.dataclass`: floats are leaves, everything structural is static. Learned triggers keep their weights
    in the state.
    """

    def init(self, key: Key[Array, ""], spec: Spec) -> TriggerState: ...

    def apply(
        self, key: Key[Array, ""], state: TriggerState, image: Float[Array, "h w c"]
    ) -> Float[Array, "h w c"]: ...


@runtime_checkable
class TriggerSource(Protocol):
    """Puts the trigger on a batch, for a defender who is assumed to have it: the true one, or one that he synthesized.

    A pytree whose leaves are its floats and arrays. Images keep their type: uint8 in [0, 255], or float in [0, 1].
    """

    def __call__(self, key: Key[Array, ""], image: Num[Array, "n h w c"]) -> Num[Array, "n h w c"]: ...


@runtime_checkable
class FittedTrigger(Trigger, Protocol):
    """A trigger that is fitted to the attacker's clean images before anything is poisoned.

    The loop feeds ``fit`` as it feeds a `Learner`: for ``epochs`` over the clean training split, ``batch_size`` images
    at a time (None: all of them at once, still uint8). If the attack has a surrogate, ``variables`` are those of a
    network trained on the same clean images, else of an untrained one.
    """

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int | None: ...

    def fit(
        self, key: Key[Array, ""], model: Model, variables: Variables, state: TriggerState, batch: Split
    ) -> tuple[TriggerState, Info]: ...


@runtime_checkable
class LearnedTrigger(Trigger, Protocol):
    """A trigger that learns along with the victim: ``update`` comes before each of the victim's steps.

    ``variables`` are the victim's before the step, and the batch holds clean float images with their true labels.
    """

    def update(
        self, key: Key[Array, ""], model: Model, variables: Variables, state: TriggerState, batch: Split
    ) -> tuple[TriggerState, Info]: ...


@runtime_checkable
class PacedTrigger(Trigger, Protocol):
    """A fitted or learned trigger with a schedule in epochs: before a stage feeds it, ``pace`` says how long one is."""

    def pace(self, state: TriggerState, steps_per_epoch: int) -> TriggerState: ...


@runtime_checkable
class CoveringTrigger(Trigger, Protocol):
    """A trigger with cover samples: images with something like the trigger that keep their labels.

    ``cover`` returns what each image of a batch would be as a cover sample; the other rows are at hand as partners.
    """

    def cover(self, key: Key[Array, ""], state: TriggerState, batch: Split) -> Float[Array, "n h w c"]: ...


@runtime_checkable
class PartitionedTrigger(Trigger, Protocol):
    """A trigger of several parts, of which each triggered row carries one.

    Which one is up to the row's ``position`` among the poisoned rows, or among those that count at test time, so that
    the parts have exact shares; ``apply`` alone draws a part.
    """

    def apply_part(
        self, key: Key[Array, ""], state: TriggerState, position: Int[Array, ""], image: Float[Array, "h w c"]
    ) -> Float[Array, "h w c"]: ...


@pytree.dataclass
class Attack:
    """Trigger × label map × rate: most published attacks are such a triple.

    ``poison_rate`` is the share of the *whole* training split, for clean-label attacks too. A clean-label attack
    draws its rows from the images whose label the map leaves alone and keeps their labels.

    Attributes:
      trigger, label_map, poison_rate, clean_label: as above.
      test_trigger: at test time, if it is another one.
      rate_of: of what ``poison_rate`` is the share: of ``all`` images, or of the ``candidates`` alone (SFT's and NFT's
        80 % of the target class).
      candidates: which rows a dirty-label attack draws from: ``all``, or those whose label the map changes
        (``changed``).
      controls_training: the attacker trains the victim and poisons each of its batches anew, with cover samples.
      cover_rate: share of the cover samples in each batch; needs a `CoveringTrigger`.
      modality: of the inputs that the trigger works on; None is images, whatever their size.
      surrogate: what the attacker trains first on the clean images, as the victim is trained: ``none``, a ``clean``
        network, or a ``robust`` one (on adversarial images).
    """

    trigger: Trigger
    label_map: LabelMap = pytree.static()
    poison_rate: HParam = 0.1
    clean_label: bool = pytree.static(default=False)
    test_trigger: Trigger | None = None
    rate_of: str = pytree.static(default="all")
    candidates: str = pytree.static(default="all")
    controls_training: bool = pytree.static(default=False)
    cover_rate: HParam = 0.0
    surrogate: str = pytree.static(default="none")
    modality: Modality | None = pytree.static(default=None)

    @property
    def trigger_at_test(self) -> Trigger:
        """The trigger that test images get."""
        return self.trigger if self.test_trigger is None else self.test_trigger


@runtime_checkable
class Learner(Protocol):
    """Anything that changes a network batch by batch: training from scratch and every defense.

    A frozen dataclass of hyper-parameters whose floats are leaves. ``epochs``, ``batch_size`` and ``drop_last`` say
    how the loop feeds it (`bdjax.train.batches.shape`); a batch size of None is the whole split at once, for what is
    done in one operation (pruning, say, or a search that ends when it is done). ``finalize`` returns the variables to
    evaluate.
    """

    @property
    def epochs(self) -> int: ...
    @property
    def batch_size(self) -> int | None: ...
    @property
    def drop_last(self) -> bool: ...

    def init(self, key: Key[Array, ""], model: Model, variables: Variables, split: Split) -> LearnerState: ...

    def update(
        self, key: Key[Array, ""], model: Model, state: LearnerState, batch: Split
    ) -> tuple[LearnerState, Info]: ...

    def finalize(self, model: Model, state: LearnerState) -> Variables: ...


@runtime_checkable
class PreparedLearner(Learner, Protocol):
    """A learner whose step begins with what needs the key and the batch alone, no state: its augmentation, say.

    ``update`` is ``learn`` of what ``prepare`` returns, with the same key, so that the loop may prepare the batches of
    many steps at once: where ``prepares`` says so, which it may only if no bit depends on it.
    """

    @property
    def prepares(self) -> bool: ...

    def prepare(self, key: Key[Array, ""], model: Model, batch: Split) -> Split: ...

    def learn(
        self, key: Key[Array, ""], model: Model, state: LearnerState, batch: Split
    ) -> tuple[LearnerState, Info]: ...


@runtime_checkable
class PartlySavedLearner(Learner, Protocol):
    """A learner whose state has parts that no step changes and that its first variables decide: frozen factors, say.

    A checkpoint holds what ``kept`` returns, and ``restored`` makes the rest again, to the bit, from the very variables
    that ``init`` was given.
    """

    def kept(self, state: LearnerState) -> LearnerState: ...

    def restored(self, kept: LearnerState, model: Model, variables: Variables) -> LearnerState: ...


Defense: TypeAlias = Learner  # a learner that starts from a suspect network and sees the clean holdout

Images: TypeAlias = Num[Array | np.ndarray, "n h w c"]  # on the device or still on the host
