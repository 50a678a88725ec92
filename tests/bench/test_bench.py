"""`bdjax bench` at its smallest: what is in the file, that its ratios are of its own times, and what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from quick import quick_jit

from bdjax import bench, cli, defenses
from bdjax.bench import loads, measure, scaling, session, startup, steps, sweeps, table
from bdjax.train import grouped, loop

pytestmark = pytest.mark.usefixtures("no_other_programs")
SMALLEST = (
    "--model",
    "small_cnn",
    "--width",
    "2",
    "--batch",
    "4",
    "--image-size",
    "8",
    "--steps",
    "2",
)
SMALLEST += ("--rounds", "2", "--points", "1", "2", "--devices", "1", "--minutes", "60")
STEPS = {"plain", "sam", "fast_sft_without_trace", "fast_sft", "nft"}


def command(*words):
    """Call `bdjax bench` in this process; return exit code, output and error output."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["bench", *map(str, words)])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def answer(tmp_path_factory):
    """What the command writes into its file, prints, and tells on the way."""
    folder = tmp_path_factory.mktemp("bench")
    seconds = iter([[1.5], [8.0, 9.0], [2.0, 3.0]])  # of three processes
    profile = ("--profile", folder / "traces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BDJAX_DATA_DIR", str(folder))  # no CIFAR-10
        patch.setattr(startup, "child", lambda *_, **__: next(seconds))
        patch.setattr(measure, "Peak", SmallPeak)
        compile_quickly(patch)
        code, out, err = command(*SMALLEST, *profile, "--out", folder / "new" / "bench.json")
    assert code == 0, err
    traces = json.loads((folder / "traces" / "operations.json").read_text())["traces"]
    names = {name.partition("-")[0] for name in traces}
    assert names == (STEPS - {"fast_sft"}) | {"fast_sft_with_trace"}
    assert all(
        operation["program"] == "jit_epoch"
        for one in traces.values()
        for operation in one["operations"]
    )
    assert "plain-width-2-batch-4:\nshare " in out
    return json.loads((folder / "new" / "bench.json").read_text()), out, err


def compile_quickly(patch):
    """Let epochs be compiled with little effort; nothing here is about how fast they are."""
    epoch = quick_jit(
        loop.epoch, static_argnames=("model", "mesh", "feeding"), donate_argnames=("state",)
    )
    patch.setattr(loop, "train_epoch", epoch)
    patch.setattr(
        grouped,
        "epochs",
        quick_jit(grouped.epochs_of_all, static_argnums=(3, 4, 5, 6), donate_argnums=2),
    )
    patch.setattr(grouped, "init", quick_jit(grouped.init_all, static_argnums=(1, 2, 3)))


class SmallPeak(measure.Peak):
    """Products and copies that take no time; shares are of whatever they reach."""

    def __init__(self, dtype="float32"):
        super().__init__(dtype)
        self._matrix, self._array = self._matrix[:64, :64], self._array[:4096]
        self.flops, self.bytes = 2.0 * 64**3, 2.0 * 4 * 4096


@pytest.fixture
def nothing_is_measured(monkeypatch):
    """Sections that answer at once, and a device without rates."""
    peak = SimpleNamespace(
        rates=lambda: {"matmul_flops_per_second": 2e9, "copy_bytes_per_second": 1e9}
    )
    monkeypatch.setattr(measure, "Peak", lambda dtype: peak)
    monkeypatch.setattr(bench, "_MEASURES", dict.fromkeys(session.SECTIONS, lambda session: None))


# --- The file --------------------------------------------------------------------------------------------------------


def test_the_file_says_what_was_measured_on_what(answer):
    results, _, _ = answer
    assert results["schema_version"] == bench.SCHEMA_VERSION
    assert set(results) == {"schema_version", "date", "machine", "versions", "settings", "peak"} | {
        *session.SECTIONS, "load_average", "section_seconds", "skipped", "memory", "content_sha256",
    }  # fmt: skip
    device = results["machine"]["device"]
    assert {key: device[key] for key in ("platform", "kind", "count")} == {
        "platform": "cpu",
        "kind": "cpu",
        "count": 8,
    }
    assert results["versions"]["jax"] == jax.__version__
    assert results["settings"]["widths"] == [2]
    assert results["settings"]["steps"] == 2
    assert {len(load) for load in results["load_average"].values()} == {3}
    assert (
        list(results["load_average"]) == list(results["section_seconds"]) == list(session.SECTIONS)
    )
    assert [what["what"] for what in results["skipped"]] == ["loading cifar10", "scaling"]
    assert results["scaling"] is None


