"""The options that everything which is trained by SGD shares, and functions that take them beside their own."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from bdjax.checks import EPOCHS, integer, one_of, unit_interval
from bdjax.data.augment import AUGMENTATIONS
from bdjax.optim.sgd import Schedule, Sgd

P = ParamSpec("P")
R = TypeVar("R")

# What each option is; a function that has more to say of one says it in its own docstring instead.
OPTIONS = {
    "epochs": "passes over the data.",
    "batch_size": "most images a step; all of them where there are fewer.",
    "learning_rate": "SGD's base rate.",
    "momentum": "in [0, 1).",
    "weight_decay": "coupled, on everything that is tuned.",
    "label_smoothing": "share of the probability that goes to the other classes.",
    "schedule": "how the rate moves.",
    "augment": "``standard`` (the data set's own), ``none``, ``mixup``, ``cutmix``, ``randaugment``, ``augmix``,\n"
    "    ``cutout`` or ``adversarial``.",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How data are fed and steps are taken. The attributes are those of `OPTIONS`; the defaults are FT-SAM's."""

    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    schedule: Schedule = Schedule()
    augment: str = "standard"

    @property
    def sgd(self) -> Sgd:
        """The optimizer."""
        return Sgd(self.learning_rate, self.momentum, self.weight_decay, self.schedule)

    def check(self) -> None:
        """Raise InputError for a value out of range."""
        integer(maximum=EPOCHS, epochs=self.epochs)
        integer(1, batch_size=self.batch_size)
        unit_interval(label_smoothing=self.label_smoothing)
        one_of(AUGMENTATIONS, augment=self.augment)
        self.sgd.check()


# The papers' training of victims.
VICTIM_RECIPE = Recipe(batch_size=128, weight_decay=5e-4, schedule=Schedule(kind="cosine"))


def with_recipe(
    default: Recipe, *, without: Sequence[str] = ()
) -> Callable[[Callable[Concatenate[Recipe, P], R]], Callable[..., R]]:
    """Let a function take the options of a recipe in place of the recipe, its first argument.

    The function that this makes has the options in its signature, with these defaults, after its own
    positional arguments and before those by keyword alone; and in its docstring, after its own.

    Args:
      default: the defaults.
      without: options that it does not take; they are as the default has them.

    Raises:
      InputError: when the function is called, for an option's value that is out of range.

    Example:

      >>> import inspect
      >>> @with_recipe(Recipe(epochs=3), without=tuple(OPTIONS)[2:])
      ... def fit(recipe, rho=2.0):
      ...     return rho, recipe.epochs, recipe.momentum
      >>> str(inspect.signature(fit))
      "(rho=2.0, epochs: 'int' = 3, batch_size: 'int' = 256)"
      >>> fit(1.0, epochs=5)
      (1.0, 5, 0.9)
    """
    shared = [name for name in OPTIONS if name not in without]

    def decorate(function: Callable[Concatenate[Recipe, P], R]) -> Callable[..., R]:
        signature = _signature(function, default, shared)

        @functools.wraps(function)
        def made(*args: Any, **options: Any) -> R:
            given = signature.bind(*args, **options)
            given.apply_defaults()
            chosen = {name: given.arguments.pop(name) for name in shared}
            recipe = dataclasses.replace(default, **chosen)
            recipe.check()
            return function(recipe, *given.args, **given.kwargs)

        made.__signature__ = signature  # type: ignore[attr-defined]
        made.__annotations__ = _hints(function, shared)
        made.__doc__ = _documented(inspect.getdoc(function) or "", shared)
        return made

    return decorate


def _signature(
    function: Callable[..., Any], default: Recipe, shared: Sequence[str]
) -> inspect.Signature:
    """Return a function's signature with the options in place of the recipe."""
    whole = inspect.signature(function)
    _, *own = whole.parameters.values()
    fields = {field.name: field for field in dataclasses.fields(default)}
    options = []
    for name in shared:
        kind, value = inspect.Parameter.POSITIONAL_OR_KEYWORD, getattr(default, name)
        options.append(inspect.Parameter(name, kind, default=value, annotation=fields[name].type))
    by_keyword = [
        parameter for parameter in own if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    positional = [parameter for parameter in own if parameter not in by_keyword]
    return whole.replace(parameters=[*positional, *options, *by_keyword])


def _hints(function: Callable[..., Any], shared: Sequence[str]) -> dict[str, Any]:
    """Return the types of the arguments, no longer as text: the options' are of another module than the others."""
    of_recipe = typing.get_type_hints(Recipe)
    options = {name: of_recipe[name] for name in shared}
    first, *_ = inspect.signature(function).parameters
    own = {name: hint for name, hint in typing.get_type_hints(function).items() if name != first}
    return {**own, **options}


def _documented(doc: str, shared: Sequence[str]) -> str:
    """Return a docstring with the options that it does not mention at the end of its arguments."""
    missing = [f"  {name}: {OPTIONS[name]}\n" for name in shared if f"\n  {name}: " not in doc]
    if not missing:
        return doc
    before, title, rest = doc.partition("\nArgs:\n")
    if not title:
        before, raises, rest = doc.partition("\nRaises:\n")
        return f"{before}\nArgs:\n{''.join(missing)}{raises}{rest}"
    own, gap, after = f"{rest}\n".partition("\n\n")
    return f"{before}{title}{own.rstrip()}\n{''.join(missing)}{gap[1:]}{after}".rstrip()
