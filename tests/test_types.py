"""An attack is refused when it is built if a method of its trigger would never be called, or could not be."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from bdjax import pytree
from bdjax.attacks import AllToOne
from bdjax.checks import InputError
from bdjax.types import HOOKS, Attack, Trigger


class Plain(Trigger):
    def apply(self, key, state, input):
        return input


def made(*hooks: str, without: tuple[str, ...] = (), **more) -> Trigger:
    """Return a trigger that declares these hooks and has them, but for some, and whatever more."""

    def method(self, key, model, variables, state, batch):
        return state, None

    forms = {
        "fit": method,
        "learn": method,
        "pace": lambda self, state, steps_per_epoch: state,
        "cover": lambda self, key, state, batch: batch.input,
        "apply_part": lambda self, key, state, position, input: input,
        "epochs": 1,
        "batch_size": None,
    }
    kept = {"epochs", "batch_size", *hooks} - set(without)
    body = {"hooks": hooks, **{name: form for name, form in forms.items() if name in kept}, **more}
    return type("Made", (Plain,), body)()


def attack(trigger, **fields) -> Attack:
    return Attack(trigger, AllToOne(), **fields)


def test_a_rule_needs_no_more_than_apply(spec):
    plain = attack(Plain())
    assert plain.by_formula
    assert plain.trigger.init(jax.random.key(0), spec) == ()
    assert plain.trigger_at_test is plain.trigger


@pytest.mark.parametrize(
    ("hooks", "fields", "by_formula"),
    [
        (("apply_part",), {}, True),
        (("fit", "pace"), {}, False),
        (("learn", "pace"), {"controls_training": True}, False),
        (("cover",), {"controls_training": True, "cover_rate": 0.2}, True),
        (HOOKS, {"controls_training": True, "cover_rate": 0.2}, False),
    ],
)
def test_hooks_that_fit_together_pass(hooks, fields, by_formula):
    assert attack(made(*hooks), **fields).by_formula is by_formula


LERN = {"lern": lambda self, key, model, variables, state, batch: (state, None)}


@pytest.mark.parametrize(
    ("trigger", "fields", "words"),
    [
        (
            made("lern", **LERN),
            {},
            r"Made.hooks must be one of .*; got 'lern' \(did you mean 'learn'\?\)",
        ),
        (
            made("learn", without=("learn",), **LERN),
            {},
            r"must have the method learn, .* \(did you mean 'lern'\?\)",
        ),
        (
            made(cover=lambda self, key, state, batch: 0),
            {},
            r"Made.hooks must hold 'cover' for that method .*; got \(\)",
        ),
        (
            made("fit", fit=lambda self, key, state, batch: 0),
            {},
            r"Made.fit must take \(self, key, model, variables, state, batch\), got \(self, key, state, batch\)",
        ),
        (
            made(apply=lambda self, state, input: input),
            {},
            r"Made.apply must take \(self, key, state, input\), got",
        ),
        (
            made("fit", without=("epochs",)),
            {},
            "Made must have epochs, by which the loop feeds its hook 'fit'",
        ),
        (made("fit", without=("batch_size",)), {}, "Made must have batch_size, by which"),
        (
            made("learn"),
            {},
            "controls_training must be True for the hook 'learn' of Made to be called",
        ),
        (made("cover"), {"cover_rate": 0.1}, "controls_training must be True for the hook 'cover'"),
        (
            made("pace"),
            {},
            r"Made.hooks must hold 'fit' or 'learn' for 'pace' to be called; got \('pace',\)",
        ),
        (
            Plain(),
            {"cover_rate": 0.1},
            "cover_rate must be 0, as Plain has no hook 'cover'; got 0.1",
        ),
        (
            Plain(),
            {"test_trigger": made("fit")},
            "test_trigger must learn along with the trigger, .* no hook 'fit'",
        ),
        (Plain(), {"test_trigger": made("lern")}, "Made.hooks must be one of"),
        (object(), {}, "trigger must be a bdjax.types.Trigger, got <object"),
    ],
)
def test_what_would_never_be_called_is_refused(trigger, fields, words):
    with pytest.raises(InputError, match=words):
        attack(trigger, **fields)


def test_leaves_may_be_whatever_jax_puts_there():
    built = attack(pytree.dataclass(Plain)(), poison_rate=0.5)
    assert jax.tree.unflatten(jax.tree.structure(built), [None, 3]).poison_rate is None
    axes = jax.tree.map(
        lambda _: 0,
        dataclasses.replace(built, trigger=made()),
        is_leaf=lambda x: isinstance(x, Trigger),
    )
    assert axes.trigger == axes.cover_rate == 0
    swept = jax.vmap(lambda one: dataclasses.replace(one, poison_rate=0.1).cover_rate, in_axes=(0,))
    stacked = jax.tree.map(lambda leaf: jax.numpy.full(2, leaf), built)
    assert swept(stacked).shape == (2,)