def test_ratios_of_steps_are_those_of_their_times(answer):
    (row,) = answer[0]["steps"]
    seconds = row["seconds_per_step"]
    assert set(seconds) == set(row["images_per_second"]) == set(row["ratio_to_plain"]) == STEPS
    for name, second in seconds.items():
        assert row["images_per_second"][name] == pytest.approx(row["batch_size"] / second)
        assert row["ratio_to_plain"][name] == pytest.approx(second / seconds["plain"])
    every = defenses.create("fast_sft").learner.transformation.every
    assert seconds["fast_sft"] == pytest.approx(
        seconds["fast_sft_without_trace"] + row["trace_seconds"] / every
    )
    for rate, work in (("matmul", "flops"), ("copy", "bytes")):
        shares = row[f"share_of_{rate}"]
        assert set(shares) == set(row[f"{work}_per_step"]) >= {"plain", "sam", "nft"}
        for name, share in shares.items():
            reached = row[f"{work}_per_step"][name] / seconds[name]
            assert share == pytest.approx(reached / row[f"{rate}_{work}_per_second"])


def test_operations_of_a_step_are_counted_once_for_each_gradient(answer):
    flops = answer[0]["steps"][0]["flops_per_step"]
    assert set(flops) == STEPS - {"fast_sft"}
    assert 1.8 < flops["sam"] / flops["plain"] < 2.3
    # the first convolution (3×3, 3 to 2 channels, 8×8), forward and by its kernel: the least that a step must compute
    assert flops["plain"] > 2 * 2 * 4 * 8 * 8 * 9 * 3 * 2 * 0.8


def test_cost_of_a_point_is_the_sweeps_time_over_points_and_a_single_run(answer):
    rows = answer[0]["sweeps"]["rows"]
    assert [(row["points"], set(row["cost_per_point"])) for row in rows] == [
        (1, {"loop"}),
        (2, {"loop", "vmap"}),
    ]
    for row in rows:
        for form, cost in row["cost_per_point"].items():
            seconds = row["seconds_per_step"]
            assert cost == pytest.approx(seconds[form] / row["points"] / seconds["single"])


SCALING = {  # seconds of a call by what is on the mesh, the size in all, and the devices
    "points": {(1, 1): 4.0, (2, 2): 5.0, (4, 4): 8.0, (4, 1): 16.0, (4, 2): 10.0},
    "batch": {(8, 1): 4.0, (16, 2): 4.0, (32, 4): 5.0, (8, 2): 2.5, (8, 4): 4.0},
}
EFFICIENCY = {  # of 1, 2, 4 devices
    ("points", "weak"): [1, 4 / 5, 4 / 8],
    ("points", "strong"): [1, 16 / 20, 16 / 32],
    ("batch", "weak"): [1, 1, 4 / 5],
    ("batch", "strong"): [1, 4 / 5, 4 / 16],
}


@pytest.fixture
def scaled(monkeypatch):
    """The section over four devices, whose calls take the seconds above."""
    for axis in SCALING:
        call = lambda _, model, size, count, axis=axis: lambda: SCALING[axis][size, count]  # noqa: E731
        monkeypatch.setattr(scaling, f"_{axis}", call)
    monkeypatch.setattr(
        measure, "interleaved", lambda work, rounds: {name: call() for name, call in work.items()}
    )
    return scaling.section(asked(devices=4, batch_sizes=[8], steps=2))


