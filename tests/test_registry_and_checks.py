"""The folder is the registry; a mistake is answered in one sentence that names it and the nearest right word."""

from __future__ import annotations

import importlib
import math
import os
from pathlib import Path

import numpy as np
import pytest

from bdjax import attacks, checks, data, defenses, models, registry
from bdjax.checks import InputError
from bdjax.runs import schema
from bdjax.types import Model

FOLDERS = {
    "bdjax.attacks": attacks,
    "bdjax.defenses": defenses,
    "bdjax.models": models,
    "bdjax.data.sources": data,
}
EVERY = [(package, name) for package in FOLDERS for name in registry.names(package)]


def test_the_first_methods_are_there():
    assert {"badnets", "blended"} <= set(attacks.names())
    assert {"none", "ft", "ft_sam"} <= set(defenses.names())
    assert {"small_cnn", "preact_resnet18"} <= set(models.names())
    assert {"digits", "cifar10"} <= set(data.names())


@pytest.mark.parametrize(("package", "module"), FOLDERS.items())
def test_names_are_the_public_files_in_order(package, module):
    folder = Path(importlib.import_module(package).__path__[0])
    assert module.names() == sorted(path.stem for path in folder.glob("[!_]*.py"))


def test_a_folder_is_read_again_only_when_it_has_changed(tmp_path, monkeypatch):
    (tmp_path / "growing").mkdir()
    (tmp_path / "growing" / "__init__.py").touch()
    (tmp_path / "growing" / "first.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.names("growing") == ["first"]
    with monkeypatch.context() as patch:
        patch.setattr(
            registry.pkgutil, "iter_modules", lambda path: pytest.fail("it was read again")
        )
        assert registry.names("growing") == ["first"]
    (tmp_path / "growing" / "second.py").touch()
    os.utime(tmp_path / "growing", (1, 1))  # the clock of a file system may be coarse
    assert registry.names("growing") == ["first", "second"]


@pytest.mark.parametrize(("package", "name"), EVERY)
def test_each_file_has_the_function_of_its_name_and_a_summary(package, name):
    assert callable(registry.factory(package, name))
    summary = registry.summary(package, name)
    assert summary.endswith(".")


@pytest.mark.parametrize(("package", "name"), EVERY)
def test_each_file_has_a_paper_preset_that_is_its_own_defaults(package, name):
    assert registry.presets(package, name)["paper"] == {}


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (
            ("badnet",),
            {},
            "no 'badnet' in attacks (did you mean 'badnets'?); known: badnets, blended",
        ),
        (("zzz",), {}, "no 'zzz' in attacks; known: badnets, blended"),
        (
            ("badnets",),
            {"sise": 3},
            "badnets has no option 'sise' (did you mean 'size'?); known: label_map, ",
        ),
        (("badnets",), {"preset": "papr"}, "got 'papr' (did you mean 'paper'?)."),
        (("_label_maps",), {}, "no '_label_maps' in attacks"),
    ],
)
def test_a_wrong_word_is_answered_with_the_nearest(arguments, options, words):
    with pytest.raises(InputError) as error:
        registry.create("bdjax.attacks", *arguments, **options)
    assert words in str(error.value)


def test_an_option_that_is_already_given_by_position_is_unknown(spec):
    with pytest.raises(InputError, match="small_cnn has no option 'spec'; known: width, dtype"):
        registry.create("bdjax.models", "small_cnn", spec, spec=spec)


