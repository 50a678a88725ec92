"""Choosing a defense's strength: on clean images kept aside, within a budget, in one program."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from bdjax import cli, defenses, pytree, registry, report, saved
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.data.validation import validation_split
from bdjax.defenses.chain import chain
from bdjax.devices import compilation
from bdjax.runs import config, plans, run, schema, strength
from bdjax.train import batches
from bdjax.types import Info, Spec, Split

KEY = jax.random.key(0)
ROWS = 40


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the label from the first pixel, but names class 0 where the second pixel is below a threshold."""

    spec: Spec

    def init(self, key):
        return {"params": {"threshold": jnp.float32(0)}, "batch_stats": {}}

    def apply(self, variables, image, *, train=False, valid=None):
        label = jnp.round(image[:, 0, 0, 0] * 255).astype(jnp.int32)
        hidden = image[:, 0, 1, 0] * 255 + 0.5 < variables["params"]["threshold"]
        return jax.nn.one_hot(jnp.where(hidden, 0, label), self.spec.num_classes), variables[
            "batch_stats"
        ]

    def features(self, variables, image):
        return image.reshape(image.shape[0], -1)


@pytree.dataclass
class Harm:
    """Raises the reader's threshold by its strength in every step, and keeps count of the rows that it was fed."""

    amount: float
    epochs: int = pytree.static(default=1)
    batch_size: int | None = pytree.static(default=None)
    drop_last: bool = pytree.static(default=False)

    def init(self, key, model, variables, split):
        return variables

    def update(self, key, model, state, batch):
        params = {"threshold": state["params"]["threshold"] + self.amount}
        return {**state, "params": params}, Info(
            jnp.float32(0), jnp.float32(0), jnp.int32(batch.label.shape[0])
        )

    def finalize(self, model, state):
        return state


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(image_spec("pixels", (1, 2, 1), 4, (0.0,), (1.0,)))