def test_efficiency_is_one_where_another_device_costs_nothing(scaled):
    found: dict = {}
    for row in scaled["rows"]:
        found.setdefault((row["axis"], row["kind"]), []).append(row["efficiency"])
        assert row["seconds_per_step"] == SCALING[row["axis"]][row["size"], row["devices"]] / 2
    assert found == {names: pytest.approx(efficiency) for names, efficiency in EFFICIENCY.items()}
    assert scaled["devices_share_cores"]


def test_points_and_batches_are_spread_over_devices(monkeypatch):
    compile_quickly(monkeypatch)
    asked_for = asked().settings
    model = asked_for.create(2)
    points, batch = scaling._points(asked_for, model, 2, 2), scaling._batch(asked_for, model, 4, 2)
    assert (
        points().loss.sharding.device_set
        == batch().loss.sharding.device_set
        == set(jax.devices()[:2])
    )
    assert points().loss.shape == (2,)


def test_loading_poisoning_and_compiling_have_rates_and_seconds(answer):
    results, _, _ = answer
    assert set(results["loads"]["load_images_per_second"]) == {"digits"}
    assert set(results["loads"]["poison_images_per_second"]) == {"badnets", "blended"}
    assert all(rate > 0 for rates in results["loads"].values() for rate in rates.values())
    assert results["startup"] == {
        "import_seconds": 1.5,
        "compile_seconds": {"cold": {"plain": 8, "sam": 9}, "cached": {"plain": 2, "sam": 3}},
    }


# --- The table and the progress --------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_measurement(answer):
    results, out, err = answer
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in out.splitlines()
        if line.startswith("|")
    ]
    (row,) = results["steps"]
    second = row["seconds_per_step"]["sam"]
    sam = [
        "SAM",
        "2",
        "4",
        table.milliseconds(second),
        f"{4 / second:,.0f}",
        f"{row['ratio_to_plain']['sam']:.2f}",
    ]
    assert sam in [cells[: len(sam)] for cells in rows]
    two = results["sweeps"]["rows"][1]["cost_per_point"]
    assert ["2", f"{two['loop']:.2f}", f"{two['vmap']:.2f}"] in rows
    assert "Skipped: loading cifar10 (it is not there)." in out
    told = [line.partition(":")[0] for line in err.splitlines()]
    assert told == ["loading cifar10", "loads", "startup", "steps", "sweeps", "scaling", "scaling"]


def test_the_table_of_scaling_has_a_row_for_each_kind(scaled):
    text = table._scaling(scaled)
    assert "share the processor's cores" in text
    assert text.splitlines()[-4:] == [
        "| points      | weak    | 100% |  80% | 50% |",
        "| points      | strong  | 100% |  80% | 50% |",
        "| batch       | weak    | 100% | 100% | 80% |",
        "| batch       | strong  | 100% |  80% | 25% |",
    ]


def test_the_table_leaves_out_what_was_not_measured(answer):
    results, out, _ = answer
    some = {name: value for name, value in results.items() if name not in ("sweeps", "scaling")}
    text = table.benchmark_table({**some, "loads": None, "skipped": []})
    heads = [
        above.split("|")[1].strip()
        for above, rule in itertools.pairwise(text.splitlines())
        if rule.startswith("| ---")
    ]
    assert heads == ["step", "seconds in a fresh process"]
    assert "Skipped" not in text
    assert "Cost of a point" in out
    assert "Cost of a point" not in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(1.2345, "1,234"), (0.1, "100"), (0.05678, "56.8"), (0.001234, "1.23")]
)
def test_times_have_about_three_digits(seconds, text):
    assert table.milliseconds(seconds) == text


def test_columns_are_aligned_and_numbers_stand_right():
    assert table.markdown_table(["", "images/s"], [["a", "5"], ["long", "1,000"]]).splitlines() == [
        "|      | images/s |",
        "| ---- | -------: |",
        "| a    |        5 |",
        "| long |    1,000 |",
    ]


# --- Time, memory, and what is cut short -----------------------------------------------------------------------------


def asked(**given):
    sizes = {
        "model": "small_cnn",
        "image_size": 8,
        "widths": [2],
        "batch_sizes": [4],
        "points": [1, 2],
        "steps": 2,
    }
    return session.Session(session.settings(**{**sizes, "devices": 2, "rounds": 1, **given}))


