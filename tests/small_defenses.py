"""Every defense, with options for which it is quick."""

from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from bdjax import defenses, pytree, registry
from bdjax.defenses import DefenseStage
from bdjax.defenses.chain import chain


@pytree.dataclass
class Corner:
    """A trigger for a defense that needs one: two by two pixels of one gray."""

    gray: Any = 0.5

    def __call__(self, key, image):
        gray = jnp.where(image.dtype == jnp.uint8, 255 * self.gray, self.gray)
        return image.at[:, -2:, -2:].set(gray.astype(image.dtype))


SMALL = {"epochs": 3, "batch_size": 32, "augment": "none"}  # the last batch is not full
# What shows in three epochs: one neuron pruned, as no mask falls to a threshold; an outlier, of which a layer of four
# channels has none of more deviations than 1.5; and unlearning so far that the order of the images matters
SMALL |= {"share": 0.1, "u": 1.2, "unlearning_rate": 0.3}
SMALL["otherwise"] = "smallest"  # where a defense finds nothing, that it takes steps all the same
STAGES = [name for name in defenses.names() if name != "chain"]


def options_of(name: str) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(registry.factory("bdjax.defenses", name)).parameters)


def create(name: str, **options: Any):
    """A defense that is quick; a chain is of fine-tuning and FT-SAM, as they are compiled anyway."""
    if name == "chain":
        return chain(create("ft", **options), create("ft_sam", **options), keep_pruned=False)
    known = options_of(name)
    small = {**SMALL, **{option: 2 for option in known if option.endswith("_epochs")}, **options}
    return defenses.create(
        name, **{option: value for option, value in small.items() if option in known}
    )


def given(split) -> dict[str, Any]:
    """What there is for any defense to see, as `defenses.run` takes it; the holdout is the training set too."""
    return {"holdout": split, "trigger": Corner(), "training": split}


def fed(stage: DefenseStage, split):
    """A stage's learner as the loop feeds it, and with what."""
    return defenses.handed(stage, defenses.Given(**given(split)))


def signature(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)
