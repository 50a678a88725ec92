"""A run from beginning to end on digits: what it leaves behind, what it shares, what it does not do twice."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

from bdjax import cli, data
from bdjax.checks import InputError
from bdjax.devices import compilation
from bdjax.runs import config as configs
from bdjax.runs import inputs, plans, run, samples, schema, victim
from bdjax.runs.at_hand import AtHand
from bdjax.runs.run import Execution
from bdjax.train import batches

pytestmark = pytest.mark.usefixtures("no_cache_of_the_user")

# Sizes that every run of this file shares, so that each network is compiled once.
EPOCHS = 3
SIZES = ("--model.width", "4", "--training.epochs", str(EPOCHS), "--defense.epochs", str(EPOCHS))
TRAIN, TEST, CLASSES, OF_TARGET = 1347, 450, 10, 45
HOLDOUT = CLASSES * data.defaults("digits")["holdout"]["per_class"]
# Of an epoch on the holdout
STEPS = -(-HOLDOUT // data.defaults("digits")["defense"]["batch_size"])


class Ran(NamedTuple):
    code: int
    out: str
    err: str
    folder: Path

    def record(self, defense="ft_sam"):
        (file,) = self.folder.glob(f"digits-badnets-{defense}-*/record.json")
        return json.loads(file.read_text())


def bdjax(folder, *words):
    """Call `bdjax run` in this process with the runs in a folder."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["run", *words, "--quiet", "--out", str(folder)])
    return Ran(code, out.getvalue(), err.getvalue(), folder)


def resolve(*words):
    return configs.resolve(schema.overrides([*SIZES, *words]))


def results(record):
    """Return what repeats exactly: the metrics, and the history and costs without seconds."""
    history = [{k: v for k, v in row.items() if "seconds" not in k} for row in record["history"]]
    return record["run_id"], record["metrics"], history, record["cost"]["gradient_evaluations"]