def test_what_has_no_time_left_is_skipped_and_said():
    late = asked(minutes=1e-9)
    assert steps.section(late) == []
    assert scaling.section(late)["rows"] == []
    assert startup.section(late) is None
    assert {what["why"] for what in late.skipped} == {"no time: --minutes 1e-09"}
    # One size of step, two axes × two kinds × two numbers of devices, startup
    assert len(late.skipped) == 1 + 8 + 1


def test_what_would_end_too_late_does_not_start():
    session = asked(minutes=1.0)
    assert session.room("short", 50.0)
    assert not session.room("long", 61.0)
    assert session.skipped == [{"what": "long", "why": "no time: --minutes 1"}]


def test_what_does_not_fit_is_not_run_and_said(monkeypatch):
    class TooLarge(measure.TimedEpoch):
        def __init__(self, *_):
            self.fits, self.bytes = False, None

        def __call__(self):
            raise AssertionError("this does not fit")

    monkeypatch.setattr(measure, "Peak", SmallPeak)
    monkeypatch.setattr(measure, "TimedEpoch", TooLarge)
    small = asked()
    (row,) = steps.section(small)
    assert row["seconds_per_step"] == {}
    assert [what["why"] for what in small.skipped] == 4 * ["not enough memory"]
    assert table._steps([row]) == ""


def test_what_the_device_refuses_is_skipped(nothing_is_measured, monkeypatch, tmp_path):
    def exhausted(session):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setitem(bench._MEASURES, "steps", exhausted)
    results = bench.run_sections(asked().settings, tmp_path / "bench.json")
    assert results["skipped"] == [{"what": "steps", "why": "not enough memory"}]
    assert "startup" in results["section_seconds"]


def test_a_cut_run_keeps_the_sections_that_were_done(nothing_is_measured, monkeypatch, tmp_path):
    def interrupt(session):
        raise KeyboardInterrupt

    monkeypatch.setitem(bench._MEASURES, "loads", lambda session: {"done": 1})
    monkeypatch.setitem(bench._MEASURES, "steps", interrupt)
    code, out, err = command("--out", tmp_path / "bench.json")
    assert (code, out) == (143, "")
    assert "has the sections that were done" in err
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert kept["loads"] == {"done": 1}
    assert not {"steps", "sweeps"} & set(kept)


def test_only_the_sections_asked_for(nothing_is_measured, tmp_path):
    command("--only", "sweeps", "loads", "--out", tmp_path / "bench.json", "--quiet")
    assert list(json.loads((tmp_path / "bench.json").read_text())["section_seconds"]) == [
        "loads",
        "sweeps",
    ]


def test_a_second_process_that_fails_is_told(monkeypatch):
    def refused(*_, **__):
        raise subprocess.CalledProcessError(
            1, "python", stderr="Traceback\nRuntimeError: the device is taken\n"
        )

    monkeypatch.setattr(startup.subprocess, "run", refused)
    lonely = asked()
    assert startup.section(lonely) is None
    assert "RuntimeError: the device is taken" in lonely.skipped[0]["why"]


def test_one_device_has_no_scaling():
    alone = asked(devices=1)
    assert scaling.section(alone) is None
    assert alone.skipped == [{"what": "scaling", "why": "one device"}]


def test_a_batch_that_devices_do_not_divide_is_skipped(monkeypatch):
    monkeypatch.setattr(scaling, "_points", lambda *_: None)
    monkeypatch.setattr(scaling, "_batch", lambda *_: lambda: 0)
    odd = asked(batch_sizes=[3])
    rows = scaling.section(odd)["rows"]
    assert {(row["kind"], row["devices"], row["size"]) for row in rows} == {
        ("weak", 1, 3), ("weak", 2, 6), ("strong", 1, 3),
    }  # fmt: skip
    assert "2 devices do not divide a batch of 3" in [what["why"] for what in odd.skipped]


# --- What is timed ---------------------------------------------------------------------------------------------------


