"""The contact sheet: which images, which scale, what is written, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bdjax import cli, data, poison
from bdjax.checks import InputError
from bdjax.report import contact_sheet
from bdjax.runs import config as configs
from bdjax.runs import plans, samples, schema, show
from bdjax.runs.run import Execution
from bdjax.runs.show import Shown
from bdjax.stealth import Stealth


def shown(change=51, name="badnets"):
    clean = np.full((8, 8, 8, 3), 100, np.uint8)
    triggered = clean.copy()
    triggered[:, 6:, 6:] += np.uint8(change)
    return Shown(name, clean, triggered, Stealth(30.0, 0.9, change / 255, 1.5, 4 / 64))


def test_the_images_are_those_of_the_test_split_with_the_runs_own_trigger(tmp_path):
    config = configs.resolve(
        schema.overrides(["--attack", "blended", "--attack.test_alpha", "0.5"])
    )
    got = show.show(config, Execution(tmp_path))
    plan = plans.prepare(config)
    test = data.load("digits").test
    rows = samples.sample_rows(test.label, test.valid, 8)
    np.testing.assert_array_equal(got.clean, test.input[rows])
    stamp = poison.Stamp(plan.attack.test_trigger, plan.trigger_state)
    np.testing.assert_array_equal(
        got.triggered, stamp(plans.key_for(config, "test"), jnp.asarray(got.clean))
    )
    assert len(set(test.label[rows])) == 8, "of different classes"
    assert not list(tmp_path.iterdir()), "nothing is trained for a trigger that is not learned"


@pytest.mark.parametrize(("change", "factor"), [(0, 100), (1, 100), (12, 10), (64, 1), (150, 1)])
def test_the_residual_is_scaled_to_be_seen(change, factor):
    assert contact_sheet.scale(np.full((4, 4), change)) == factor


def test_a_sheet_is_written_and_is_the_same_again(tmp_path):
    files = [
        contact_sheet.draw([shown(), shown(12, "faint")], tmp_path / "a" / name)
        for name in ("1.png", "2.png")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].read_bytes().startswith(b"\x89PNG")


def test_clean_images_that_differ_have_a_row_of_their_own():
    other = shown()._replace(clean=np.zeros((8, 8, 8, 3), np.uint8))
    assert [name for name, *_ in contact_sheet._lines([shown(), shown(), other])] == [
        "clean", "badnets", "residual × 2", "badnets", "residual × 2", "clean", "badnets", "residual × 1",
    ]  # fmt: skip


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"file must end in \.png, \.pdf, \.svg; got '.*sheet\.jpg'"
    ):
        contact_sheet.draw([shown()], tmp_path / "sheet.jpg")
    with pytest.raises(InputError, match="no attack"):
        contact_sheet.draw([], tmp_path / "sheet.png")


def test_the_command_draws_attacks_by_name(tmp_path, capsys):
    file = tmp_path / "sheet.svg"
    words = [
        "show",
        "badnets",
        "blended",
        "--file",
        str(file),
        "--out",
        str(tmp_path / "runs"),
        "--quiet",
    ]
    assert cli.main(words) == 0
    assert capsys.readouterr().out.strip() == str(file)
    assert "<svg" in file.read_text()
    assert cli.main(["show", "badnet", "--out", str(tmp_path)]) == 2
    assert "did you mean 'badnets'?" in capsys.readouterr().err


def test_an_option_of_one_attack_is_left_out_for_the_others_and_refused_where_none_has_it(
    tmp_path, capsys
):
    words = ["--file", str(tmp_path / "sheet.svg"), "--out", str(tmp_path / "runs"), "--quiet"]
    assert cli.main(["show", "badnets", "blended", "--attack.size", "2", *words]) == 0
    for attacks in (["blended"], ["blended", "sig"]):  # badnets, the default, has it
        assert cli.main(["show", *attacks, "--attack.size", "2", *words]) == 2
        assert "unknown key 'attack.size'; attack 'blended' has" in capsys.readouterr().err
    assert cli.main(["show", "blended", "--attack", "badnets", *words]) == 2
    assert (
        "attack.name must be left out where the attack is named: blended" in capsys.readouterr().err
    )


def test_a_file_that_cannot_be_drawn_is_refused_before_anything_is_trained(tmp_path, capsys):
    assert cli.main(["show", "lf", "--file", "sheet.jpg", "--out", str(tmp_path / "runs")]) == 2
    assert "file must end in" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_trigger_that_is_fitted_first_needs_no_victim(tmp_path):
    words = ["--attack", "lf", "--attack.passes", "1", "--attack.images", "4", "--model.width", "2"]
    config = configs.resolve(schema.overrides([*words, "--training.epochs", "1"]))
    got = show.show(config, Execution(tmp_path))
    assert got.stealth.changed_share > 0.5
    (victim,) = (tmp_path / "victims").iterdir()
    assert {path.name for path in victim.glob("checkpoints*")} == {
        "checkpoints-surrogate",
        "checkpoints-trigger",
    }
    again = show.show(config, Execution(tmp_path))
    np.testing.assert_array_equal(again.triggered, got.triggered)


def write_pets(root):
    """Three images of each of three classes; far too few for a default batch or holdout."""
    for split in ("train", "test"):
        for number, name in enumerate(("ant", "cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (8, 8), (40 * number, 20 * index, 9)).save(
                    root / split / name / f"{index}.png"
                )


def test_a_trigger_by_formula_asks_nothing_of_training_holdout_or_defense(tmp_path):
    write_pets(tmp_path / "pets")
    words = [
        "--data",
        str(tmp_path / "pets"),
        "--training.batch_size",
        "500",
        "--attack.target_label",
        "dog",
    ]
    config = configs.resolve(
        schema.overrides([*words, "--holdout.per_class", "99", "--attack.poison_rate", "1"])
    )
    with pytest.raises(InputError):
        plans.prepare(config)
    got = show.show(config, Execution(tmp_path / "runs"))
    assert got.target == "dog"
    assert got.clean.shape == (8, 8, 8, 3)
    assert not (tmp_path / "runs").exists()


def test_the_heading_names_the_target(tmp_path, monkeypatch):
    write_pets(tmp_path / "pets")
    headings = []
    monkeypatch.setattr(
        contact_sheet, "draw", lambda shown, file, heading: headings.append(heading) or file
    )
    for words in (["badnets", "blended"], ["badnets", "--attack.label_map", "all_to_all"]):
        words = [
            "show",
            *words,
            "--file",
            str(tmp_path / "a.png"),
            "--data",
            str(tmp_path / "pets"),
        ]
        target = [] if "all_to_all" in words else ["--attack.target_label", "cat"]
        assert cli.main([*words, *target, "--out", str(tmp_path / "runs"), "--quiet"]) == 0
    assert headings == ["pets, target class cat", "pets"]


def test_a_target_that_is_no_class_is_refused_in_one_line(tmp_path, capsys):
    write_pets(tmp_path / "pets")
    words = ["show", "badnets", "--data", str(tmp_path / "pets"), "--attack.target_label", "cut"]
    assert (
        cli.main([*words, "--file", str(tmp_path / "a.png"), "--out", str(tmp_path / "runs")]) == 2
    )
    error = capsys.readouterr().err
    assert error.startswith(
        "bdjax: attack.target_label must be a class of pets, by number or by name (ant, cat, dog);"
    )
    assert error.count("\n") == 1
