"""The central types: what flows is a ``NamedTuple`` of arrays, what is configured is a frozen dataclass."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key, Num, Shaped

from bdjax import pytree
from bdjax.checks import InputError, did_you_mean, one_of, takes
from bdjax.tasks.metrics import Metric

HParam: TypeAlias = Any  # a float; an array with a leading axis in a sweep; any leaf under tree.map
Variables: TypeAlias = dict[str, Any]  # {"params": …, "batch_stats": …}, as Flax keeps them
BatchStats: TypeAlias = Any
TriggerState: TypeAlias = Any
ClassLabel: TypeAlias = int | str  # a class, by its number or by its name
LearnerState: TypeAlias = Any
Params: TypeAlias = Any
Image: TypeAlias = Float[Array, "h w c"]  # one, worked on


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

    def picture(
        self, stored: Num[Array | np.ndarray, "n ..."], /
    ) -> Num[Array | np.ndarray, "n h w c"]:
        """Return an image of each input, to be looked at and compared with others."""
        ...

    def normalize(self, input: Num[Array, "n ..."], /) -> Num[Array, "n ..."]:
        """Return what a network computes with."""
        ...

    def moved(
        self, key: Key[Array, ""], input: Num[Array, "n ..."], /, augmentation: str
    ) -> Num[Array, "n ..."]:
        """Return what an augmentation starts with: what moves parts of an input and computes none."""
        ...

    def mixed(
        self,
        key: Key[Array, ""],
        input: Num[Array, "n ..."],
        /,
        augmentation: str,
        alpha: HParam = 1.0,
    ) -> Any:
        """Return the augmented inputs, worked on, with their partners (`bdjax.data.mixing.Mixed`)."""
        ...

    def lift(self, trigger: Trigger, /) -> Trigger | None:
        """Return a trigger of one image as one of this modality's inputs; None if there is no way.

        The trigger has no hooks. ``init`` of what is returned gets the specification of this modality's data.
        """
        ...


@runtime_checkable
class Task(Protocol):
    """What a label is, how an output is judged, and what is measured. A frozen dataclass; hashable.

    ``answer`` is what is kept of an output to be counted later. All methods are pure and work on whole batches.
    """

    metrics: ClassVar[tuple[Metric, ...]]
    labels: ClassVar[str]  # what each input has: a "class" or a "set" of classes

    @property
    def num_classes(self) -> int: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def strata(self) -> int:
        """Number of groups of ``stratum``."""
        ...

    def loss(
        self, output: Array, label: Array, label_smoothing: HParam = 0.0
    ) -> Float[Array, " n"]: ...

    def negative_log_likelihood(self, output: Array, label: Array) -> Float[Array, " n"]: ...

    def answer(self, output: Array) -> Array: ...

    def correct(self, answer: Array, label: Array) -> Array:
        """Return how right each answer is, in [0, 1] or as bools."""
        ...

    def hit(self, answer: Array, wanted: Array, original: Array) -> Bool[Array, " n"]:
        """Return which answers are what the attacker wants, whose label was ``original``."""
        ...

    def shown(self, answer: np.ndarray) -> np.ndarray:
        """Return what is said of each answer or label: the number of a class, or a text."""
        ...

    def stratum(self, label: Array) -> Int[Array, " n"]:
        """Return the group of each row of which a balanced set has equally many."""
        ...

    def chance(self, label: np.ndarray) -> dict[str, float]:
        """Return what a guess gives of the metrics on inputs with these labels, where a record's classes do not say."""
        ...

    def count(
        self, clean_answer: Array, triggered_answer: Array, clean: Split, triggered: PoisonedSplit
    ) -> Any:
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
    """A loaded data set: uint8 splits and their specification.

    ``train_group`` numbers what training rows are near duplicates of each other, such as the photographs of one sign;
    None where nobody knows of any. Rows of one class each.
    """

    train: Split
    test: Split
    spec: Spec
    train_group: Int[np.ndarray, " n"] | None = None


