"""Configs: who overrides whom, what is refused, and that a run's name depends on what it does and nothing else."""

import inspect
import itertools
import time
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bdjax import data, registry
from bdjax.attacks import OneToOne
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.optim.sgd import Schedule
from bdjax.runs import config as configs
from bdjax.runs import schema


def resolve(*words, **file):
    """Resolve a file's values with words of the command line over them."""
    return configs.resolve(schema.merge(file, schema.overrides(words)))


SUITED = data.defaults("digits")


def leaves(config):
    return schema.flatten(config.to_dict())


# --- Precedence ------------------------------------------------------------------------------------------------------

LAYERS = {"factory": 1e-4, "preset": 5e-4, "data set": 3e-4, "file": 2e-4, "command line": 7e-5}


@pytest.mark.parametrize(("below", "above"), list(itertools.combinations(LAYERS, 2)))
def test_each_layer_overrides_those_below(below, above, monkeypatch):
    present = {name: value for name, value in LAYERS.items() if name in (below, above)}
    suited = {"defense": {"weight_decay": LAYERS["data set"]}} if "data set" in present else {}
    monkeypatch.setattr("bdjax.data.sources.digits.DEFAULTS", suited)
    file = {"name": "ft_sam"}
    file |= {"preset": "reference_code"} if "preset" in present else {}
    file |= {"weight_decay": LAYERS["file"]} if "file" in present else {}
    words = (
        ["--defense.weight_decay", str(LAYERS["command line"])] if "command line" in present else []
    )
    assert resolve(*words, defense=file).defense.options["weight_decay"] == LAYERS[above]


def test_what_the_command_line_does_not_name_keeps_the_value_of_the_file():
    file = {"seed": 7, "defense": {"name": "ft_sam", "rho": 8.0, "epochs": 3}}
    config = resolve("--defense.epochs", "5", **file)
    assert (config.seed, config.defense.options["rho"], config.defense.options["epochs"]) == (
        7,
        8.0,
        5,
    )


def test_the_preset_of_the_released_code_changes_its_own_options_only():
    paper, released = (
        leaves(resolve(data="cifar10", defense={"name": "ft_sam", "preset": p})) for p in PRESETS
    )
    assert {key: value for key, value in released.items() if value != paper[key]} == {
        "defense.weight_decay": 5e-4,
        "defense.label_smoothing": 0.1,
        "defense.schedule.kind": "cosine",
        "defense.schedule.period": 100.0,
        "defense.schedule.per": "step",
    }


PRESETS = ("paper", "reference_code")


def test_a_schedule_given_in_part_keeps_the_rest_of_the_layers_below():
    assert resolve("--training.schedule.period", "7").training["schedule"] == Schedule(
        kind="cosine", period=7.0
    )
    released = resolve(
        "--defense.schedule.period", "7", defense={"name": "ft", "preset": "reference_code"}
    )
    assert released.defense.options["schedule"] == Schedule(kind="cosine", period=7.0)
    over_file = resolve(
        "--training.schedule.factor", "0.5", training={"schedule": {"kind": "step", "period": 3}}
    )
    assert over_file.training["schedule"] == Schedule(kind="step", period=3.0, factor=0.5)


def test_a_bare_word_stands_for_the_field_that_says_most():
    config = resolve(
        "--defense",
        "ft",
        "--training.schedule",
        "plateau",
        "--holdout",
        "0.2",
        "--poison",
        "truncate",
    )
    assert config.defense.name == "ft"
    assert config.training["schedule"].kind == "plateau"
    assert (config.holdout.share, config.holdout.per_class) == (0.2, None)
    assert config.poison.rounding == "truncate"
    assert (
        resolve(attack="blended", model="preact_resnet18", data="cifar10").attack.name == "blended"
    )


@pytest.mark.parametrize(
    "section", ["data", "model", "attack", "poison", "training", "holdout", "defense"]
)
def test_an_empty_section_means_its_defaults(section):
    assert resolve(**{section: None}) == resolve(**{section: {}}) == resolve()


