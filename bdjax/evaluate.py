"""Evaluation: counts on the device, rates from counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped

from bdjax.checks import InputError, integer
from bdjax.data.augment import as_float
from bdjax.devices import compilation
from bdjax.tasks.metrics import ATTACK, SINGLE_LABEL, UTILITY, Metric, effectiveness, first
from bdjax.tasks.single_label import SingleLabel
from bdjax.types import Metrics, Model, PoisonedSplit, Split, Task, Variables

BATCH_SIZE = 500
# float32 images [n, h, w, c] in [0, 1] → logits [n, k]
Function: TypeAlias = Callable[[np.ndarray], Any]


def evaluate(
    model: Model,
    variables: Variables,
    clean: Split,
    triggered: PoisonedSplit,
    *,
    batch_size: int = BATCH_SIZE,
) -> Metrics:
    """Count right answers on clean test images, and hits and right answers on triggered ones, in evaluation mode.

    ASR and RA share their rows: those that are ``valid`` in ``triggered.visible``. Padding never counts.

    Args:
      model: the network.
      variables: its parameters and statistics.
      clean: the test split.
      triggered: of `bdjax.poison.poison_test`.
      batch_size: images a step; changes speed and memory only.

    Raises:
      InputError: no image to count, or a batch size below one.
    """
    clean_answer = predict(model, variables, clean.input, batch_size=batch_size)
    triggered_answer = predict(model, variables, triggered.visible.input, batch_size=batch_size)
    return count(model.spec.task, clean_answer, triggered_answer, clean, triggered)


def evaluate_function(
    function: Function,
    clean: Split,
    triggered: PoisonedSplit,
    *,
    num_classes: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> Metrics:
    """Count as `evaluate` does what any function makes of the images: a model of your own, whatever computes it.

    The function gets NumPy batches of float32 images in [0, 1], NHWC, each a new array. All have the same shape (the
    last one repeats its last image), so that a jitted function is compiled once. It does what its model needs before
    (normalize, transpose) and returns logits, in evaluation mode: anything that `numpy.asarray` takes.

    Args:
      function: images [n, h, w, c] → logits [n, k].
      clean: the test split.
      triggered: of `bdjax.poison.poison_test`.
      num_classes: k; if not given, any k that has a logit for each label.
      batch_size: images a call.

    Raises:
      InputError: as `evaluate`; or the labels are no single classes, or what the function returns is no array of
        numbers, has another shape or number of classes, or is NaN for an image that counts. What the function itself
        raises passes through.

    >>> from bdjax import data
    >>> test = data.load("digits").test
    >>> triggered = PoisonedSplit(test, test.label, test.valid)  # no trigger at all
    >>> always_three = lambda image: np.eye(10)[[3] * len(image)]
    >>> metrics = evaluate_function(always_three, test, triggered)
    >>> int(metrics.clean_correct) == int((test.label == 3).sum())
    True
    """
    integer(1, batch_size=batch_size)
    if np.ndim(clean.label) != 1:
        got = f"labels of the shape {np.shape(clean.label)}"
        raise InputError(f"clean must have one class for each image to be counted so; got {got}.")
    size = max(1, min(batch_size, max(clean.label.shape[0], triggered.visible.label.shape[0])))
    if num_classes is None:
        labels = (clean.label, triggered.visible.label, triggered.original_label)
        enough = max((int(label.max()) + 1 for label in labels if label.shape[0]), default=1)
        classes = range(enough, np.iinfo(np.int32).max)
    else:
        classes = range(num_classes, num_classes + 1)
    ask = _Ask(function, size, classes)
    task = SingleLabel(classes.start)
    return count(task, ask(clean, "clean"), ask(triggered.visible, "triggered"), clean, triggered)


def count(
    task: Task,
    clean_answer: Shaped[Array, "n ..."],
    triggered_answer: Shaped[Array, "m ..."],
    clean: Split,
    triggered: PoisonedSplit,
) -> Any:
    """Count from a network's answers (`bdjax.types.Task.answer`), whatever gave them; errors as for `evaluate`.

    Args:
      task: says how an answer is judged.
      clean_answer, triggered_answer: of `predict`.
      clean, triggered: as for `evaluate`.
    """
    clean, visible = jax.tree.map(jnp.asarray, (clean, triggered.visible))
    if not bool(clean.valid.any()) or not bool(visible.valid.any()):
        raise InputError(
            "there is no test image to count: the test split is empty, or the label map changes no label."
        )
    return task.count(clean_answer, triggered_answer, clean, triggered._replace(visible=visible))


def predict(
    model: Model,
    variables: Variables,
    input: Shaped[Array | np.ndarray, "n ..."],
    *,
    batch_size: int = BATCH_SIZE,
) -> Shaped[Array, "n ..."]:
    """Return the network's answer to each input, in evaluation mode: the class with the largest logit, say."""
    integer(1, batch_size=batch_size)
    return _predict(model, variables, jnp.asarray(input), max(1, min(batch_size, input.shape[0])))


