"""A victim that was trained elsewhere: the same numbers as of one that was trained here, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from bdjax import cli, report, saved
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.models.foreign import keys, writing
from bdjax.runs import config as configs
from bdjax.runs import given, schema
from bdjax.runs.given import VictimConfig

pytestmark = pytest.mark.usefixtures("no_cache_of_the_user")

SIZES = ("--model.width", "4", "--training.epochs", "2")
DEFENSE = ("--defense.epochs", "2")


def bdjax(*words):
    """Call `bdjax` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main([*words, "--quiet"])
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


def records(folder):
    found = {}
    for file in folder.glob("*/record.json"):
        content = json.loads(file.read_text())
        found[content["config"]["defense"]["name"]] = content
    return found


@pytest.fixture(scope="module")
def there(tmp_path_factory):
    """A run, its victim as a file of PyTorch's, and the run of that file."""
    folder = tmp_path_factory.mktemp("given")
    assert bdjax("run", *SIZES, *DEFENSE, "--out", str(folder / "here")).code == 0
    here = records(folder / "here")
    network = saved.restore(folder / "here" / here["ft_sam"]["run_id"])
    file = folder / "suspect.pt"
    writing.write_torch(file, keys.state_dict(network.plan.model, network.victim))
    words = ("run", "--victim", str(file), *DEFENSE, "--out", str(folder / "given"))
    done = bdjax(*words)
    assert done.code == 0, done.err
    return SimpleNamespace(
        folder=folder, file=file, words=words, here=here, given=records(folder / "given"), done=done
    )


@pytest.mark.parametrize("defense", ["none", "ft", "ft_sam"])
def test_the_numbers_are_those_of_the_network_that_was_trained_here(there, defense):
    here, given = there.here[defense], there.given[defense]
    assert given["metrics"] == here["metrics"]
    assert given["stealth"] == here["stealth"]


def test_the_network_is_recognized_and_nothing_is_said_of_its_training(there):
    content = there.given["ft_sam"]
    assert content["config"]["model"] == there.here["ft_sam"]["config"]["model"]
    assert content["config"]["victim"]["file"] == str(there.file)
    assert "training" not in content["config"]
    assert "victim" not in content
    assert content["data"]["poisoned_count"] is None
    assert configs.resolve(content["config"]).run_id == content["run_id"]


def test_it_can_be_reported_and_loaded_again(there):
    folder = there.folder / "given" / there.given["ft_sam"]["run_id"]
    (record,) = report.load(folder)
    assert record.before == there.here["ft_sam"]["metrics"]["before"]
    networks = saved.restore(folder)
    layout = keys.state_dict(networks.plan.model, networks.victim)
    known = saved.restore(there.folder / "here" / there.here["ft_sam"]["run_id"]).victim
    for name, array in keys.state_dict(networks.plan.model, known).items():
        np.testing.assert_array_equal(layout[name], array)


def test_a_sweep_over_rho_shares_the_file(there, tmp_path):
    done = bdjax(
        *("sweep", "--victim", str(there.file), *DEFENSE, "--over", "defense.rho=1,2"),
        *("--out", str(tmp_path)),
    )
    assert done.code == 0, done.err
    befores = [json.loads(file.read_text()) for file in tmp_path.glob("*/record.json")]
    assert len(befores) >= 2
    for content in befores:
        assert content["metrics"]["before"] == there.here["ft_sam"]["metrics"]["before"]


def test_another_file_of_the_same_name_is_refused(there, tmp_path):
    file = tmp_path / "suspect.pt"
    file.write_bytes(there.file.read_bytes())
    words = ("run", "--victim", str(file), "--defense", "none", "--out", str(tmp_path / "runs"))
    assert bdjax(*words).code == 0
    (content,) = records(tmp_path / "runs").values()
    network = saved.restore(tmp_path / "runs" / content["run_id"])
    arrays = keys.state_dict(network.plan.model, network.victim)
    writing.write_torch(file, {name: np.asarray(array) * 0 for name, array in arrays.items()})
    done = bdjax(*words)
    assert done.code == 2
    assert "the data have changed since" in done.err
    assert f"victim.file {file}" in done.err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--training.epochs", "1"), "training must be left out where victim names a network"),
        (("--attack", "lira"), "attack must be one whose trigger is a formula"),
        (("--defense", "abl"), "nobody has it"),
        (("--model", "preact_resnet18"), "it lacks"),
        (("--victim.normalization", "0.5"), "victim.normalization: std must be given"),
        (("--victim.normalization", "0.5,0.5/0.1,0.1"), "victim.normalization: mean must be"),
        (("--victim.part", "other"), "other"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(there, tmp_path, words, why):
    done = bdjax("run", "--victim", str(there.file), *words, "--out", str(tmp_path))
    assert done.code == 2
    assert re.search(re.escape(why), done.err), done.err
    assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_none_is_named(tmp_path):
    wanted = ["--victim", str(tmp_path / "none.pt")]
    with pytest.raises(InputError, match=r"none\.pt"):
        configs.resolve(schema.overrides(wanted))


def test_a_config_beside_the_file_is_known_by_its_content_where_it_decides(tmp_path):
    file, beside = tmp_path / "suspect.pt", tmp_path / "config.json"
    victim = VictimConfig(str(file))
    assert victim.files == {"victim.file": file}
    beside.write_text("{}", encoding="utf-8")
    assert victim.files == {"victim.file": file, "victim config.json": beside}
    assert VictimConfig(str(file), normalization="none").files == {"victim.file": file}


def test_normalization_is_what_is_asked_for(there, spec):
    section = {"file": str(there.file), "normalization": "0.1,0.2,0.3/0.4,0.5,0.6"}
    config = configs.resolve({"victim": section})
    assert config.victim.normalized(spec).modality.mean == (0.1, 0.2, 0.3)
    assert config.victim.normalized(spec).modality.std == (0.4, 0.5, 0.6)
    plain = configs.resolve({"victim": {**section, "normalization": "none"}})
    assert plain.victim.normalized(spec).modality.std == (1.0, 1.0, 1.0)
    own = configs.resolve({"victim": {**section, "normalization": "data"}})
    assert own.victim.normalized(spec) == spec


def test_the_family_says_the_normalization_of_imagenets_classes(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(given.normalization, "known", lambda *_, **more: seen.update(more))
    arrays = {"cls_token": np.zeros((1, 1, 8), np.float32)}
    writing.write_torch(tmp_path / "a.pt", arrays)
    spec = image_spec("x", (8, 8, 3), 10, (0.0,) * 3, (1.0,) * 3)
    assert given.VictimConfig(str(tmp_path / "a.pt")).normalized(spec) == spec
    assert (seen["network"], list(seen["names"])) == ("", ["cls_token"])