def test_a_holdout_is_five_percent_unless_the_data_set_or_the_file_says_otherwise():
    assert resolve(data="cifar10").holdout.share == 0.05
    assert resolve().holdout.per_class == SUITED["holdout"]["per_class"]
    assert resolve(holdout={"share": 0.1}).holdout.per_class is None
    assert resolve(data="cifar10", holdout={"per_class": 5}).holdout.share is None


# --- Changing the method ---------------------------------------------------------------------------------------------


def test_another_defense_over_a_file_keeps_the_options_that_it_has():
    file = {"defense": {"name": "ft_sam", "rho": 8.0, "epochs": 3, "schedule": {"kind": "cosine"}}}
    config = resolve("--defense", "ft", **file)
    assert "rho" not in config.defense.options
    assert config.defense.options["epochs"] == 3
    assert config.defense.options["schedule"].kind == "cosine"
    assert resolve("--defense.name", "none", **file).defense.options == {}


def test_another_defense_over_a_file_keeps_a_preset_that_it_has():
    file = {"defense": {"name": "ft_sam", "preset": "reference_code"}}
    assert resolve("--defense", "ft", **file) == resolve(
        defense={"name": "ft", "preset": "reference_code"}
    )
    assert resolve("--defense", "none", **file) == resolve(defense="none")


def test_another_defense_over_a_file_does_not_hide_a_misspelled_option():
    with pytest.raises(InputError, match=r"unknown key 'defense\.rhoo'"):
        resolve("--defense", "ft", defense={"name": "ft_sam", "rhoo": 8.0})


def test_another_defense_over_the_options_of_the_default_one_drops_them_too():
    assert resolve("--defense", "ft", defense={"rho": 8.0}) == resolve(defense="ft")


def test_another_attack_over_a_file_keeps_the_rate_and_drops_the_patch():
    file = {"attack": {"name": "badnets", "poison_rate": 0.05, "size": 2, "target_label": 3}}
    options = resolve("--attack", "blended", **file).attack.options
    assert (options["poison_rate"], options["target_label"], "size" in options) == (0.05, 3, False)


@pytest.mark.parametrize(
    "words", [("--defense", "ft", "--defense.rho", "4"), ("--defense.rho", "4", "--defense", "ft")]
)
def test_an_option_named_beside_a_method_that_lacks_it_is_refused_in_either_order(words):
    with pytest.raises(InputError, match=r"unknown key 'defense\.rho'"):
        resolve(*words)


def test_the_later_of_two_words_counts_and_both_spellings_of_a_value():
    assert resolve("--seed", "1", "--seed=2").seed == 2
    assert resolve("--attack", "blended", "--attack.name", "badnets").attack.name == "badnets"


def test_chains_nest_and_each_stage_has_its_defaults():
    words = ("--defense", "chain", "--defense.first", "ft", "--defense.second.name", "chain")
    inner = (
        "--defense.second.first",
        "ft_sam",
        "--defense.second.second",
        "ft",
        "--defense.second.first.rho",
        "3",
    )
    config = resolve(*words, *inner)
    first, second = config.defense.options["first"], config.defense.options["second"]
    assert (first.name, first.options["batch_size"]) == ("ft", SUITED["defense"]["batch_size"])
    assert second.options["first"].options["rho"] == 3.0
    assert [stage.learner.batch_size for stage in configs.build_defense(config).stages] == 3 * [
        SUITED["defense"]["batch_size"]
    ]
    assert configs.resolve(config.to_dict()) == config


def test_a_mistake_inside_a_chain_is_named_by_its_whole_path():
    chain = {"name": "chain", "first": "ft", "second": {"name": "ft_sam", "rho": -1}}
    with pytest.raises(InputError, match=r"^defense\.second\.rho must be 0 or more, got -1\.0\.$"):
        resolve(defense=chain)
    with pytest.raises(InputError, match=r"unknown key 'defense\.first\.rho'"):
        resolve(defense={**chain, "first": {"name": "ft", "rho": 1}})
    with pytest.raises(InputError, match=r"^defense\.second is missing\.$"):
        resolve(defense={"name": "chain", "first": "ft"})


# --- Controls --------------------------------------------------------------------------------------------------------


