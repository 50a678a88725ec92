"""What `on_accelerator.py` says of speed: its parts, rows and tables, and PyTorch's steps, which are bdjax's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import defenses, models
from bdjax.bench import measure, profile, sweeps
from bdjax.data.modalities.images import image_spec
from bdjax.defenses.ft_sam import SharpnessAware
from bdjax.train.supervised import supervised

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))

import on_accelerator
import result_tables
from accelerator import speed, torch_process
from accelerator.session import Session, Settings
from accelerator.torch_ways import LAYOUTS, Way

STEPS, SIZE = 10, 16
SECONDS = {
    "plain": 2.0,
    "sam": 5.0,
    "eager NCHW": 8.0,
    "eager channels_last": 4.0,
    "product": 0.5,
    "copy": 0.25,
}
CASE = speed.Case("sam", "float32", SIZE)


@pytest.fixture
def session(tmp_path):
    return Session(Settings(tmp_path / "out", tmp_path / "work", minutes=100, debug=True))


@pytest.fixture
def nothing_runs(monkeypatch):
    """Epochs, products and PyTorch that take the seconds above, of ten steps."""
    epoch = SimpleNamespace(fits=True, compile_seconds=3.0, held_bytes=2**30, flops=6e9, bytes=1e9)
    peak = SimpleNamespace(product=None, copy=None, flops=1e12, bytes=1e11)
    monkeypatch.setattr(speed, "_epoch", lambda case, scale: epoch)
    monkeypatch.setattr(measure, "Peak", lambda *_: peak)
    monkeypatch.setattr(
        speed, "_torch", lambda: SimpleNamespace(take=lambda **_: {"version": "2.0"})
    )
    timings = {name: measure.Timing(second, second / 100) for name, second in SECONDS.items()}
    monkeypatch.setattr(
        measure, "timed", lambda work, rounds: {name: timings[name] for name in work}
    )
    return epoch


def rows_of(part, session):
    return [{"part": part.name, **row} for row in part.run(session)]


# --- The parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("debug", [True, False])
def test_every_part_has_a_name_of_its_own_and_an_estimate(debug, tmp_path):
    settings = Settings(tmp_path, tmp_path, debug=debug)
    listed = [*speed.parts(settings), *speed.further_parts(settings)]
    names = [part.name for part in listed]
    assert len(set(names)) == len(names)
    assert all(name.startswith("speed/") for name in names)
    assert all(0 < part.seconds < (30 if debug else 240) for part in listed)
    assert sum(part.seconds for part in listed) <= 70 or not debug


def test_every_step_is_measured_in_every_type_and_size(tmp_path):
    settings = Settings(tmp_path, tmp_path)
    names = {part.name for part in [*speed.parts(settings), *speed.further_parts(settings)]}
    assert {
        f"speed/{step}-{kind}-{size}"
        for step in speed.STEPS
        for kind in speed.TYPES
        for size in (128, 256, 1024)
    } <= names


def test_what_is_worth_less_than_victims_comes_last(tmp_path):
    settings = Settings(tmp_path, tmp_path)
    last = [part.name for part in speed.further_parts(settings)]
    assert [part.name for part in on_accelerator.parts(settings)][-len(last) :] == last


@pytest.mark.parametrize("step", speed.STEPS)
def test_a_call_has_as_many_whole_batches_as_it_says(step):
    learner = speed.STEPS[step](128)
    assert learner.batch_size == 128
    for size in (16, 128, 256, 1024):
        assert speed.FULL.steps(size) % 10 == 0  # so that a trace on one step of ten has its share


def test_the_step_on_masks_is_two_passes_over_masks_alone():
    model = models.create(
        "small_cnn", image_spec("tiny", (8, 8, 3), 4, (0.5,) * 3, (0.5,) * 3, (), 1, True), width=2
    )
    learner = speed.STEPS["anp_like"](4)
    key = jax.random.key(0)
    split = measure.random_split(model.spec, 8)
    state = jax.eval_shape(lambda: learner.init(key, model, model.init(key), split))
    # Channels of the norms but the first
    assert sum(leaf.size for leaf in jax.tree.leaves(state.tuned)) == 4 + 8
    assert learner.transformation == SharpnessAware(speed.RHO, adaptive=False)


# --- The rows --------------------------------------------------------------------------------------------------------


def test_a_steps_row_has_the_rates_and_shares_of_its_own_seconds(nothing_runs, session):
    part = speed._step_part(CASE, speed.DEBUG, tuple(map(Way, LAYOUTS)))
    own, nchw, last = rows_of(part, session)
    assert own["seconds_per_step"] == 0.5
    assert own["images_per_second"] == SIZE / 0.5
    assert own["ratio_to_plain"] == 5 / 2
    assert own["host_share"] == pytest.approx(0.01)
    assert own["share_of_matmul"] == pytest.approx(6e9 / 0.5 / (1e12 / 0.5))
    assert own["share_of_copy"] == pytest.approx(1e9 / 0.5 / (1e11 / 0.25))
    assert (nchw["layout"], nchw["bdjax_over_torch"]) == ("NCHW", 8 / 5)  # bdjax is faster
    assert (last["layout"], last["bdjax_over_torch"]) == ("channels_last", 4 / 5)
    assert last["images_per_second"] == SIZE / 0.4
    assert last["bdjax_images_per_second"] == own["images_per_second"]


def test_a_step_that_has_loops_of_its_own_is_not_counted(nothing_runs, session, monkeypatch):
    monkeypatch.setitem(SECONDS, "fast_sft", 1.0)
    monkeypatch.setattr(
        measure, "timed", lambda work, rounds: dict.fromkeys(work, measure.Timing(1.0, 0.5))
    )
    (row,) = rows_of(
        speed._step_part(speed.Case("fast_sft", "float32", SIZE), speed.DEBUG_SMALL), session
    )
    assert "share_of_matmul" not in row
    assert "matmul_flops_per_second" in row


def test_without_pytorch_a_row_says_so_and_bdjax_is_measured(nothing_runs, session, monkeypatch):
    monkeypatch.setattr(speed, "_torch", torch_process.TorchProcess)
    monkeypatch.setattr(torch_process.importlib.util, "find_spec", lambda name: None)
    found = rows_of(speed._step_part(CASE, speed.DEBUG, (Way(),)), session)
    assert [row["by"] for row in found] == ["PyTorch", "bdjax"]
    assert found[0]["missing"] == "PyTorch is not installed"
    assert "PyTorch is not installed" in speed.tables(found)


def test_a_step_that_does_not_fit_is_not_run(nothing_runs, session, monkeypatch):
    nothing_runs.fits = False
    (row,) = rows_of(speed._step_part(CASE, speed.DEBUG, (Way(),)), session)
    assert row["missing"] == "not enough memory"
    assert speed.tables([row]) == ""


@pytest.mark.parametrize("fits", [True, False])
def test_a_sweep_is_priced_in_single_runs(nothing_runs, session, monkeypatch, fits):
    def costs(points, model, single, forms, steps, rounds):
        assert (
            len({(float(p.learner.transformation.rho), str(p.key)) for p in points})
            == len(points)
            == 4
        )
        cost = {"vmap": 0.5} if fits else {}
        return {
            "seconds_per_step": {"single": 0.1, "vmap": 0.2},
            "cost_per_point": cost,
            "compile_seconds": {"vmap": 7.0},
        }

    monkeypatch.setattr(sweeps, "costs", costs)
    case = speed.Case("sam", "float32", SIZE, "small_cnn")
    (row,) = rows_of(speed._sweep(case, speed.DEBUG_SMALL, ("vmap",))[0], session)
    assert (row["points"], row["compile_seconds"]) == (4, 7.0)
    assert row.get("in_singles", row.get("missing")) == (2.0 if fits else "not enough memory")
    assert ("2.0" if fits else "not enough memory") in speed.tables([row])


def test_compiling_and_memory_are_of_the_epoch_that_is_called(monkeypatch):
    case = speed.Case("plain", "float32", 4, "small_cnn")
    scale = speed.DEBUG.__class__(2, 8, 1, 1, 1, 1, 4, {})
    epoch = speed._epoch(case, scale)
    assert epoch.compile_seconds > 0
    assert epoch.held_bytes > sum(leaf.nbytes for leaf in jax.tree.leaves(epoch.state))
    model, split = speed._model_and_split(case, scale)
    step = measure.step_flops(speed.STEPS["plain"](4), model, split)
    assert epoch.flops == pytest.approx(step, rel=0.05)  # once, and not ten times


# --- The tables ------------------------------------------------------------------------------------------------------


def test_tables_say_what_was_measured_on_what(nothing_runs, session):
    rows = rows_of(speed._step_part(CASE, speed.DEBUG, tuple(map(Way, LAYOUTS))), session)
    ending = {
        "device": {"count": 1, "kind": "Card 9"},
        "versions": {"jax": "0.0"},
        "date": "2000-01-01",
    }
    text = speed.tables(
        [*rows, {"part": "speed/x", "done": True, **ending}, {"part": "right/x", "peak": "none"}]
    )
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if "|" in line
    ]
    assert ["SAM", "float32", "16", "500", "32", "2.50", "1%", "0%"] in [row[:8] for row in cells]
    assert ["SAM", "float32", "eager", "NCHW", "16", "800", "20", "32", "1.60"] in [
        row[:9] for row in cells
    ]
    assert "1 × Card 9, jax 0.0, 2000-01-01" in text
    assert "PyTorch 2.0" in text


def test_other_subjects_rows_make_no_table():
    assert speed.tables([{"part": "victims/badnets", "rate": "x", "images_per_second": 1.0}]) == ""


def test_all_kinds_of_rows_have_their_table():
    operation = profile.Operation(
        "fusion.1", "jit_epoch", 0.25, 0.5, 20, "a/conv", "layers.py:9"
    )._asdict()
    found = speed.tables(
        [
            {
                "part": "speed/peak",
                "peak": "bfloat16",
                "matmul_flops_per_second": 7e14,
                "copy_bytes_per_second": 3e12,
            },
            {"part": "speed/loads", "rate": "load digits", "images_per_second": 12345.0},
            {"part": "speed/startup", "startup": "plain", "cold": 30.0, "cached": 2.0},
            {"part": "speed/startup", "startup": "import", "cold": 1.0},
            {"part": "speed/profile", "operation_of": "sam", "steps": 10, **operation},
        ]
    )
    lines = [line.replace(" ", "") for line in found.splitlines()]
    for line in (
        "|bfloat16|700,000|3,000|",
        "|loaddigits|12,345|",
        "|plain|30.0|2.0|",
        "|import|1.0|–|",
    ):
        assert line in lines
    assert "|SAM|fusion.1|50.0%|25.0|2|layers.py:9|" in lines


def test_the_table_of_steps_names_pytorchs_layout():
    row = {
        "width": 16, "batch_size": 128, "sam_to_plain": 2.0, "seconds_per_step": {"plain_epoch": 1.0, "sam_epoch": 2.0},
        "plain_to_torch": 1.5, "plain_torch_layout": "channels_last", "sam_to_torch": 1.25, "sam_torch_layout": "NCHW",
    }  # fmt: skip
    for name in ("plain", "sam"):
        row |= {
            f"{name}_images_per_second": 1.0,
            f"{name}_share_of_matmul": 0.5,
            f"{name}_epoch_overhead": 0.0,
        }
    steps = {**result_tables.load("steps.json"), "steps": [row]}
    startup = result_tables.load("startup.json")
    text = result_tables.speed_table(steps, startup)
    assert "| 1.50 (channels_last) |" in text
    assert "| 1.25 (NCHW) |" in text


# --- PyTorch ---------------------------------------------------------------------------------------------------------


def test_a_process_that_dies_is_told_and_started_anew(monkeypatch):
    real = subprocess.Popen
    answers = ['{"version": "9"}', '{"error": "no"}']
    codes = iter(["raise SystemExit(3)", *(f"print(input() and {answer!r})" for answer in answers)])
    monkeypatch.setattr(torch_process.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(
        torch_process.subprocess,
        "Popen",
        lambda command, **options: real([sys.executable, "-c", next(codes)], **options),
    )
    process = torch_process.TorchProcess()
    asked = {"way": Way(), "width": 4, "batch_size": 4, "count": 1, "sam": False}
    with pytest.raises(torch_process.Missing, match="ended with code"):
        process.take(**asked)
    assert process.take(**asked) == {"version": "9"}
    process.close()
    with pytest.raises(torch_process.Missing, match="no"):
        process.take(**asked)
    process.close()


WIDTH = 4
SPEC = image_spec("random", (32, 32, 3), 10, (0.5,) * 3, (0.25,) * 3, (), 0, False)


def torch_parameters(variables):
    """bdjax's variables in the order of PyTorch's modules: parameters, then running statistics."""
    params, stats = variables["params"], variables["batch_stats"]
    kernel = lambda layer: np.asarray(layer["kernel"]).transpose(3, 2, 0, 1)  # noqa: E731
    found, running = [kernel(params["conv1"])], []
    for block in sorted(name for name in params if name.startswith("layer")):
        layers = params[block]
        for norm in ("bn1", "bn2"):
            found += [layers[norm]["scale"], layers[norm]["bias"]]
            running += [stats[block][norm]["mean"], stats[block][norm]["var"]]
        found += [kernel(layers[name]) for name in ("conv1", "conv2", "shortcut") if name in layers]
    dense = params["linear"]
    return [*found, np.asarray(dense["kernel"]).T, dense["bias"]], running


def test_a_step_in_pytorch_is_bdjaxs_step():
    torch = pytest.importorskip("torch")
    from accelerator import torch_steps

    assert sum(x.numel() for x in torch_steps.PreActResNet18().parameters()) == 11_171_146
    model = models.create("preact_resnet18", SPEC, width=WIDTH)
    split = measure.random_split(SPEC, 8)
    image, label = (torch.tensor(np.asarray(x)) for x in split[:2])
    start = model.init(jax.random.key(0))
    options = {"batch_size": 8, "augment": "none", "weight_decay": 5e-4}
    made = {
        "plain": supervised(**options),
        "sam": defenses.create("ft_sam", rho=0.5, **options).learner,
    }
    for name, layout in zip(made, LAYOUTS, strict=True):
        learner, other = made[name], torch_steps.Learner(WIDTH, Way(layout))
        with torch.no_grad():
            for mine, theirs in zip(
                (other.parameters, other.statistics), torch_parameters(start), strict=True
            ):
                for values, found in zip(mine, theirs, strict=True):
                    values.copy_(torch.tensor(np.asarray(found)))
        state = learner.init(jax.random.key(0), model, start, split)
        state, info = jax.jit(learner.update, static_argnums=1)(
            jax.random.key(1), model, state, split
        )
        step = (
            other.plain
            if name == "plain"
            else lambda *batch, other=other: other.sam(*batch, rho=0.5)
        )
        loss = step(other.normalized(image), label.long())[0]
        assert float(loss) == pytest.approx(float(info.loss), rel=1e-4)
        after = torch_parameters({"params": state.tuned, "batch_stats": state.batch_stats})
        for mine, theirs in zip((other.parameters, other.statistics), after, strict=True):
            for values, found in zip(mine, theirs, strict=True):
                np.testing.assert_allclose(
                    values.detach().numpy(), np.asarray(found), rtol=1e-3, atol=2e-5
                )


def test_pytorchs_crop_and_flip_are_windows_of_the_image():
    torch = pytest.importorskip("torch")
    from accelerator import torch_steps

    learner = torch_steps.Learner(2, Way("NCHW"))
    image = torch.randint(0, 256, (6, 32, 32, 3), dtype=torch.uint8)
    for row, out in enumerate(learner.augmented(image)):
        padded = jnp.pad(jnp.asarray(image[row].numpy(), jnp.float32), ((4, 4), (4, 4), (0, 0)))
        normalized = np.asarray((padded / 255 - 0.5) / 0.25).transpose(2, 0, 1)
        windows = [
            normalized[:, top : top + 32, left : left + 32] for top in range(9) for left in range(9)
        ]
        found = [
            np.abs(w - out.numpy()).max() < 1e-5 or np.abs(w[:, :, ::-1] - out.numpy()).max() < 1e-5
            for w in windows
        ]
        assert sum(found) == 1