def test_calls_take_turns_and_medians_count(monkeypatch):
    now, calls = [0.0], []
    took = {"a": iter([9, 1, 5, 2]), "b": iter([9, 4, 4, 8])}  # the first of each is the warm-up
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])

    def work(name):
        def call():
            calls.append(name)
            now[0] += next(took[name])

        return call

    assert measure.interleaved({"a": work("a"), "b": work("b")}, 3) == {"a": 2, "b": 4}
    assert "".join(calls) == "abababab"


def test_the_trace_of_fast_sft_is_due_once_and_when_it_is_asked_for(monkeypatch):
    compile_quickly(monkeypatch)
    settings = asked().settings
    model = settings.create(2)
    epoch = measure.TimedEpoch(
        steps._learners(4)["fast_sft"], model, measure.random_split(model.spec, 8)
    )
    epoch()  # reports what the start had taken, too
    without, due = steps._after(epoch, 0), steps._after(epoch, steps._NEVER - 1)
    assert [int(call().gradient_evaluations) for call in (without, due, without)] == [2, 5, 2]


@pytest.mark.parametrize("name", ["plain", "nft"])
def test_timed_steps_are_of_finite_numbers(name, monkeypatch):
    compile_quickly(monkeypatch)
    model = asked().settings.create(2)
    epoch = measure.TimedEpoch(steps._learners(4)[name], model, measure.random_split(model.spec, 8))
    first, second = epoch(), epoch()
    assert first.finite
    assert second.finite
    assert first.loss != second.loss  # it goes on from where it was


def test_a_fresh_process_compiles_into_a_cache_of_its_own_and_then_finds_it_there(monkeypatch):
    caches = []

    def run(command, env, **_):
        cache = Path(env["JAX_COMPILATION_CACHE_DIR"])
        caches.append((cache, list(cache.iterdir())))
        (cache / "program").touch()
        assert json.loads(command[-1])["widths"] == [2]
        return SimpleNamespace(stdout=f"{len(caches)}\n{10 * len(caches)} and more\n")

    monkeypatch.setattr(startup.subprocess, "run", run)
    # Processes 1, 3, 5 are cold and 2, 4, 6 are not
    seconds = startup.compile_seconds(asked().settings, 3)
    assert seconds == {"cold": {"plain": 3, "sam": 30}, "cached": {"plain": 4, "sam": 40}}
    assert [[file.name for file in files] for _, files in caches] == 3 * [[], ["program"]]
    assert len({folder for folder, _ in caches}) == 3


def test_a_precision_is_that_of_each_section_thread_and_process(monkeypatch, tmp_path, capsys):
    precision = lambda *_: jax.config.jax_default_matmul_precision  # noqa: E731
    monkeypatch.setattr(
        bench, "_MEASURES", {"steps": lambda session: measure.prepared({"a": precision})}
    )
    monkeypatch.setattr(
        measure, "Peak", lambda dtype: SimpleNamespace(rates=lambda: {"precision": precision()})
    )
    settings = asked(matmul_precision="tensorfloat32", sections=("steps",)).settings
    results = bench.run_sections(settings, tmp_path / "bench.json")
    assert results["steps"] == {"a": "tensorfloat32"}
    assert results["peak"] == {"precision": "tensorfloat32"}
    assert results["machine"]["device"]["matmul_precision"] == "tensorfloat32"
    assert table._numbers(results["settings"]) == "float32 (products in tensorfloat32)"
    monkeypatch.setattr(startup, "_compile", lambda settings: print(precision()))
    monkeypatch.setattr(startup.jax.config, "update", lambda name, value: None)
    startup.compile_here(json.dumps(dataclasses.asdict(settings)))
    assert capsys.readouterr().out == "tensorfloat32\n"
    assert precision() is None