def test_the_control_differs_from_a_defense_only_in_what_it_lacks():
    config = resolve(
        "--seed",
        "3",
        defense={"name": "ft_sam", "epochs": 7, "learning_rate": 0.2, "schedule": "cosine"},
    )
    control, whole = leaves(config.control()), leaves(config)
    assert control.pop("defense.name") == "ft"
    own = {"defense.name", "defense.rho", "defense.adaptive", "defense.rho_min"}
    assert control == {key: whole[key] for key in whole.keys() - own}
    assert config.control().victim_id == config.victim_id


@pytest.mark.parametrize(
    "second", [{"name": "ft_sam"}, {"name": "chain", "first": "none", "second": "ft_sam"}]
)
def test_the_control_of_a_chain_is_that_of_its_last_stage(second):
    last = second.get("second", second)
    last = {"name": last if isinstance(last, str) else last["name"], "epochs": 7}
    chain = {
        "name": "chain",
        "first": "ft",
        "second": {**second, "second": last} if "first" in second else last,
    }
    assert resolve(defense=chain).control() == resolve(defense={"name": "ft", "epochs": 7})


def test_another_defense_for_the_same_victim_gets_the_data_sets_defaults():
    config = resolve(defense="none")
    assert config.with_defense(name="ft_sam", rho=4) == resolve(
        defense={"name": "ft_sam", "rho": 4}
    )
    assert config.control() == resolve(defense="ft")


# --- Classes by name, data by path, files -----------------------------------------------------------------------------


def test_a_target_is_a_number_where_it_reads_as_one_and_else_a_name(tmp_path):
    file = tmp_path / "config.yaml"
    for text, value in (
        ("3", 3),
        ("'3'", 3),
        ("'03'", 3),
        ("cat", "cat"),
        ("'1.5'", "1.5"),
        ("1_0x", "1_0x"),
    ):
        file.write_text(f"attack: {{name: badnets, target_label: {text}}}")
        assert configs.resolve(schema.read(file)).attack.options["target_label"] == value
        assert (
            resolve("--attack.target_label", text.strip("'")).attack.options["target_label"]
            == value
        )


def test_a_target_by_name_stays_a_name_and_survives_its_own_yaml(tmp_path):
    config = resolve("--attack.target_label", "cat", "--attack.label_map", "all_to_one")
    assert config.to_dict()["attack"]["target_label"] == "cat"
    (tmp_path / "config.yaml").write_text(schema.to_yaml(config.to_dict()))
    assert configs.resolve(schema.read(tmp_path / "config.yaml")) == config
    assert config.run_id != resolve().run_id


@pytest.mark.parametrize("value", [True, 1.5, None, [1]])
def test_a_target_that_is_neither_is_refused(value):
    with pytest.raises(
        InputError,
        match=r"attack\.target_label must be a class, by its number or its name in quotes",
    ):
        resolve(attack={"name": "badnets", "target_label": value})


def test_names_of_classes_are_checked_where_the_classes_are_known():
    config = resolve(
        "--attack", "cba", "--attack.first_class", "cat", "--attack.target_label", "dog"
    )
    spec = image_spec("pets", (8, 8, 3), 4, (0.5,) * 3, (0.25,) * 3, ("ant", "cat", "cow", "dog"))
    assert configs.build_attack(config, spec).label_map == OneToOne(1, 3)
    with pytest.raises(InputError, match=r"^attack\.first_class must be a class of pets"):
        configs.build_attack(resolve("--attack", "cba", "--attack.first_class", "cut"), spec)
    with pytest.raises(InputError, match=r"^attack\.poison_rate must lie between"):
        resolve("--attack.target_label", "cat", "--attack.poison_rate", "2")
    with pytest.raises(InputError, match="must be three classes"):
        resolve("--attack", "cba", "--attack.first_class", "cat", "--attack.second_class", "cat")


