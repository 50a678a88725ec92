"""Traces: what is in the files of a CPU and of made-up devices, and that a run is the same with and without them."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax.bench import profile
from bdjax.bench.profile import Operation, Traces
from bdjax.checks import InputError
from bdjax.files import failures
from bdjax.train import loop
from bdjax.train.supervised import supervised

pytestmark = pytest.mark.usefixtures("no_other_programs")


@jax.jit
def steps(x):
    return jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ x), x)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """The trace of three products."""
    folder = tmp_path_factory.mktemp("traced")
    x = jnp.ones((400, 400)) / 400
    steps(x).block_until_ready()
    with profile.trace(folder):
        steps(x).block_until_ready()
    return folder


def test_a_trace_is_in_the_place_where_tensorboard_looks(traced):
    files = [file.relative_to(traced).as_posix() for file in traced.rglob("*.xplane.pb")]
    assert len(files) == 1
    assert files[0].startswith("plugins/profile/")


def test_the_costliest_operation_comes_first_with_its_share_count_and_source(traced):
    found = profile.costliest(traced)
    seconds = [each.seconds for each in found]
    assert seconds == sorted(seconds, reverse=True)  # which is first, a busy machine decides
    product = next(each for each in found if "dot_general" in each.path)
    assert (product.program, product.count) == ("jit_steps", 3)
    assert product.line.startswith("test_profile.py:")
    assert product.share == pytest.approx(product.seconds / sum(seconds))
    assert sum(each.share for each in found) == pytest.approx(1)  # there are less than ten
    # Whose time is that of its body
    assert not [each for each in found if each.name.startswith("while")]
    assert profile.costliest(traced, count=1) == found[:1]


def test_a_trace_without_the_programs_still_has_the_times(traced, monkeypatch):
    def unreadable(file):
        raise ValueError("another XLA")

    found = profile.costliest(traced)
    monkeypatch.setattr(profile.origins, "read", unreadable)
    bare = profile.costliest(traced)
    assert [(each.name, each.seconds) for each in bare] == [
        (each.name, each.seconds) for each in found
    ]
    assert {(each.path, each.line) for each in bare} == {("", "")}


def test_a_folder_without_a_trace_is_named(tmp_path):
    with pytest.raises(InputError, match=f"trace_dir must hold a trace.*{tmp_path} has none"):
        profile.costliest(tmp_path)


# --- Devices that are not here ---------------------------------------------------------------------------------------

STATS = " ".join(
    f'stat_metadata {{ key: {number} value {{ id: {number} name: "{name}" }} }}'
    for number, name in enumerate(("hlo_op", "hlo_module"), 1)
)


def line(name, *events):
    """Write a line of events, each of a name's number, microseconds, and maybe an operation and its program."""
    written = []
    for number, duration, *of in events:
        stats = " ".join(
            f'stats {{ metadata_id: {i} str_value: "{text}" }}' for i, text in enumerate(of, 1)
        )
        written.append(
            f"events {{ metadata_id: {number} duration_ps: {duration * 10**6} {stats} }}"
        )
    return f'lines {{ name: "{name}" {" ".join(written)} }}'


def plane(name, events, *lines):
    known = " ".join(
        f'event_metadata {{ key: {number} value {{ id: {number} name: "{text}" }} }}'
        for number, text in events.items()
    )
    return f'planes {{ name: "{name}" {known} {STATS} {" ".join(lines)} }}'


def write(folder, session, *planes):
    place = folder / "plugins" / "profile" / session
    place.mkdir(parents=True)
    content = jax.profiler.ProfileData.text_proto_to_serialized_xspace("\n".join(planes))
    (place / "host.xplane.pb").write_bytes(content)


def summed(operations):
    return [
        (each.name, each.program, round(1e6 * each.seconds), each.count, each.share)
        for each in operations
    ]


def test_of_a_gpu_the_kernels_of_all_streams_are_summed_by_operation(tmp_path):
    kernels = {1: "sm90_conv", 2: "transpose", 3: "MemcpyH2D", 4: "jit_epoch"}
    write(
        tmp_path,
        "1",
        plane("/host:CPU", {1: "fusion"}, line("python", (1, 999, "fusion.1", "jit_epoch"))),
        plane(
            "/device:GPU:0",
            kernels,
            line(
                "Stream #13(Compute)",
                (1, 30, "conv.5", "jit_epoch"),
                (2, 10, "conv.5", "jit_epoch"),
            ),
            line("Stream #14(MemcpyH2D)", (3, 5)),
            line("XLA Modules", (4, 500, "jit_epoch")),
        ),
        plane(
            "/device:GPU:1", kernels, line("Stream #13(Compute)", (1, 55, "conv.5", "jit_epoch"))
        ),
    )
    assert summed(profile.costliest(tmp_path)) == [
        ("conv.5", "jit_epoch", 95, 3, 0.95),
        ("MemcpyH2D", "", 5, 1, 0.05),
    ]


def test_of_a_tpu_it_is_the_line_of_operations_without_what_runs_others(tmp_path):
    events = {
        1: "%fusion.7 = f32[8]{0} fusion(%p), kind=kLoop",
        2: "%while.2 = (s32[]) while(%t)",
        3: "jit_epoch(3)",
    }
    operations = line("XLA Ops", (1, 20), (2, 80), (1, 60))
    write(tmp_path, "1", plane("/device:TPU:0", events, line("XLA Modules", (3, 100)), operations))
    assert summed(profile.costliest(tmp_path)) == [("fusion.7", "", 80, 2, 1.0)]