def package_of(tmp_path, monkeypatch, name: str, code: str) -> str:
    """A package with one file."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "top.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_file_without_the_function_of_its_name_is_refused(tmp_path, monkeypatch):
    package = package_of(tmp_path, monkeypatch, "misnamed", "def tops():\n    return 1\n")
    with pytest.raises(InputError) as error:
        registry.create(package, "top")
    wanted = "top.py must have the function of its name, top (did you mean 'tops'?)."
    assert str(error.value) == f"{tmp_path / package}/{wanted}"


def test_an_option_without_a_type_is_refused(tmp_path, monkeypatch):
    package = package_of(tmp_path, monkeypatch, "untyped", "def top(speed=1):\n    return speed\n")
    with pytest.raises(
        InputError, match=r"untyped\.top\.top must have a type for its argument 'speed'"
    ):
        schema.parameters(package, "top")


def test_options_go_over_the_preset_and_the_preset_over_the_defaults(tmp_path, monkeypatch):
    (tmp_path / "toys").mkdir()
    (tmp_path / "toys" / "__init__.py").touch()
    (tmp_path / "toys" / "_hidden.py").touch()
    (tmp_path / "toys" / "top.py").write_text(
        'PRESETS = {"fast": {"speed": 2, "color": "red"}}\n'
        'def top(speed=1, color="blue", size=3):\n    """Spin.\n\n    More."""\n    return speed, color, size\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.names("toys") == ["top"]
    assert registry.summary("toys", "top") == "Spin."
    assert registry.create("toys", "top") == (1, "blue", 3)
    assert registry.create("toys", "top", preset="fast", color="green") == (2, "green", 3)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (checks.non_negative, [0, 0.0, 3], [-1e-9, -1]),
        (checks.positive, [1e-9, 3], [0, 0.0, -1]),
        (checks.unit_interval, [0, 0.5, 1], [-0.1, 1.0001]),
        (checks.below_one, [0, 0.999], [1, 1.0, -0.1]),
        (checks.integer, [0, 7, np.int32(3)], [-1]),
    ],
)
def test_ranges(check, good, bad):
    for value in good:
        check(some_name=value)
    for value in bad:
        with pytest.raises(InputError, match=r"some_name must .*got .*" + str(value)):
            check(some_name=value)


@pytest.mark.parametrize(
    "check", [checks.non_negative, checks.positive, checks.unit_interval, checks.below_one]
)
@pytest.mark.parametrize("value", ["1", None, True, math.nan, math.inf, [0.5]])
def test_what_is_no_finite_number_is_refused(check, value):
    with pytest.raises(InputError, match=r"rate must be (a number|finite), got"):
        check(rate=value)


@pytest.mark.parametrize("value", ["1", None, True, 1.0, [1]])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(InputError, match="size must be a whole number, got"):
        checks.integer(size=value)


def test_every_value_is_checked_not_only_the_first():
    with pytest.raises(InputError, match="second must be 0 or more"):
        checks.non_negative(first=1, second=-1)


def test_a_minimum():
    checks.integer(2, size=2)
    with pytest.raises(InputError, match="size must be 2 or more, got 1"):
        checks.integer(2, size=1)


def test_a_maximum():
    """What has no other is that of a 32-bit integer."""
    checks.integer(2, 5, size=5)
    checks.integer(size=2**31 - 1)
    with pytest.raises(InputError, match="size must be at most 5, got 6"):
        checks.integer(2, 5, size=6)
    for value in (2**31, 2**63 - 1, 10**400):
        with pytest.raises(InputError, match="size must be at most 2147483647, got"):
            checks.integer(size=value)


def test_one_of():
    checks.one_of(("apple", "pear"), fruit="pear")
    with pytest.raises(
        InputError, match=r"fruit must be one of apple, pear; got 'aple' \(did you mean 'apple'\?\)"
    ):
        checks.one_of(("apple", "pear"), fruit="aple")
    with pytest.raises(InputError, match=r"got 'zzz'\.$"):
        checks.one_of(("apple", "pear"), fruit="zzz")
    with pytest.raises(InputError, match="got 3"):
        checks.one_of(("apple", "pear"), fruit=3)


def test_what_is_not_of_a_kind_is_told_with_what_it_lacks():
    checks.is_a(int, "a number", some_name=3)
    with pytest.raises(InputError, match=r"^some_name must be a number, got None\.$"):
        checks.is_a(int, "a number", some_name=None)
    with pytest.raises(
        InputError, match=r"must be a model, got 3, which has no apply, feat.* spec\.$"
    ):
        checks.is_a(Model, "a model", some_name=3)


@pytest.mark.parametrize(
    ("make", "kind"),
    [(attacks.create, "Attack"), (lambda name, spec: models.create(name, spec), "Model")],
)
def test_a_file_whose_function_returns_something_else_is_refused(make, kind, spec, monkeypatch):
    monkeypatch.setattr(registry, "create", lambda *args, **options: None)
    name = {"Attack": "badnets", "Model": "small_cnn"}[kind]
    with pytest.raises(
        InputError, match=rf"what {name} returns must be a bdjax\.types\.{kind}, got"
    ):
        make(name, spec=spec)


@pytest.mark.parametrize(
    ("options", "message", "named"),
    [
        (("size",), "size must be 1.", "attack.size must be 1."),
        ((), "no such file.", "attack: no such file."),
    ],
)
def test_a_section_is_put_before_the_argument_it_holds(options, message, named):
    with pytest.raises(InputError) as error, checks.in_section("attack", options):
        raise InputError(message)
    assert str(error.value) == named


def test_an_input_error_is_a_value_error():
    assert issubclass(InputError, ValueError)