def test_data_by_path_have_the_folders_own_name_wherever_they_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name = resolve("--data", "shapes", "--data.data_dir", "/sets")
    paths = ["./shapes", "shapes/", "/sets/shapes", "/sets/shapes/", "~/shapes", "../shapes"]
    for path in paths:
        config = resolve("--data", path)
        assert (config.data.name, config.run_id, config.victim_id) == (
            "shapes",
            by_name.run_id,
            by_name.victim_id,
        )
        assert configs.resolve(config.to_dict()) == config
    assert resolve("--data", "./shapes").data.data_dir == str(tmp_path)
    assert resolve(data={"name": "shapes/"}).data.data_dir == str(tmp_path), "in YAML, too"


def test_a_folder_called_like_a_data_set_is_another_run_with_a_name_for_a_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    own, folder = resolve("--data", "digits"), resolve("--data", "./digits")
    assert folder.run_id != own.run_id
    assert folder.run_id.startswith("digits-badnets-ft_sam-")
    assert folder.victim_id.startswith("digits-badnets-")
    assert folder.holdout.share == 0.05, (
        "what suits the digits is not for whatever else has their name"
    )
    assert (
        configs.resolve(folder.to_dict()) == folder == resolve("--data", str(tmp_path / "digits"))
    )


@pytest.mark.parametrize("key", ["data.name", "data.data_dir"])
def test_a_folder_without_a_name_is_refused(key):
    with pytest.raises(InputError, match=rf"^{key} must name a folder, got ''"):
        resolve(f"--{key}", "")


def test_files_of_an_attack_are_those_that_its_options_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert configs.files(resolve()) == {}
    assert configs.files(resolve("--attack.pattern", "sft")) == {}
    assert configs.files(resolve("--attack.pattern", "~/a.png")) == {
        "attack.pattern": Path("/home/me/a.png")
    }
    blended = resolve("--attack", "blended", "--attack.trigger_image", "b.png")
    assert configs.files(blended) == {"attack.trigger_image": Path("b.png")}
    assert configs.files(resolve("--attack", "blended")) == {}


@pytest.mark.parametrize("name", registry.names("bdjax.attacks"))
def test_an_option_that_names_a_file_is_an_option(name):
    assert (
        registry.files("bdjax.attacks", name).keys()
        <= schema.parameters("bdjax.attacks", name).keys()
    )
    assert configs.files(resolve("--attack", name)) == {}


def test_the_names_of_runs_are_what_they_were():
    """Recorded before classes had names, data paths and patches pictures."""
    assert resolve().run_id == "digits-badnets-ft_sam-ec64940b32"
    assert resolve("--attack", "cba").victim_id == "digits-cba-817f321166"
    assert (
        resolve("--data", "cifar10", "--attack.target_label", "3").run_id
        == "cifar10-badnets-ft_sam-34346162fb"
    )


# --- What is refused -------------------------------------------------------------------------------------------------

TYPOS = {
    ("--defense.rhoo", "4"): "rho",
    ("--defnse.rho", "4"): "defense",
    ("--training.epoch", "3"): "epochs",
    ("--holdout.per_clas", "3"): "per_class",
    ("--training.schedule.perod", "3"): "period",
    ("--training.schedule", "cosin"): "cosine",
    ("--attack", "badnet"): "badnets",
    ("--attack.label_map", "all_to_on"): "all_to_one",
    ("--model.name", "smal_cnn"): "small_cnn",
    ("--defense", "ftsam"): "ft_sam",
    ("--defense.preset", "papr"): "paper",
    ("--poison", "neares"): "nearest",
    ("--training.augment", "standart"): "standard",
}


@pytest.mark.parametrize(("words", "nearest"), TYPOS.items())
def test_a_typo_is_refused_with_the_nearest_name(words, nearest):
    with pytest.raises(InputError) as refused:
        resolve(*words)
    assert f"did you mean '{nearest}'?" in str(refused.value)
    typed = words[0].removeprefix("--")
    assert any(
        repr(word) in str(refused.value) for word in (words[1], typed, typed.partition(".")[0])
    )


@pytest.mark.parametrize("value", [{"a": 1}, [1], "many", True, 2.5, None])
def test_a_wrong_type_is_refused_with_its_key_and_its_own_value(value):
    with pytest.raises(InputError) as refused:
        resolve(training={"epochs": value})
    assert str(refused.value) == f"training.epochs must be a whole number, got {value!r}."


