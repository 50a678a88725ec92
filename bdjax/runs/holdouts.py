"""Where the defender's clean images come from, and what is wrong with them: an axis of the holdout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from bdjax.checks import InputError, in_section
from bdjax.data import splits, validation
from bdjax.runs import inputs
from bdjax.runs.config import Config
from bdjax.types import Dataset, Spec, Split, Task


def pool(config: Config, dataset: Dataset, known: str | None = None) -> Split:
    """Return the clean images that the holdout is drawn from: the run's training split, or another set's.

    Args:
      config, dataset: of the run.
      known: the digest that the other set has to have; None takes it as it is now.

    Raises:
      InputError: as for `bdjax.runs.inputs.another`.
    """
    if config.holdout.another is None:
        return dataset.train
    return inputs.another(config, dataset.spec, known).images


def rows(key: Key[Array, ""], config: Config, dataset: Dataset) -> np.ndarray:
    """Draw the holdout; return its rows in the pool.

    Raises:
      InputError: as for `bdjax.data.splits.holdout`, or an option that the data set has no use for.
    """
    wanted, spec = config.holdout, dataset.spec
    task = spec.task
    if wanted.per_class is not None and task.labels != "class":
        what = f"null for {spec.name}, whose labels are no single classes; give share"
        raise InputError(f"holdout.per_class must be {what}; got {wanted.per_class}.")
    clean, group = pool(config, dataset), _group(config, dataset)
    with in_section("holdout", ("share", "per_class")):
        return splits.holdout(
            key,
            splits.by_stratum(clean, task),
            share=wanted.share,
            per_class=wanted.per_class,
            balanced=wanted.balanced,
            num_classes=task.strata,
            class_names=spec.class_names,
            group=group,
        )


def withheld(config: Config, dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Return the rows that the attacker does not have: a held-out holdout, and near duplicates drawn with it."""
    group = _group(config, dataset)
    return rows if group is None else splits.whole_groups(rows, group)


def _group(config: Config, dataset: Dataset) -> np.ndarray | None:
    """Return the groups that are drawn whole, None where rows are drawn."""
    asked, group = config.holdout.by_group, dataset.train_group
    if asked and group is None:
        what = f"left out for {dataset.spec.name}, which knows of no groups"
        raise InputError(f"holdout.by_group must be {what}; got true.")
    whole = config.holdout.held_out if asked is None else asked
    return group if whole else None


def taken(
    key: Key[Array, ""],
    config: Config,
    dataset: Dataset,
    rows: np.ndarray,
    known: str | None = None,
) -> Split:
    """Return the holdout as the defender has it, with its wrong labels.

    Args:
      key: decides which labels are wrong, and how.
      config, dataset: of the run.
      rows: of the pool.
      known: as for `pool`.

    Raises:
      InputError: as for `pool`.
    """
    whole = splits.take(pool(config, dataset, known), rows)
    return mislabeled(key, whole, config.holdout.wrong_labels, dataset.spec)


def mislabeled(key: Key[Array, ""], split: Split, share: float, spec: Spec) -> Split:
    """Return a split of which ⌊share · n⌋ rows have another label than theirs, each of the others alike.

    Raises:
      InputError: labels that are no single classes.
    """
    if not share:
        return split
    if spec.task.labels != "class":
        what = f"0 for {spec.name}, whose labels are no single classes"
        raise InputError(f"holdout.wrong_labels must be {what}; got {share}.")
    label = np.array(split.label)
    which, how = jax.random.split(key)
    chosen = np.asarray(jax.random.permutation(which, len(label)))[: wrong_count(len(label), share)]
    shift = np.asarray(jax.random.randint(how, (len(label),), 1, spec.num_classes))
    label[chosen] = (label[chosen] + shift[chosen]) % spec.num_classes
    return split._replace(label=label)  # type: ignore[arg-type]


def wrong_count(rows: int, share: float) -> int:
    """Return how many of so many labels are wrong."""
    return int(share * rows + 1e-9)


def divided(
    config: Config, dataset: Dataset, holdout: Split, rows: np.ndarray
) -> tuple[Split, Split | None]:
    """Return what the defense is given, and the part of it by which its strength is to be chosen.

    Near duplicates are never on both sides where the data set knows of any (`bdjax.types.Dataset.train_group`).
    """
    if config.selection is None:
        return holdout, None
    share, task = config.selection.aside, dataset.spec.task
    if dataset.train_group is None or config.holdout.another is not None:
        return _by_order(holdout, task.stratum(holdout.label), share, task)
    group = dataset.train_group[rows]
    # A group is of one true class; by the labels, of which some are wrong, it would lie on both sides
    stratum = np.asarray(task.stratum(dataset.train.label[rows]))
    aside = validation.grouped_rows(stratum, group, share, task.strata)
    return splits.exclude(holdout, aside), splits.take(holdout, aside)


def _by_order(holdout: Split, stratum: Array, share: float, task: Task) -> tuple[Split, Split]:
    return jax.tree.map(
        np.asarray, validation.validation_split(holdout, jnp.asarray(stratum), share, task.strata)
    )