class Metrics(NamedTuple):
    """Counts on the clean and the triggered test images, so that sums over batches and devices are exact.

    The rates are properties; their denominators are ``clean_total`` and ``attack_total``.
    """

    clean_correct: Int[Array, "..."] | int
    clean_total: Int[Array, "..."] | int
    attack_hits: Int[Array, "..."] | int
    robust_correct: Int[Array, "..."] | int
    attack_total: Int[Array, "..."] | int

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
        key: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "n k"], BatchStats]:
        """Return logits and the batch statistics after the pass (unchanged unless ``train``).

        What a network draws in training, as dropout does, it draws from ``key``; without one it leaves that out.
        A network that draws nothing need not take the argument.
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
        self,
        variables: Variables,
        input: Num[Array, "n ..."],
        /,
        layer: tuple[str, ...],
        shift: Any = 0.0,
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
    """The attacker's label for each true label. A frozen dataclass: equal values share one compilation.

    It may say in ``labels`` for which it is made, as `Task.labels` does.
    """

    def __call__(self, label: Shaped[Array, "*n"], /) -> Shaped[Array, "*n"]: ...


class Trigger:
    """Puts the trigger on one input; the poisoner maps it over a split.

    A subclass is a `bdjax.pytree.dataclass`: floats are leaves, everything structural is static. ``init`` and ``apply``
    are all that most need; a trigger that is learned keeps its weights in the state. The other methods are hooks. They
    are called of a trigger that names them in ``hooks``, and `Attack` refuses what does not fit together, so that no
    method is silently never called.

    Attributes:
      hooks: names of the optional methods that it has.
      works_on: what it is put on, as `Modality.unit` calls it.
      epochs, batch_size: how the loop feeds ``fit``, as it feeds a `Learner`; a batch size of None is all inputs at
        once, still as they are stored.
    """

    hooks: tuple[str, ...] = ()
    works_on: str = "image"
    epochs: int
    batch_size: int | None

    def init(self, key: Key[Array, ""], spec: Spec) -> TriggerState:
        """Return the state before anything is learned: nothing, for a trigger that is a rule."""
        del key, spec
        return ()

    def apply(self, key: Key[Array, ""], state: TriggerState, input: Array, /) -> Array:
        """Return one input, worked on, with the trigger."""
        raise NotImplementedError

    def apply_part(
        self, key: Key[Array, ""], state: TriggerState, position: Int[Array, ""], input: Array, /
    ) -> Array:
        """Return the input with one of several parts, which is up to its position; ``apply`` alone draws a part.

        The position is the row's among the poisoned ones, or among those that count at test time, so that the parts
        have exact shares.
        """
        raise NotImplementedError

    def fit(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        state: TriggerState,
        batch: Split,
        /,
    ) -> tuple[TriggerState, Info]:
        """Return the state after a batch of the attacker's clean inputs, before anything is poisoned.

        If the attack has a surrogate, ``variables`` are those of a network trained on the same inputs, else of an
        untrained one.
        """
        raise NotImplementedError

    def learn(
        self,
        key: Key[Array, ""],
        model: Model,
        variables: Variables,
        state: TriggerState,
        batch: Split,
        /,
    ) -> tuple[TriggerState, Info]:
        """Return the state after a clean batch, before each step of a victim whose training the attacker controls.

        ``variables`` are the victim's before the step; the inputs are worked on and have their true labels.
        """
        raise NotImplementedError

    def pace(self, state: TriggerState, steps_per_epoch: int, /) -> TriggerState:
        """Return the state of a trigger that ``fit`` or ``learn`` moves by a schedule in epochs, before either."""
        raise NotImplementedError

    def cover(self, key: Key[Array, ""], state: TriggerState, batch: Split, /) -> Array:
        """Return what each input of a batch would be as a cover sample: with something like the trigger.

        Cover samples keep their labels. The attacker controls the training; the other rows are at hand as partners.
        """
        raise NotImplementedError


HOOKS = ("apply_part", "fit", "learn", "pace", "cover")


@runtime_checkable
class TriggerSource(Protocol):
    """Puts the trigger on a batch, for a defender who is assumed to have it: the true one, or one that he synthesized.

    A pytree whose leaves are its floats and arrays. Inputs keep their type.
    """

    def __call__(
        self, key: Key[Array, ""], input: Num[Array, "n ..."], /
    ) -> Num[Array, "n ..."]: ...


class SplitAndTrigger(NamedTuple):
    """What a defender sees who is assumed to have the trigger: his clean split, or a batch of it, and the trigger."""

    split: Split
    trigger: TriggerSource


@pytree.dataclass
class Attack:
    """Trigger × label map × rate: most published attacks are such a triple.

    ``poison_rate`` is the share of the *whole* training split, for clean-label attacks too. A clean-label attack
    draws its rows from the inputs whose label the map leaves alone and keeps their labels.

    Attributes:
      trigger, label_map, poison_rate, clean_label: as above.
      test_trigger: at test time, if it is another one; it has the state of the first.
      rate_of: of what ``poison_rate`` is the share: of ``all`` inputs, or of the ``candidates`` alone (SFT's and NFT's
        80 % of the target class).
      candidates: which rows a dirty-label attack draws from: ``all``, or those whose label the map changes
        (``changed``).
      controls_training: the attacker trains the victim and poisons each of its batches anew, with cover samples.
      cover_rate: share of the cover samples in each batch; needs the hook ``cover``.
      surrogate: what the attacker trains first on the clean inputs, as the victim is trained: ``none``, a ``clean``
        network, or a ``robust`` one (on adversarial inputs).
      modality: of the inputs; None is images, whatever their size.

    Raises:
      InputError: a trigger whose hooks are not what it declares, or would never be called.
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

    def __post_init__(self) -> None:
        _check_hooks(self.trigger, "trigger")
        if self.test_trigger is not None:
            _check_hooks(self.test_trigger, "test_trigger")
        _check_calls(self)

    @property
    def trigger_at_test(self) -> Trigger:
        """The trigger that test inputs get."""
        return self.trigger if self.test_trigger is None else self.test_trigger

    @property
    def by_formula(self) -> bool:
        """Whether the trigger's state is known before anything is trained."""
        return not {"fit", "learn"} & set(self.trigger.hooks)