@pytest.mark.parametrize(
    "value", ["nan", "inf", "-inf", "1e39", "1e400", 10**400, "two", "", True, {}, []]
)
def test_a_number_that_the_device_cannot_hold_is_refused(value):
    with pytest.raises(InputError, match=r"^defense\.rho must be a number"):
        resolve(defense={"rho": value})


LIMITS = {
    "seed": (0, 2**32 - 1),
    "attack.poison_rate": (0, 1),
    "attack.target_label": (0,),
    "training.epochs": (0,),
    "training.batch_size": (1,),
    "training.momentum": (0,),
    "training.weight_decay": (0,),
    "training.label_smoothing": (0, 1),
    "holdout.share": (0, 1),
    "holdout.per_class": (1,),
    "data.crop_padding": (0,),
    "defense.rho": (0,),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in LIMITS.items() for value in values]
)
def test_a_value_at_its_limit_is_allowed(key, value):
    assert leaves(resolve(f"--{key}", str(value)))[key] == value


def test_a_holdout_is_a_share_or_a_number_per_class():
    with pytest.raises(InputError, match=r"^holdout\.share and per_class.* got 0\.1 and 13"):
        resolve("--holdout.share", "0.1", holdout={"per_class": 13})
    assert resolve(
        "--holdout.share", "0.1", "--holdout.per_class", "none", holdout={"per_class": 13}
    ).holdout.share


FILES = {
    "a key twice": "defense: {rho: 2, rho: 4}",
    "a key twice on top": "seed: 1\nseed: 2",
    "an alias": "defense: &d {name: ft}\nmodel: *d",
    "a value that holds itself": "defense: &d {name: *d}",
    "doubling aliases": "a: &a [1, 1]\nb: &b [*a, *a]\nc: &c [*b, *b]",
    "Python to execute": "seed: !!python/object/apply:os.getpid []",
    "an empty number": "seed: !!int ''",
    "no date": "seed: 2020-13-45",
    "no truth": "seed: !!bool maybe",
    "a number of 5000 digits": f"seed: {'1' * 5000}",
    "a number of a hundred thousand hexadecimal digits": f"defense: 0x{'f' * 100_000}",
    "a number that could be read and not be printed": f"defense: 0x{'f' * 4000}",
    "a number to base 60": f"seed: 1{':1' * 50_000}",
    "a word without end": f"defense: {'x' * 100_000}",
    "a key without end": f"? {'x' * 100_000}\n: 1",
    "a list for a key": "? [defense]\n: ft",
    "more than a config can be": "#" * 2**18 + "\nseed: 1",
    "a tab": "defense:\n\tname: ft",
    "an open bracket": "defense: [",
    "two documents": "seed: 1\n---\nseed: 2",
    "nesting without end": "seed: " + "[" * 5000,
    "a list": "- defense",
    "a word": "defense",
    "nothing": "",
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_a_file_that_is_not_plain_sections_is_refused_and_named(text, tmp_path):
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"^the config .*odd\.yaml"):
        schema.read(file)


@pytest.mark.parametrize(
    "section", ["", "defense: {name: ft}\ntraining:\n", "defense:\n  name: ft\n"]
)
def test_twenty_thousand_keys_are_refused_in_linear_time(section, tmp_path):
    file = tmp_path / "long.yaml"
    file.write_text(
        section
        + "".join(
            f"{'  ' if section else ''}k{i}: 1\n" for i in range(20_000 if not section else 18_000)
        )
    )
    started = time.process_time()
    with pytest.raises(InputError, match=r"unknown key '.*k0'"):
        configs.resolve(schema.merge(schema.read(file), {"defense": {"epochs": 1}}))
    assert time.process_time() - started < 8  # a quadratic reader took longer by itself


@pytest.mark.parametrize("length", [3000, 3001])
def test_a_value_may_be_as_long_as_a_path(length, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"data: {{data_dir: {'x' * length}}}")
    if length == 3000:
        assert configs.resolve(schema.read(file)).data.data_dir == "x" * length
    else:
        with pytest.raises(
            InputError, match="a value has 3,001 characters, and 3,000 are the most"
        ):
            schema.read(file)