def snapshot(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def compiled():
    """The names of what was compiled for the first run."""
    return []


@pytest.fixture(scope="module")
def first(tmp_path_factory, compiled, no_other_programs):
    """The run that most tests look at: FT-SAM on BadNets, with its controls.

    Nothing is compiled before it: tests of other files may have made the same programs in this process.
    """

    def listen(event, duration_secs, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    ran = bdjax(tmp_path_factory.mktemp("first"), *SIZES)
    jax.monitoring.unregister_event_duration_listener(listen)
    assert (ran.code, ran.err) == (0, "")
    return ran


@pytest.fixture
def copied(first, tmp_path):
    """A copy of the first run that a test may change."""
    return Path(shutil.copytree(first.folder, tmp_path / "copy"))


# --- What a run leaves behind ----------------------------------------------------------------------------------------


def test_a_victim_that_rows_share_is_tested_once(copied, monkeypatch):
    for file in copied.glob("*/record.json"):
        file.unlink()
    tested, score = [], victim.score
    for module in (run, victim):
        monkeypatch.setattr(module, "score", lambda *given: tested.append(1) or score(*given))
    run.run_with_controls(resolve(), Execution(copied))
    assert len(tested) == 1 + 3  # the victim, and what each row ends with


def test_a_run_makes_a_folder_for_itself_and_each_control_and_one_for_the_victim(first):
    config = resolve()
    rows = [config.with_defense(name="none"), config.control(), config]
    assert {path.name for path in first.folder.iterdir()} == {
        "victims",
        *(row.run_id for row in rows),
    }
    assert [path.name for path in (first.folder / "victims").iterdir()] == [config.victim_id]
    for row in rows:
        files = {
            path.name
            for path in (first.folder / row.run_id).iterdir()
            if not path.name.startswith(".")
        }
        assert files - {"checkpoints-0"} == {
            "config.yaml",
            "data.json",
            "record.json",
            "samples.npz",
        }
        assert configs.resolve(schema.read(first.folder / row.run_id / "config.yaml")) == row


def test_the_table_has_a_line_for_each_and_names_the_record(first):
    lines = first.out.splitlines()
    assert [line.split()[0] for line in lines[3:6]] == ["none", "ft", "ft_sam"]
    assert lines[-1] == f"record: {first.folder / resolve().run_id / 'record.json'}"


def test_a_record_has_everything_that_a_reader_needs(first):
    record = first.record()
    assert (record["schema_version"], record["status"]) == (1, "finished")
    assert (record["run_id"], record["victim_id"]) == (resolve().run_id, resolve().victim_id)
    assert record["config"] == resolve().to_dict()
    assert {"python", "jax", "jaxlib", "flax", "optax", "numpy"} <= record["versions"].keys()
    device, first_device = record["device"], jax.devices()[0]
    assert (device["platform"], device["kind"], device["count"]) == (
        first_device.platform,
        first_device.device_kind,
        1,
    )
    assert device["host_peak_bytes"] > 2**20
    assert "device_peak_bytes" in device
    assert record["data"] == {
        "name": "digits",
        "fingerprint": data.fingerprint(data.load("digits")),
        "shape": [8, 8, 1],
        "num_classes": CLASSES,
        "class_names": list(data.load("digits").spec.class_names),
        "target_class": "0",
        "train_count": TRAIN,
        "test_count": TEST,
        "test_majority_count": 46,
        "poisoned_count": round(0.1 * TRAIN),
        "holdout_count": HOLDOUT,
    }
    assert [row["epoch"] for row in record["history"]] == [1, 2, 3]


@pytest.mark.parametrize("defense", ["none", "ft", "ft_sam"])
def test_counts_and_rates_and_rating_agree(first, defense):
    metrics = first.record(defense)["metrics"]
    for when in (metrics["before"], metrics["after"]):
        assert (when["clean_total"], when["attack_total"]) == (TEST, TEST - OF_TARGET)
        assert when["clean_accuracy"] == pytest.approx(when["clean_correct"] / TEST, abs=1e-7)
        assert when["attack_success_rate"] == pytest.approx(
            when["attack_hits"] / when["attack_total"], abs=1e-7
        )
        assert when["robust_accuracy"] == pytest.approx(
            when["robust_correct"] / when["attack_total"], abs=1e-7
        )
    drop = {name: metrics["before"][name] - metrics["after"][name] for name in metrics["before"]}
    rating = (max(0, drop["attack_success_rate"]) - max(0, drop["clean_accuracy"]) + 1) / 2
    assert metrics["defense_effectiveness_rating"] == pytest.approx(rating, abs=1e-6)


def test_no_defense_changes_nothing_and_every_row_starts_from_the_same_victim(first):
    none = first.record("none")["metrics"]
    assert none["before"] == none["after"]
    assert none["defense_effectiveness_rating"] == 0.5
    assert (
        first.record("ft")["metrics"]["before"]
        == first.record("ft_sam")["metrics"]["before"]
        == none["before"]
    )
    assert first.record("ft")["metrics"]["after"] != first.record("ft_sam")["metrics"]["after"]


def test_a_precision_of_products_makes_a_run_of_its_own_and_the_record_says_what_was_in_force(
    first, tmp_path
):
    """Of a victim that is not trained, as compiling for another precision takes as long as the run."""
    words = ("--training.epochs", "0", "--defense", "none", "--matmul_precision", "tensorfloat32")
    ran = bdjax(tmp_path, *SIZES[:2], *words, "--deterministic")
    record, plain = ran.record("none"), first.record("none")
    own, without = (
        configs.resolve(schema.overrides([*SIZES[:2], *some])) for some in (words, words[:-2])
    )
    assert (record["run_id"], record["victim_id"]) == (own.run_id, own.victim_id)
    assert own.run_id != without.run_id
    assert own.victim_id != without.victim_id
    assert (record["config"].pop("matmul_precision"), "matmul_precision" in plain["config"]) == (
        "tensorfloat32",
        False,
    )
    assert [found["device"]["matmul_precision"] for found in (record, plain)] == [
        "tensorfloat32",
        None,
    ]
    assert record["device"]["compiler_options"] == plain["device"]["compiler_options"]
    assert "xla_cpu_experimental_ynn_fusion_type=" in plain["device"]["compiler_options"]
    assert jax.config.jax_default_matmul_precision is None


@pytest.mark.slow
def test_a_traced_run_has_the_same_results_and_a_table_of_operations(first, tmp_path):
    words = ("--defense", "none", "--profile", str(tmp_path / "traces"))
    traced = bdjax(tmp_path, *SIZES[:4], *words)
    assert (traced.code, traced.err) == (0, "")
    assert results(traced.record("none")) == results(first.record("none"))
    assert {path.name for path in (tmp_path / "traces").iterdir()} == {
        "badnets-victim",
        "operations.json",
    }
    assert re.search(r"badnets-victim:\nshare +ms +times +operation +from\n *\d+\.\d%", traced.out)
    again = bdjax(tmp_path, *SIZES[:4], *words)
    assert again.code == 0
    assert "no trace was taken: nothing was trained for two epochs in this call" in again.err


def test_all_of_a_run_is_computed_in_its_precision_and_with_its_kernels(tmp_path, monkeypatch):
    seen = []
    prepare = plans.prepare
    monkeypatch.setattr(
        run, "carry_out", lambda *_: [seen.append(jax.config.jax_default_matmul_precision)]
    )
    monkeypatch.setattr(
        compilation.flags, "DETERMINISTIC", {"cpu": {"xla_gpu_deterministic_ops": True}}
    )
    monkeypatch.setattr(
        plans, "prepare", lambda *of: seen.append(compilation.options_in_force()) or prepare(*of)
    )
    config = configs.resolve({"defense": "none", "matmul_precision": "float32"})
    run.run_with_controls(config, Execution(tmp_path, deterministic=True))
    options, precision = seen
    assert (precision, options["xla_gpu_deterministic_ops"]) == ("float32", True)


def test_the_cost_counts_every_gradient(first):
    costs = {name: first.record(name)["cost"] for name in ("none", "ft", "ft_sam")}
    assert {name: cost["gradient_evaluations"] for name, cost in costs.items()} == {
        "none": 0,
        "ft": EPOCHS * STEPS,
        "ft_sam": 2 * EPOCHS * STEPS,
    }
    assert {name: cost["epochs"] for name, cost in costs.items()} == {
        "none": 0,
        "ft": EPOCHS,
        "ft_sam": EPOCHS,
    }
    assert {name: cost["batch_size"] for name, cost in costs.items()} == {
        "none": None,
        "ft": 100,
        "ft_sam": 100,
    }
    assert first.record()["victim"]["batch_size"] == 64
    assert costs["ft_sam"]["run_seconds"] > 0
    assert first.record()["victim"]["gradient_evaluations"] == EPOCHS * (TRAIN // 64)


def test_an_epoch_is_compiled_once_for_the_victim_and_once_for_each_defense(first, compiled):
    assert len([name for name in compiled if "epoch" in name]) == 3


def test_the_samples_are_images_that_the_attack_aims_at(first):
    with np.load(first.folder / resolve().run_id / "samples.npz") as file:
        there = dict(file)
    assert there["clean"].shape == there["triggered"].shape == (samples.SAMPLES, 8, 8, 1)
    assert 0 not in there["label"]  # the target
    assert set(there["label"]) == set(range(1, CLASSES))
    assert (there["triggered"][:, 5:, 5:] == 255).all()
    kept = there["triggered"].copy()
    kept[:, 5:, 5:] = there["clean"][:, 5:, 5:]
    np.testing.assert_array_equal(kept, there["clean"])
    for guesses in ("clean_before", "clean_after", "triggered_before", "triggered_after"):
        assert there[guesses].shape == (samples.SAMPLES,)


def test_a_report_reads_what_runs_write(first, capsys):
    assert cli.main(["report", str(first.folder), "--format", "csv"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert "attack_success_rate_mean" in head
    assert [line.split(",")[3] for line in lines] == ["none", "ft", "ft_sam"]


# --- Doing it again --------------------------------------------------------------------------------------------------


def test_a_finished_run_returns_at_once_and_touches_no_file(first, monkeypatch):
    before = snapshot(first.folder)
    monkeypatch.setattr(plans, "prepare", None)  # not even the data are loaded
    again = bdjax(first.folder, *SIZES)
    assert (again.code, again.out) == (0, first.out)
    assert snapshot(first.folder) == before


def test_a_runs_own_config_repeats_its_numbers(first, tmp_path):
    again = bdjax(tmp_path, str(first.folder / resolve().run_id / "config.yaml"))
    for defense in ("none", "ft", "ft_sam"):
        assert results(again.record(defense)) == results(first.record(defense))
    before, after = (
        (path / resolve().run_id / "samples.npz").read_bytes() for path in (first.folder, tmp_path)
    )
    assert before == after


def test_another_defense_shares_the_victim(copied):
    config = resolve("--defense.rho", "4")
    trained = copied / "victims" / config.victim_id / "checkpoints"
    before = snapshot(trained / str(EPOCHS))
    assert bdjax(copied, *SIZES, "--defense.rho", "4").code == 0
    assert snapshot(trained / str(EPOCHS)) == before
    assert [path.parent for path in copied.glob("victims/*/data.json")] == [trained.parent]
    assert (copied / config.run_id / "record.json").exists()


def test_streamed_images_give_the_same_run(first, tmp_path):
    pytest.importorskip("grain")
    assert first.record()["device"]["data_on"] == "device"  # digits are small
    streamed = bdjax(tmp_path, *SIZES[:4], "--defense", "none", "--data-on", "host")
    assert (streamed.code, streamed.err) == (0, "")
    record, expected = streamed.record("none"), first.record("none")
    assert record["device"]["data_on"] == "host"
    assert results(record) == results(expected)
    assert record["data"] == expected["data"]
    assert record["victim"]["gradient_evaluations"] == expected["victim"]["gradient_evaluations"]
    arrays = [np.load(path / record["run_id"] / "samples.npz") for path in (tmp_path, first.folder)]
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[1])


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (
            "hots",
            "data_on must be one of auto, device, host, disk; got 'hots' (did you mean 'host'?)",
        ),
        ("disk", "data set digits cannot stay on the disk"),
    ],
)
def test_a_place_where_the_images_cannot_be_is_refused(tmp_path, place, words):
    ran = bdjax(tmp_path / "out", *SIZES, "--data-on", place)
    assert (ran.code, ran.err.count("\n"), (tmp_path / "out").exists()) == (2, 1, False)
    assert words in ran.err


def test_a_chain_runs_its_stages_and_adds_up_their_cost(copied):
    stages = ("--defense.first", "ft", "--defense.second", "ft_sam")
    sizes = [
        word.replace("defense", f"defense.{stage}")
        for stage in ("first", "second")
        for word in SIZES[4:]
    ]
    words = (*SIZES[:4], "--defense", "chain", *stages, *sizes)
    assert bdjax(copied, *words).code == 0
    config = configs.resolve(schema.overrides(words))
    record = json.loads((copied / config.run_id / "record.json").read_text())
    assert record["cost"]["epochs"] == 2 * EPOCHS
    assert record["cost"]["gradient_evaluations"] == 3 * EPOCHS * STEPS
    # Its control is the run that was there
    assert len(list(copied.glob("digits-badnets-ft-*"))) == 1


def test_a_damaged_record_is_named_and_not_overwritten(copied):
    file = copied / resolve().run_id / "record.json"
    file.write_text(file.read_text()[:100])
    again = bdjax(copied, *SIZES)
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert f"{file} is damaged" in again.err
    assert len(file.read_text()) == 100


def test_a_victim_of_other_data_is_refused(copied):
    plan = plans.prepare(resolve())
    other = dataclasses.replace(
        plan.inputs, fingerprint={**plan.inputs.fingerprint, "train": "0" * 64}
    )
    with pytest.raises(InputError, match=r"^the data have changed since .*delete that folder"):
        AtHand(Execution(copied)).victim(dataclasses.replace(plan, inputs=other))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_after_the_epoch_and_the_next_call_ends_as_if_nothing_had_happened(
    number, first, tmp_path, monkeypatch
):
    reports = []

    @contextlib.contextmanager
    def bar(**_):
        signals = [number]  # one for each call

        def on_epoch(label, epochs, epoch):
            reports.append((label, epoch.epoch))
            # In the victim, then in FT-SAM; noticed after the next epoch
            if len(reports) in (1, 7) and signals:
                os.kill(os.getpid(), signals.pop())

        yield on_epoch

    monkeypatch.setattr("bdjax.cli._progress.bar", bar)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for _ in range(2):
        stopped = bdjax(tmp_path, *SIZES, "--checkpoint-seconds", "0")  # each epoch is a call
        assert (stopped.code, stopped.out) == (143, "")
        assert stopped.err == "bdjax: stopped after epoch 2 of 3; the same command continues.\n"
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    ended = bdjax(tmp_path, *SIZES)
    assert (ended.code, ended.err) == (0, "")
    assert reports == [
        (label, epoch) for label in ("badnets victim", "ft", "ft_sam") for epoch in (1, 2, 3)
    ]
    for defense in ("none", "ft", "ft_sam"):
        assert results(ended.record(defense)) == results(first.record(defense))


def test_a_rate_that_is_too_high_is_one_line_that_says_what_to_do(tmp_path):
    ran = bdjax(tmp_path, *SIZES[:4], "--defense", "none", "--training.learning_rate", "1e30")
    assert (ran.code, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert "the loss is not finite after epoch 1 of 3: lower the learning rate" in ran.err
    assert not list(tmp_path.rglob("record.json"))


# --- What a config decides -------------------------------------------------------------------------------------------


def rows_of(split):
    return Counter(
        image.tobytes() + bytes([label])
        for image, label in zip(split.input, split.label, strict=True)
    )


def test_a_holdout_that_is_held_out_is_not_among_the_attackers_images():
    train = rows_of(data.load("digits").train)
    shared, apart = (
        plans.prepare(resolve("--holdout.held_out", word)) for word in ("false", "true")
    )
    assert rows_of(shared.attackers) == train
    assert rows_of(apart.attackers) + rows_of(apart.holdout) == train
    assert rows_of(apart.holdout) == rows_of(shared.holdout)
    assert apart.holdout.label.shape == (HOLDOUT,)


def test_a_smaller_training_set_is_the_same_for_every_seed():
    made = []
    for seed in ("1", "2"):
        inputs._load.cache_clear()
        made.append(plans.prepare(resolve("--data.train_count", "500", "--seed", seed)))
    one, other = made
    assert one.attackers.label.shape == (500,)
    assert rows_of(one.attackers) == rows_of(other.attackers)
    assert rows_of(one.holdout) != rows_of(other.holdout)


def test_a_seed_decides_the_poison_set_the_holdout_the_network_and_the_trigger():
    one, again, other = (
        plans.prepare(resolve("--attack", "blended", "--seed", seed)) for seed in ("1", "1", "2")
    )

    def draws(plan):
        network = plan.model.init(plans.key_for(plan.config, "init"))
        return (
            np.flatnonzero(plans.poison_training(plan).is_poisoned).tolist(),
            sorted(rows_of(plan.holdout)),
            np.asarray(network["params"]["conv1"]["kernel"]).tolist(),
            np.asarray(plan.trigger_state).tolist(),
        )

    assert draws(one) == draws(again)
    assert all(mine != yours for mine, yours in zip(draws(one), draws(other), strict=True))


def test_the_poison_set_depends_on_the_seed_alone():
    config = resolve()
    poisoned = plans.poison_training(plans.prepare(config)).is_poisoned
    for words in (
        ("--training.learning_rate", "1"),
        ("--model.width", "5"),
        ("--holdout.per_class", "11"),
    ):
        other = plans.poison_training(plans.prepare(resolve(*words))).is_poisoned
        np.testing.assert_array_equal(other, poisoned)


def test_every_purpose_has_its_own_key():
    keys = [
        jax.random.key_data(plans.key_for(resolve(), purpose)).tolist()
        for purpose in plans._PURPOSES
    ]
    assert len({tuple(key) for key in keys}) == len(keys)


def test_all_to_all_moves_every_label_by_one_and_counts_every_test_image():
    plan = plans.prepare(resolve("--attack.label_map", "all_to_all"))
    poisoned = plans.poison_training(plan)
    moved = np.asarray(poisoned.visible.label) - np.asarray(poisoned.original_label)
    np.testing.assert_array_equal(moved % CLASSES, poisoned.is_poisoned)
    assert poisoned.is_poisoned.sum() == round(0.1 * TRAIN)
    assert plans.triggered_test(plan).visible.valid.sum() == TEST


def test_samples_are_the_first_of_each_class_and_then_others():
    label = np.array([0, 1, 1, 2, 1, 0, 2])
    valid = np.array([True, True, True, False, True, True, True])
    assert samples.sample_rows(label, valid, 5).tolist() == [0, 1, 6, 2, 4]


def test_controls_are_not_repeated():
    for defense, names in (
        ("none", ["none"]),
        ("ft", ["none", "ft"]),
        ("ft_sam", ["none", "ft", "ft_sam"]),
    ):
        rows = run.with_controls(configs.resolve({"defense": defense}))
        assert [row.defense.name for row in rows] == names
        assert rows[-1] == configs.resolve({"defense": defense})


def test_the_control_of_a_defense_that_takes_any_holdout_takes_any_too():
    """Grad-Prune's batch of 100 is more than two images of each class."""
    config = configs.resolve({"defense": "grad_prune", "holdout": {"per_class": 2}})
    control = run.with_controls(config)[1]
    assert control.defense.options["batch_size"] == config.defense.options["batch_size"] == 100
    plan = plans.prepare(control)
    assert batches.fed(plan.defense.learner, plan.holdout) == len(plan.holdout.label) == 20


def test_a_mistake_is_found_before_the_controls_run(tmp_path):
    ran = bdjax(tmp_path / "out", *SIZES, "--holdout.per_class", "999")
    assert (ran.code, ran.err.count("\n"), (tmp_path / "out").exists()) == (2, 1, False)
    assert ran.err.startswith(
        "bdjax: holdout.per_class must be at most 130: class '8' has only 130"
    )


def test_a_batch_that_the_devices_do_not_divide_is_named_with_its_section():
    with pytest.raises(
        InputError, match=r"^training\.batch_size must be a multiple of devices = 3"
    ):
        plans.prepare(resolve(), devices=3)
    chain = {"name": "chain", "first": "none", "second": {"name": "ft", "batch_size": HOLDOUT + 2}}
    chained = configs.resolve({"training": {"batch_size": 66}, "defense": chain})
    with pytest.raises(
        InputError, match=r"^defense\.second\.batch_size must be a multiple of devices = 3"
    ):
        plans.prepare(chained, devices=3)


# --- small sets of one's own -----------------------------------------------------------------------------------------


@pytest.fixture
def own_set(tmp_path, monkeypatch):
    """Pictures of two classes and a third that is rare: 24, 24 and 3 to train on."""
    rng = np.random.default_rng(0)
    for split, counts in (("train", (24, 24, 3)), ("test", (8, 8, 8))):
        for number, (name, count) in enumerate(zip(("left", "right", "stop"), counts, strict=True)):
            folder = tmp_path / "data" / "signs" / split / name
            folder.mkdir(parents=True)
            for image in range(count):
                pixels = np.clip(rng.normal(80 * number, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{image}.png")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    batches._tell.cache_clear()
    return ("--data", "signs", "--data.data_dir", str(tmp_path / "data"))


def test_a_rare_class_is_named_with_what_would_do(own_set, tmp_path):
    for words, complaint in (
        (
            ("--holdout.share", "0.5"),
            "holdout.share must be at most 0.176471: class 'stop' has only 3 of the 8 images",
        ),
        (
            (),
            "holdout.share must be at least 0.058824, which is one image of each of 3 classes from 51; got 0.05",
        ),
    ):
        ran = bdjax(tmp_path / "out", *SIZES, *own_set, *words)
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert ran.err.startswith(f"bdjax: {complaint}")
    assert (
        "--holdout.balanced false"
        in bdjax(tmp_path, *SIZES, *own_set, "--holdout.share", "0.5").err
    )


def test_a_small_set_with_a_rare_class_is_done_at_once_and_said_to_be_small(
    own_set, tmp_path, caplog
):
    words = (*SIZES, *own_set, "--holdout.share", "0.5", "--holdout.balanced", "false")
    ran = bdjax(tmp_path / "out", *words)
    assert ran.code == 0
    assert [message for message in caplog.messages if "batch_size" in message] == [
        "training.batch_size = 128 is more than the 51 images there are: each step takes all of them.",
        "defense.batch_size = 256 is more than the 25 images there are: each step takes all of them.",
    ]
    (file,) = ran.folder.glob("signs-badnets-ft_sam-*/record.json")
    record = json.loads(file.read_text())
    assert (record["cost"]["batch_size"], record["victim"]["batch_size"]) == (25, 51)
    assert record["data"]["holdout_count"] == 25
    assert record["cost"]["gradient_evaluations"] == 2 * EPOCHS
    # As it is stored
    again = bdjax(tmp_path / "again", str(file.parent / "config.yaml"), *own_set[2:])
    assert (again.code, [path.name for path in again.folder.glob("signs-badnets-ft_sam-*")]) == (
        0,
        [file.parent.name],
    )


def test_the_config_file_is_plain_yaml(first):
    text = (first.folder / resolve().run_id / "config.yaml").read_text()
    assert yaml.safe_load(text) == resolve().to_dict()