def test_the_newest_trace_of_a_folder_counts(tmp_path):
    for session, duration in (("2026_11_02_09_00_00", 7), ("2026_11_01_09_00_00", 3)):
        write(tmp_path, session, plane("/device:GPU:0", {1: "k"}, line("Stream #1", (1, duration))))
    assert summed(profile.costliest(tmp_path)) == [("k", "", 7, 1, 1.0)]


# --- Text and files --------------------------------------------------------------------------------------------------

OPERATION = Operation(
    "fusion.1", "jit_epoch", 0.0125, 0.9, 1200, "jit(epoch)/" + 80 * "x", "bdjax/a.py:3"
)


def test_the_table_is_aligned_and_shows_the_end_of_a_long_path():
    text = profile.operations_table([OPERATION, Operation("add", "jit_epoch", 1.25, 0.1, 2)])
    assert text.splitlines() == [
        "share        ms  times  operation  from",
        f"90.0%     12.50  1,200  fusion.1   …{60 * 'x'} bdjax/a.py:3",
        "10.0%  1,250.00      2  add",
    ]


def test_traces_of_one_name_get_numbers_and_a_later_call_adds_to_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(
        profile, "_operations", lambda folder: [OPERATION._replace(name=folder.name)] * 12
    )
    made = []

    def noted(folder):
        made.append(folder.name)
        return contextlib.nullcontext()

    monkeypatch.setattr(profile, "trace", noted)
    traces = Traces(tmp_path / "new" / "deep")
    for name in ("badnets victim", "ft", "ft"):
        traces.of(name)
    assert made == ["badnets-victim", "ft", "ft-2"]
    found = traces.finish()
    assert {name: [each.name for each in operations] for name, operations in found.items()} == {
        name: [name] * 10 for name in made
    }
    Traces(tmp_path / "new" / "deep").finish()
    later = Traces(tmp_path / "new" / "deep")
    later.of("sam")
    later.finish()
    content = json.loads((tmp_path / "new" / "deep" / "operations.json").read_text())
    assert set(content["traces"]) == {*made, "sam"}
    assert content["traces"]["ft"]["seconds"] == pytest.approx(12 * 0.0125)
    assert content["traces"]["ft"]["operations"][0] == OPERATION._replace(name="ft")._asdict()
    assert "jax" in content["versions"]


@pytest.mark.parametrize(
    ("place", "complaint"),
    [
        ("", "profile must name a folder, got ''"),
        ("file", "profile must be a folder; .*file is a file"),
        ("file/below", "profile must be a folder; .*file is a file"),
        ("damaged", "operations.json is damaged"),
    ],
)
def test_a_place_where_no_trace_can_be_is_refused_before_anything_is_traced(
    tmp_path, place, complaint
):
    (tmp_path / "file").touch()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "operations.json").write_text("{")
    with pytest.raises(InputError, match=complaint):
        Traces(tmp_path / place if place else "")


def test_a_trace_that_cannot_be_written_fails_before_the_block_or_in_one_line_after_it(
    tmp_path, monkeypatch
):
    (tmp_path / "plugins").touch()
    with pytest.raises(OSError, match="plugins"), profile.trace(tmp_path):
        pytest.fail("the block was entered")

    def full():
        stop()
        raise RuntimeError("INTERNAL: No space left on device\nand more")

    stop = jax.profiler.stop_trace
    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    folder = tmp_path / "new"
    with (
        pytest.raises(OSError, match="the trace cannot be written") as failed,
        profile.trace(folder),
    ):
        pass
    said = f"the trace cannot be written to {folder}: INTERNAL: No space left on device"
    assert failures.explain(failed.value) == said


# --- Epochs ----------------------------------------------------------------------------------------------------------


def test_the_second_epoch_of_each_stage_is_traced_and_no_other(tmp_path, monkeypatch):
    said = []

    class Trace:
        def __init__(self, folder):
            self._name = folder.name

        def __enter__(self):
            said.append(f"[{self._name}")

        def __exit__(self, *_):
            said.append(f"{self._name}]")

    monkeypatch.setattr(profile, "trace", Trace)
    stages = [
        ("victim", 3, [1, 2, 3]),
        ("chain", 2, [1, 2]),
        ("chain", 2, [1, 2]),
        ("ft", 1, [1]),
        ("sam", 9, [7, 8]),
    ]
    stages.append(("cut", 9, [1]))
    with profile.second_epochs(
        Traces(tmp_path), lambda label, epochs, report: said.append(report.epoch)
    ) as on_epoch:
        for label, epochs, numbers in stages:
            for number in numbers:
                on_epoch(label, epochs, loop.Epoch(number, 1.0, 0.5, 1, 1.0, 0.0))
    victim = [1, "[victim", "victim]", 2, 3]
    chains = [1, "[chain", "chain]", 2, 1, "[chain-2", "chain-2]", 2]
    assert said == [*victim, *chains, 1, 7, "[sam", "sam]", 8, 1, "[cut", "cut]"]


def test_training_ends_in_the_same_bits_with_and_without_a_trace(tmp_path, model, variables, split):
    def train(**options):
        return loop.run(
            jax.random.key(0),
            supervised(epochs=3, batch_size=16),
            model,
            variables,
            split,
            **options,
        )

    plain = train()
    traces = Traces(tmp_path)
    with profile.second_epochs(traces, None) as on_epoch:
        traced = train(on_epoch=lambda report: on_epoch("victim", 3, report))
    for one, other in zip(*map(jax.tree.leaves, (plain.variables, traced.variables)), strict=True):
        assert np.array_equal(one, other)
    assert [row.loss for row in plain.history] == [row.loss for row in traced.history]
    operations = traces.finish()["victim"]
    assert {each.program for each in operations} == {"jit_epochs"}
    assert {each.count for each in operations} & {6, 12}  # steps of the second call, of two epochs