@pytest.mark.parametrize("text", ["a\0b", "\udcff"])
def test_text_that_no_record_could_hold_is_refused(text):
    for key in ("data_dir", "name"):
        with pytest.raises(
            InputError, match=f"^data.{key} must be text in UTF-8 without NUL, got "
        ):
            resolve(data={key: text})


def test_a_file_that_is_not_utf8_or_not_there_is_refused_and_named(tmp_path):
    (tmp_path / "odd.yaml").write_bytes(b"seed: \xff\xfe")
    with pytest.raises(InputError, match=r"^the config .*odd\.yaml is not valid YAML"):
        schema.read(tmp_path / "odd.yaml")
    with pytest.raises(InputError, match=r"^cannot read the config .*none\.yaml: No such file"):
        schema.read(tmp_path / "none.yaml")


# --- The name of a run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["rho", "learning_rate"])
@pytest.mark.parametrize("spelling", ["2", "2.0", "'2'", "2e0", "2.0e+0", "'2.00'"])
def test_the_spelling_of_a_number_does_not_change_the_name(key, spelling, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(f"defense: {{name: ft_sam, {key}: {spelling}}}")
    same = resolve(f"--defense.{key}={spelling.strip(chr(39))}")
    assert (
        configs.resolve(schema.read(file)).run_id == same.run_id == resolve(defense={key: 2}).run_id
    )


def test_a_small_number_that_yaml_takes_for_text_is_a_number(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("training: {weight_decay: 1e-4}")
    assert schema.read(file) == {"training": {"weight_decay": "1e-4"}}  # the trap
    assert configs.resolve(schema.read(file)) == resolve(training={"weight_decay": 0.0001})


def test_negative_zero_is_zero():
    assert resolve("--defense.rho", "-0.0").run_id == resolve("--defense.rho", "0").run_id


def test_where_the_data_lie_does_not_change_the_name():
    here, there = resolve("--data.data_dir", "/here"), resolve("--data.data_dir", "/there")
    assert here != there
    assert (
        (here.run_id, here.victim_id)
        == (there.run_id, there.victim_id)
        == (resolve().run_id, resolve().victim_id)
    )


OTHER_WORDS = {
    "data.name": "cifar10",
    "data.image_size": 16,
    "data.train_count": 500,
    "data.crop_padding": 1,
    "data.flip": True,
    "model.name": "preact_resnet18",
    "model.dtype": "bfloat16",
    "attack.name": "blended",
    "attack.label_map": "all_to_all",
    "attack.size": 2,
    "attack.candidates": "changed",
    "attack.corner": "top_left",
    "attack.pattern": "checkerboard",
    "poison.rounding": "truncate",
    "training.schedule.kind": "plateau",
    "training.schedule.period": 3.0,
    "training.schedule.per": "step",
    "training.augment": "none",
    "training.start": "clean",
    "training.rho": 2.0,
    "training.eta_f": 0.01,
    "holdout.share": 0.2,
    "holdout.per_class": 3,
    "defense.name": "ft",
    "defense.rho_min": 0.5,
    "defense.schedule.kind": "cosine",
    "defense.schedule.period": 3.0,
    "defense.schedule.per": "step",
    "defense.augment": "none",
}


@pytest.mark.parametrize("leaf", [key for key in leaves(resolve()) if key != "data.data_dir"])
def test_every_other_leaf_changes_the_name_of_the_run(leaf):
    config = resolve()
    value = leaves(config)[leaf]
    if leaf not in OTHER_WORDS:
        value = (
            not value
            if isinstance(value, bool)
            else value + 1
            if isinstance(value, int)
            else value / 2 + 0.01
        )
    other = resolve(f"--{leaf}", str(OTHER_WORDS.get(leaf, value)))
    assert other.run_id != config.run_id
    of_victim = not leaf.startswith(("defense", "holdout")) or leaf == "holdout.held_out"
    assert (other.victim_id != config.victim_id) == of_victim


def test_a_holdout_that_the_attacker_does_without_is_part_of_the_victims_name():
    held_out = [
        resolve("--holdout.held_out", "true", "--holdout.per_class", n).victim_id
        for n in ("5", "6")
    ]
    assert len({*held_out, resolve("--holdout.per_class", "5").victim_id}) == 3


NAMES = st.sampled_from(["digits", "cifar10", "my pictures", "ünïcode", "none", "1e3"])


def options(package, name, depth=0):
    """Draw options of a method from the types of its arguments; a method that refuses them is tried again."""
    known = schema.parameters(package, name)
    return st.fixed_dictionaries(
        {k: value(p, depth) for k, p in known.items() if p.default is inspect.Parameter.empty},
        optional={
            k: value(p, depth) for k, p in known.items() if p.default is not inspect.Parameter.empty
        },
    ).map(lambda drawn: {"name": name, **drawn})


def value(parameter, depth):
    kinds = {bool: st.booleans(), int: st.integers(0, 100), float: st.floats(0, 1)}
    annotation = parameter.annotation
    if annotation is Schedule:
        kind = st.sampled_from(["constant", "cosine", "plateau"])
        return st.builds(
            dict, kind=kind, per=st.sampled_from(["epoch", "step"]), factor=st.floats(1e-9, 1)
        )
    if schema._is_defense(annotation):
        return method("bdjax.defenses", depth + 1)
    if type(None) in typing.get_args(annotation) or type(parameter.default) not in kinds:
        return st.just(parameter.default)
    return kinds[type(parameter.default)]


def method(package, depth=0):
    names = [name for name in registry.names(package) if depth < 2 or name != "chain"]
    return st.sampled_from(names).flatmap(lambda name: options(package, name, depth))


plain_configs = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "data": NAMES
        | st.builds(
            dict, name=NAMES, image_size=st.none() | st.integers(1, 64), flip=st.booleans()
        ),
        "model": method("bdjax.models"),
        "attack": method("bdjax.attacks"),
        "poison": st.sampled_from(["nearest", "truncate"]),
        "training": st.builds(
            dict, epochs=st.integers(0, 1000), learning_rate=st.floats(1e-12, 1e12)
        ),
        "holdout": st.floats(0, 1)
        | st.builds(dict, per_class=st.integers(1, 500), held_out=st.booleans()),
        "defense": method("bdjax.defenses"),
    },
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(plain_configs)
def test_a_resolved_config_survives_its_own_file(tmp_path_factory, values):
    try:
        config = configs.resolve(values)
    except InputError:
        assume(False)
    assert configs.resolve(config.to_dict()) == config
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    file.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    again = configs.resolve(schema.read(file))
    assert (again, again.run_id, again.victim_id) == (config, config.run_id, config.victim_id)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(plain_configs, plain_configs)
def test_different_configs_have_different_names(one, other):
    try:
        one, other = configs.resolve(one), configs.resolve(other)
    except InputError:
        assume(False)
    assert (one == other) == (one.run_id == other.run_id)


# --- Schedules and choices -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper", "reference_code"])
def test_a_schedule_of_another_kind_does_not_keep_a_period(preset):
    """SFT's default drops every 40 epochs; a cosine asked for instead lasts as long as the run."""
    defense = {"name": "sft", "preset": preset}
    asked = resolve("--defense.schedule", "cosine", defense=defense).defense.options["schedule"]
    assert (asked.kind, asked.period) == ("cosine", None)
    assert resolve(defense={"name": "sft"}).defense.options["schedule"].period == 40
    same = resolve("--defense.schedule.factor", "0.5", defense={"name": "sft"}).defense.options[
        "schedule"
    ]
    assert (same.kind, same.period, same.factor) == ("step", 40, 0.5)
    over_a_file = resolve(
        "--defense.schedule", "step", "--defense.schedule.period", "5", defense=defense
    )
    assert over_a_file.defense.options["schedule"].period == 5


def test_the_values_that_auto_tries_are_part_of_a_runs_name(monkeypatch):
    from bdjax.defenses import ft_sam

    config = resolve("--defense.rho", "auto")
    name = config.run_id
    monkeypatch.setitem(ft_sam.STRENGTHS, "rho", (1.0, 2.0))
    assert config.run_id != name