def _check_hooks(trigger: Trigger, option: str) -> None:
    """Refuse a trigger that has not what it declares, declares not what it has, or has it in another form."""
    if not isinstance(trigger, Trigger):
        raise InputError(f"{option} must be a bdjax.types.Trigger, got {trigger!r}.")
    kind, name = type(trigger), type(trigger).__name__
    for hook in trigger.hooks:
        one_of(HOOKS, **{f"{name}.hooks": hook})
    for hook in HOOKS:
        declared = hook in trigger.hooks
        defined = getattr(kind, hook) is not getattr(Trigger, hook)
        if declared and not defined:
            near = did_you_mean(hook, vars(kind))
            raise InputError(f"{name} must have the method {hook}, which its hooks declare{near}.")
        if defined and not declared:
            raise InputError(
                f"{name}.hooks must hold {hook!r} for that method to be called; got {trigger.hooks!r}."
            )
    for method in ("init", "apply", *trigger.hooks):
        takes(
            inspect.signature(getattr(Trigger, method)),
            **{f"{name}.{method}": getattr(kind, method)},
        )
    for needed in ("epochs", "batch_size"):
        if "fit" in trigger.hooks and not hasattr(trigger, needed):
            raise InputError(f"{name} must have {needed}, by which the loop feeds its hook 'fit'.")


def _check_calls(attack: Attack) -> None:
    """Refuse hooks that nothing would call, and calls without a hook."""
    hooks, name = attack.trigger.hooks, type(attack.trigger).__name__
    for hook in ("learn", "cover"):
        if hook in hooks and not attack.controls_training:
            raise InputError(
                f"controls_training must be True for the hook {hook!r} of {name} to be called."
            )
    if "pace" in hooks and attack.by_formula:
        raise InputError(
            f"{name}.hooks must hold 'fit' or 'learn' for 'pace' to be called; got {hooks!r}."
        )
    # A rate that is no plain number is swept or traced, and was checked before.
    if "cover" not in hooks and isinstance(attack.cover_rate, int | float) and attack.cover_rate:
        raise InputError(
            f"cover_rate must be 0, as {name} has no hook 'cover'; got {attack.cover_rate!r}."
        )
    for hook in attack.trigger_at_test.hooks:
        if hook not in ("apply_part", *hooks):
            raise InputError(
                f"test_trigger must learn along with the trigger, which has no hook {hook!r}."
            )


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

    def init(
        self, key: Key[Array, ""], model: Model, variables: Variables, split: Split
    ) -> LearnerState: ...

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


Images: TypeAlias = Num[Array | np.ndarray, "n h w c"]  # on the device or still on the host

# What Python's types cannot say: anything that `jax.tree` maps over, with arrays for leaves.
Tree: TypeAlias = Any
Tuned: TypeAlias = Tree  # what a `Parametrization` lets a learner change
Frozen: TypeAlias = Tree  # what it needs beside that
Examples: TypeAlias = Tree  # whose leaves share a leading axis, one row an example
Leaf: TypeAlias = Any  # of a tree: an array, a tracer, or what stands for one