def test_what_the_fresh_process_compiles(monkeypatch, capsys):
    seen = []

    class Lowered:
        def __init__(self, key, learner, *_):
            self.learner = learner

        def compile(self):
            seen.append(type(self.learner.transformation).__name__)

    # This process keeps its settings
    monkeypatch.setattr(startup.jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(loop, "train_epoch", SimpleNamespace(lower=Lowered))
    startup.compile_here(json.dumps(dataclasses.asdict(asked().settings)))
    assert seen == ["PlainSgd", "SharpnessAware"]
    assert [float(line) for line in capsys.readouterr().out.splitlines()] == [0, 0]


def test_numbers_come_from_a_real_process():
    assert startup.child("import sys; print(2.5, 'x'); print(len(sys.argv[1]))", "word") == [2.5, 4]


def test_points_of_a_sweep_differ_in_key_and_rate():
    model = asked().settings.create(2)
    points = sweeps.points(3, model, measure.random_split(model.spec, 4), 4)
    assert len({float(point.learner.sgd.learning_rate) for point in points}) == 3
    assert len({tuple(jax.random.key_data(point.key).tolist()) for point in points}) == 3


def test_cifar10_is_loaded_where_it_is_and_never_fetched(monkeypatch, tmp_path):
    loaded = []

    def load(name, data_dir):
        loaded.append((name, data_dir))
        return SimpleNamespace(
            train=SimpleNamespace(label=[0] * 5), test=SimpleNamespace(label=[0])
        )

    monkeypatch.setattr(loads.data, "load", load)
    monkeypatch.setattr(loads, "_poison_rates", lambda *_: {})
    folder = str(tmp_path)
    assert set(loads.section(asked(data_dir=folder))["load_images_per_second"]) == {"digits"}
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    (tmp_path / "cifar10" / "3.0.2" / "dataset_info.json").write_text("{}")
    assert set(loads.section(asked(data_dir=folder))["load_images_per_second"]) == {
        "digits",
        "cifar10_cached",
    }
    assert loaded == 4 * [("digits", folder)] + 2 * [("cifar10", folder)]


# --- What is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "mentions"),
    [
        (("--width", "0"), "widths must be 1 or more"),
        (("--width",), "--width"),
        (("--width", "two"), "'two'"),
        (("--batch", "8", "-1"), "batch_sizes must be 1 or more"),
        (("--points", "0"), "points must be 1 or more"),
        (("--rounds", "0"), "rounds must be 1 or more"),
        (("--steps", "0"), "steps must be 1 or more"),
        (("--image-size", "0"), "image_size must be 1 or more"),
        (("--minutes", "0"), "minutes must be above 0"),
        (("--minutes", "nan"), "minutes must be finite"),
        (("--devices", "9"), "devices must be at most 8"),
        (("--devices", "0"), "devices must be 1 or more"),
        (("--only", "sweep"), "did you mean 'sweeps'"),
        (("--model", "small_cn"), "did you mean 'small_cnn'"),
        (("--dtype", "float7"), "dtype must be one of"),
        (
            ("--matmul-precision", "highest"),
            "matmul_precision must be one of float32, tensorfloat32, bfloat16",
        ),
        (("--profile", ""), "profile must name a folder"),
        (
            ("--profile", "x", "--only", "sweeps"),
            "profile must be left out where the section steps is",
        ),
        (("--out", "."), "out must be a file"),
        (("stray",), "unknown option 'stray'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line_before_anything_is_compiled(words, mentions, monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("this call should have been refused before")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "Peak", refuse)
    code, out, err = command(*words)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"bdjax: [^\n]+\n", err), err
    assert mentions in err
    assert list(tmp_path.iterdir()) == []


def test_quick_has_fewer_of_everything_and_gives_way_to_what_is_asked():
    full, quick = session.settings(), session.settings(quick=True)
    assert len(quick.widths) == len(quick.batch_sizes) == quick.rounds == 1 < full.rounds
    assert set(quick.points) < set(full.points)
    assert session.settings(quick=True, rounds=4).rounds == 4
    assert full.sections == session.SECTIONS


def test_a_compute_type_is_handed_to_the_network(monkeypatch):
    seen, create = [], session.models.create

    def model(name, spec, **options):
        seen.append((name, options))
        return create("small_cnn", spec)

    monkeypatch.setattr(session.models, "create", model)
    session.settings(widths=[3], dtype="bfloat16")
    session.settings(widths=[3])
    assert seen == [
        ("preact_resnet18", {"width": 3, "dtype": "bfloat16"}),
        ("preact_resnet18", {"width": 3}),
    ]