def defense_effectiveness_rating(
    before: Any, after: Any, metrics: Sequence[Metric] = SINGLE_LABEL
) -> Any:
    """Return DER = (max(0, ΔASR) − max(0, ΔACC) + 1) / 2, Δ = before − after, as `bdjax.tasks.metrics.effectiveness`.

    In [0, 1]; 0.5 where nothing changed. A gain in accuracy is never rewarded (FT-SAM, sec. 5.1; Zhu et al., 2023).

    Args:
      before: what the task counted of the victim.
      after: likewise, of the defended network.
      metrics: of the task; its first metrics of the roles ``attack`` and ``utility`` stand for ASR and ACC.
    """
    attack, utility = (first(metrics, role).name for role in (ATTACK, UTILITY))
    attack_drop = getattr(before, attack) - getattr(after, attack)
    utility_drop = getattr(before, utility) - getattr(after, utility)
    return effectiveness(attack_drop, utility_drop, jnp.maximum)


def predictions(
    model: Model, variables: Variables, input: Array, batch_size: int
) -> Shaped[Array, "n ..."]:
    """Return what `predict` returns, as a pure function to be compiled with more around it."""
    rows = input.shape[0]
    steps = -(-rows // batch_size)
    padded = jnp.pad(input, ((0, steps * batch_size - rows), *((0, 0),) * (input.ndim - 1)))

    def step(batch: Array) -> Array:
        output, _ = model.apply(variables, model.spec.modality.load(batch), train=False)
        return model.spec.task.answer(output)

    answer = jax.lax.map(step, padded.reshape(steps, batch_size, *input.shape[1:]))
    return answer.reshape(-1, *answer.shape[2:])[:rows]


class _Ask:
    """Asks a function for the classes of images, a batch at a time, and checks its answers."""

    def __init__(self, function: Function, size: int, classes: range):
        self._function, self._size, self._classes = function, size, classes

    def __call__(self, split: Split, kind: str) -> Int[Array, " n"]:
        valid = np.asarray(split.valid)
        found = [np.zeros(0, np.int32)]
        for start in range(0, len(valid), self._size):
            image = as_float(jnp.asarray(split.input[start : start + self._size]))
            rows = len(image)
            batch = np.empty((self._size, *image.shape[1:]), np.float32)  # to be written to
            batch[:rows], batch[rows:] = image, image[-1]
            logits = self._checked(self._function(batch))[:rows]
            undefined = np.isnan(logits).any(-1) & valid[start : start + rows]
            if undefined.any():
                first = start + int(undefined.argmax())
                raise InputError(
                    f"function must return numbers, got NaN for {kind} test image {first}."
                )
            found.append(logits.argmax(-1).astype(np.int32))
        return jnp.asarray(np.concatenate(found))

    def _checked(self, returned: Any) -> np.ndarray:
        try:
            logits = np.asarray(returned)
        except Exception as error:  # whatever a foreign array raises
            reason = " ".join(str(error).split())
            raise InputError(
                f"function must return an array, got {type(returned).__name__} ({reason})."
            ) from error
        if not (
            jnp.issubdtype(logits.dtype, jnp.floating) or jnp.issubdtype(logits.dtype, jnp.integer)
        ):
            what = f"{type(returned).__name__} of {logits.dtype}"
            raise InputError(f"function must return an array of real numbers, got {what}.")
        if logits.ndim != 2 or logits.shape[0] != self._size:
            wanted = f"({self._size}, classes) for {self._size} images"
            raise InputError(
                f"function must return logits of the shape {wanted}, got {logits.shape}."
            )
        if logits.shape[1] not in self._classes:
            wanted = f"{self._classes.start}{'' if len(self._classes) == 1 else ' or more'}"
            raise InputError(
                f"function must return logits of {wanted} classes, got {logits.shape[1]}."
            )
        return logits


_predict = compilation.jit(predictions, static_argnames=("model", "batch_size"))