@pytest.fixture(scope="module")
def pixels() -> Split:
    """Ten images of each of four classes; the second pixel is the image's number within its class, 0 to 9."""
    label = np.arange(ROWS, dtype=np.int32) % 4
    image = np.stack([label, np.arange(ROWS) // 4], -1).reshape(ROWS, 1, 2, 1).astype(np.uint8)
    return Split(image, label, np.ones(ROWS, bool))


def choose(reader, split, values, budget=0.02, make=Harm, aside=0.5):
    rest, kept = validation_split(
        jax.tree.map(jnp.asarray, split), jnp.asarray(split.label), aside, 4
    )
    return strength.choose(
        KEY, make, values, reader, reader.init(KEY), defenses.Given(rest), kept, budget=budget
    )


def test_the_strongest_within_the_budget_is_chosen(reader, pixels):
    """Aside are numbers 0 to 4 of each class; a threshold t takes three classes' t first ones: 3 of 20 for each."""
    found = choose(reader, pixels, [0.0, 1.0, 2.0, 3.0], budget=0.3)
    assert (found.accuracy_before, found.aside_count) == (1.0, 20)
    assert [trial.accuracy for trial in found.trials] == pytest.approx([1.0, 0.85, 0.7, 0.55])
    assert [trial.value for trial in found.trials] == [0.0, 1.0, 2.0, 3.0]
    assert (found.chosen, found.within_budget) == (2.0, True)


def test_the_budget_is_absolute_and_zero_allows_no_fall(reader, pixels):
    assert choose(reader, pixels, [0.0, 1.0], budget=0.0).chosen == 0.0
    assert choose(reader, pixels, [0.0, 1.0], budget=0.15).chosen == 1.0


def test_where_nothing_is_within_the_budget_the_weakest_is_taken_and_told(reader, pixels):
    found = choose(reader, pixels, [1.0, 2.0], budget=0.01)
    assert (found.chosen, found.within_budget) == (1.0, False)


def test_a_stronger_setting_that_costs_less_is_taken_all_the_same(reader, pixels):
    assert choose(reader, pixels, [0.0, 3.0, 1.0], budget=0.2).chosen == 1.0


def test_the_defense_is_fed_the_rest_and_its_gradients_are_counted(reader, pixels):
    found = choose(reader, pixels, [1.0], make=lambda value: Harm(value, epochs=3))
    assert found.trials[0].gradient_evaluations == 3 * (ROWS - 20)
    assert found.trials[0].accuracy == pytest.approx(0.55)


def test_the_stages_of_a_chain_run_one_after_another(reader, pixels):
    found = choose(reader, pixels, [1.0, 2.0], make=lambda value: chain(Harm(1.0), Harm(value)))
    assert [trial.accuracy for trial in found.trials] == pytest.approx([0.7, 0.55])


def test_all_values_are_one_program_and_others_compile_nothing(reader, pixels):
    choose(reader, pixels, [0.0, 1.0, 2.0])
    with compilation.count_seconds() as seconds:
        choose(reader, pixels, [0.0, 0.5, 1.0])
    assert sum(seconds) < 0.05  # small host-side pieces at most


def test_it_equals_what_the_loop_does(model, variables, split):
    """The sweep's accuracy is that of a run of the loop with the same key on the same rows."""
    small = {"epochs": 2, "batch_size": 16}
    rest, aside = validation_split(
        jax.tree.map(jnp.asarray, split), jnp.asarray(split.label), 0.25, 4
    )
    found = strength.choose(
        KEY, lambda rho: defenses.create("ft_sam", rho=rho, **small), [0.5, 2.0],
        model, variables, defenses.Given(rest), aside,
        budget=1.0,
    )  # fmt: skip
    for trial in found.trials:
        purified = defenses.run(
            KEY, defenses.create("ft_sam", rho=trial.value, **small), model, variables, rest
        )
        assert trial.accuracy == pytest.approx(accuracy(model, purified, aside))


def accuracy(model, variables, examples) -> float:
    logits, _ = model.apply(variables, jnp.asarray(examples.input / 255.0, jnp.float32))
    return float((logits.argmax(-1) == examples.label).mean())


# --- configs and runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", defenses.names())
def test_declared_strengths_are_options_and_go_from_weak_to_strong(name):
    for option, values in registry.strengths("bdjax.defenses", name).items():
        assert option in schema.parameters("bdjax.defenses", name)
        assert list(values) in (sorted(values), sorted(values, reverse=True))
        for value in values:
            defenses.create(name, **{option: value})


def test_every_published_defense_has_a_strength():
    for name in defenses.names():
        text = inspect.getdoc(registry.factory("bdjax.defenses", name)) or ""
        assert registry.strengths("bdjax.defenses", name) or "References:" not in text


def test_a_config_keeps_auto_and_says_how_it_is_chosen():
    resolved = config.resolve(
        {"defense": {"name": "ft_sam", "rho": "auto"}, "selection": {"budget": 0.05}}
    )
    assert resolved.defense.options["rho"] == "auto"
    assert resolved.to_dict()["selection"] == {"budget": 0.05, "aside": 0.2}
    assert resolved.strength == config.Strength("defense.rho", (0.25, 0.5, 1.0, 2.0, 4.0, 8.0))
    assert config.resolve(yaml.safe_load(schema.to_yaml(resolved.to_dict()))) == resolved
    assert config.build_defense(resolved, 4.0) == config.build_defense(resolved.with_defense(**{
        **resolved.to_dict()["defense"], "rho": 4.0
    }))  # fmt: skip


def test_without_auto_a_selection_is_no_part_of_a_run():
    plain = config.resolve({})
    assert config.resolve({"selection": {"budget": 0.05}}) == plain
    assert "selection" not in plain.to_dict()


def test_the_victim_does_not_depend_on_the_choice():
    victims = {
        config.resolve({"defense": {"name": "ft_sam", "rho": rho}}).victim_id
        for rho in (2.0, "auto")
    }
    assert len(victims) == 1


def test_a_stage_of_a_chain_may_have_it():
    values = {"name": "chain", "first": "fine_pruning", "second": {"name": "ft_sam", "rho": "auto"}}
    resolved = config.resolve({"defense": values})
    assert resolved.strength is not None
    assert resolved.strength.path == "defense.second.rho"
    assert config.build_defense(resolved, 8.0).stages[-1].learner.transformation.rho == 8.0


@pytest.mark.parametrize(
    ("defense", "message"),
    [
        (
            {"name": "ft_sam", "learning_rate": "auto"},
            "defense.learning_rate must have a value; of ft_sam, auto is for: rho",
        ),
        (
            {"name": "ft", "momentum": "auto"},
            "defense.momentum must have a value; of ft, auto is for: none",
        ),
        (
            {
                "name": "chain",
                "first": {"name": "l2_ft", "gamma": "auto"},
                "second": {"name": "ft_sam", "rho": "auto"},
            },
            "one option that is auto at most, not defense.first.gamma and defense.second.rho",
        ),
    ],
)
def test_auto_elsewhere_is_refused(defense, message):
    with pytest.raises(InputError, match=message):
        config.resolve({"defense": defense})


@pytest.mark.parametrize(("key", "value"), [("budget", 2), ("aside", 0), ("aside", 1)])
def test_a_selection_out_of_range_is_refused(key, value):
    with pytest.raises(InputError, match=rf"selection\.{key} must"):
        config.resolve({"defense": {"name": "ft_sam", "rho": "auto"}, "selection": {key: value}})


@pytest.mark.parametrize(
    "defense", [{"name": "ft_sam", "rho": "auto", "batch_size": 5}, "grad_prune"]
)
def test_a_holdout_too_small_to_divide_is_refused_before_anything_is_trained(defense):
    values = {"defense": defense, "holdout": {"per_class": 1}}
    with pytest.raises(InputError, match="holdout must have more than 10 images"):
        plans.prepare(config.resolve(values))


def test_a_batch_that_the_rest_cannot_fill_is_all_of_it(caplog):
    values = {
        "defense": {"name": "ft_sam", "rho": "auto", "batch_size": 40},
        "holdout": {"per_class": 4},
    }
    batches._tell.cache_clear()
    plans.tell_of_batches(plans.prepare(config.resolve(values)))
    assert caplog.messages == [
        "defense.batch_size = 40 is more than the 30 images there are: each step takes all of them."
    ]


def test_the_network_that_a_run_ends_with_is_the_one_that_was_measured(tmp_path: Path):
    """The defense gets the rest of the holdout, and the images aside have no part in it."""
    values = {
        "model": {"name": "small_cnn", "width": 2},
        "training": {"epochs": 2},
        "defense": {"name": "ft_sam", "rho": "auto", "epochs": 3, "batch_size": 20},
        "holdout": {"per_class": 4},
    }
    resolved = config.resolve(values)
    record = run.run(resolved, run.Execution(tmp_path))
    plan, _, defended = saved.restore(report.load([tmp_path])[0])
    assert (record["data"]["holdout_count"], record["selection"]["aside_count"]) == (30, 10)
    assert plan.validation is not None
    chosen = next(
        trial
        for trial in record["selection"]["trials"]
        if trial["value"] == record["selection"]["chosen"]
    )
    assert accuracy(plan.model, defended, plan.validation) == pytest.approx(chosen["accuracy"])


def test_a_run_records_what_was_tried_and_a_second_one_tries_nothing(
    tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    options = "--defense.rho auto --training.epochs 1 --defense.epochs 1 --holdout.per_class 4 --defense.batch_size 20"
    words = ["run", *options.split(), "--quiet", "--out", "runs"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    resolved = config.resolve(schema.overrides(options.split()))
    record = run.run(resolved, run.Execution(tmp_path / "runs"))
    selection = record["selection"]
    assert selection["option"] == "defense.rho"
    assert [trial["value"] for trial in selection["trials"]] == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
    assert selection["chosen"] in [trial["value"] for trial in selection["trials"]]
    assert f"defense.rho = {selection['chosen']:g}" in told
    monkeypatch.setattr(strength, "choose", lambda *_, **__: pytest.fail("tried again"))
    (tmp_path / "runs" / resolved.run_id / "record.json").unlink()
    assert run.run(resolved, run.Execution(tmp_path / "runs"))["selection"] == selection
