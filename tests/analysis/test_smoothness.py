"""The loss surface: a network against its dense Hessian, runs measured on the way and afterwards."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from quick import quick_jit
from subjects import planted_subject

from bdjax import cli, models
from bdjax.analysis import smoothness
from bdjax.checks import InputError
from bdjax.curvature import loss_surface
from bdjax.curvature.hessian import hessian_vector_product, spectral_density
from bdjax.curvature.loss_surface import Settings
from bdjax.files import atomic
from bdjax.report.layout import BLUE, ORANGE
from bdjax.runs import config as configs
from bdjax.runs import run, schema
from bdjax.runs.curve import Curve
from bdjax.runs.folder import RunFolder
from bdjax.runs.run import Execution
from bdjax.train import loop
from bdjax.types import PoisonedSplit, Split

pytestmark = pytest.mark.usefixtures("no_cache_of_the_user")

KEY = jax.random.key(0)

# --- A network -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(spec):
    """A network of 200 parameters, with statistics that are not the initial ones."""
    model = models.create("small_cnn", spec, width=1)
    variables = model.init(KEY)
    stats = jax.tree.map(lambda leaf: leaf + 0.3, variables["batch_stats"])
    return model, {
        "params": jax.tree.map(lambda leaf: 1.5 * leaf, variables["params"]),
        "batch_stats": stats,
    }


@pytest.fixture(scope="module")
def few(split):
    return Split(*(array[:16] for array in split))


@pytest.fixture(scope="module")
def triggered(split):
    label = np.zeros_like(split.label)
    valid = split.label != 0
    return PoisonedSplit(Split(255 - split.input, label, valid), split.label, valid)


@pytest.fixture(scope="module")
def dense(tiny, few):
    """The network's loss, Hessian and mean squared gradient norm on 16 images, by JAX's own derivatives."""
    model, variables = tiny
    flat, unravel = ravel_pytree(variables["params"])

    def losses(at):
        logits, _ = model.apply({**variables, "params": unravel(at)}, jnp.float32(few.input) / 255)
        return optax.softmax_cross_entropy_with_integer_labels(logits, few.label)

    @quick_jit
    def all_three(at):
        hessian = jax.hessian(lambda at: losses(at).mean())(at)
        return losses(at).mean(), hessian, (jax.jacrev(losses)(at) ** 2).sum(1).mean()

    return [np.asarray(part) for part in all_three(flat)]


SETTINGS = Settings(images=16, draws=30, iterations=300, tolerance=1e-6, chunk=10)


@pytest.fixture(scope="module")
def measured(tiny, few, triggered):
    return loss_surface.measure(KEY, *tiny, few, triggered, variant="clean", settings=SETTINGS)


def test_a_network_has_the_smoothness_of_its_dense_hessian(measured, dense):
    loss, hessian, fisher = dense
    eigenvalues = np.linalg.eigvalsh(hessian)
    assert measured.eigenvalue_converged
    assert measured.largest_eigenvalue == pytest.approx(max(eigenvalues, key=abs), rel=1e-4)
    assert abs(measured.hessian_trace - np.trace(hessian)) < 4 * measured.hessian_trace_error
    assert measured.fisher_trace == pytest.approx(float(fisher), rel=1e-4)
    assert measured.loss == pytest.approx(float(loss), rel=1e-5)


def test_a_networks_density_has_the_moments_of_its_dense_hessian(tiny, few, dense):
    model, variables = tiny
    loss, hessian = loss_surface.mean_loss(model, variables, few), dense[1]
    spectrum = quick_jit(lambda params: spectral_density(KEY, loss, params, steps=60))(
        variables["params"]
    )
    eigenvalues, size = np.linalg.eigvalsh(hessian), len(hessian)
    scale = float(abs(eigenvalues).max())
    assert spectrum.nodes.max() == pytest.approx(eigenvalues.max(), rel=1e-3)
    assert spectrum.nodes.min() == pytest.approx(eigenvalues.min(), abs=1e-3 * scale)
    start = np.asarray(jax.random.rademacher(jax.random.split(KEY, 1)[0], (size,), jnp.float32))
    for power in (0, 1, 2):
        moment = start @ np.linalg.matrix_power(hessian, power) @ start / size
        assert (spectrum.weights * spectrum.nodes**power).sum() == pytest.approx(
            moment, abs=1e-4 * scale**power
        )


def test_chunks_do_not_change_the_result(tiny, split):
    model, variables = tiny
    params = variables["params"]
    part = Split(*(array[:17] for array in split))
    # And no multiple of a chunk
    longer = Split(*(array[:19] for array in split))._replace(valid=np.arange(19) < 17)

    def of(split, chunk):
        loss = loss_surface.mean_loss(model, variables, split, chunk=chunk)
        product = quick_jit(lambda vector: hessian_vector_product(loss, params, vector))
        return loss(params), product(jax.tree.map(jnp.ones_like, params))

    (value, product), (whole_value, whole_product) = of(longer, 7), of(part, 100)
    assert value == pytest.approx(float(whole_value), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), product, whole_product
    )


def test_products_run_at_full_precision(tiny, split):
    loss = loss_surface.mean_loss(*tiny, split, chunk=20)
    params = tiny[1]["params"]
    text = str(jax.make_jaxpr(lambda v: hessian_vector_product(loss, params, v))(params))
    assert "precision=(Precision.HIGHEST, Precision.HIGHEST)" in text.replace("<", "").replace(
        ": 2>", ""
    )
    assert "precision=None" not in text


def test_measuring_leaves_the_variables_alone_and_repeats(tiny, few, triggered, measured):
    before = jax.tree.map(np.array, tiny[1])
    again = loss_surface.measure(KEY, *tiny, few, triggered, variant="clean", settings=SETTINGS)
    assert again.plain() == measured.plain()
    jax.tree.map(np.testing.assert_array_equal, before, tiny[1])


def test_plain_has_no_number_that_json_lacks():
    values = loss_surface.Smoothness(*map(jnp.float32, (1, 1, jnp.nan, jnp.inf, 2, 3)))._replace(
        eigenvalue_converged=jnp.bool_(False)
    )
    assert list(values.plain().values()) == [1.0, False, None, None, 2.0, 3.0]


def test_samples_have_true_labels_and_the_variants_shares(split, triggered):
    def kinds(variant, images):
        chosen = loss_surface.sample(KEY, split, triggered, variant=variant, images=images)
        assert chosen.valid.all()
        counts = []
        for image, label in zip(chosen.input, chosen.label, strict=True):
            sources = [
                (split.input == image).all((1, 2, 3)),
                (255 - split.input == image).all((1, 2, 3)),
            ]
            counts.append(bool(sources[1].any()))
            assert split.label[(sources[0] | sources[1]).argmax()] == label
        return counts.count(False), counts.count(True)

    assert kinds("clean", 9) == (9, 0)
    assert kinds("triggered", 9) == (0, 9)
    assert kinds("mixed", 9) == (5, 4)
    assert kinds("mixed", 72) == (36, 36)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "mixd"}, "variant must be one of clean, triggered, mixed; got 'mixd'"),
        (
            {"variant": "triggered", "settings": Settings(images=37)},
            "triggered ones of them are drawn, and the test split has 36",
        ),
        ({"settings": Settings(images=1)}, "images must be 2 or more, got 1"),
        ({"settings": Settings(draws=1)}, "draws must be 2 or more, got 1"),
        ({"settings": Settings(chunk=0)}, "chunk must be 1 or more, got 0"),
        ({"settings": Settings(tolerance=0.0)}, "tolerance must be above 0, got 0.0"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny, split, triggered, change, message):
    with pytest.raises(InputError, match=message):
        loss_surface.measure(KEY, *tiny, split, triggered, **change)


# --- Runs ------------------------------------------------------------------------------------------------------------


def test_a_curve_keeps_its_rows_and_the_rest_of_its_file(tmp_path):
    file, seen = tmp_path / "smoothness.json", []

    def measure(variables):
        seen.append(variables)
        return {"value": variables}

    atomic.write_json(file, {"before": {}})
    curve = Curve(RunFolder(tmp_path), {"images": 2}, measure, every=2, last=5)
    for epoch in range(4):
        curve(epoch, lambda epoch=epoch: epoch)
    for epoch in range(1, 4):  # of a second stage, which repeats what came before an interruption
        curve.after(2)(epoch, lambda epoch=epoch: 2 + epoch)
    assert seen == [0, 2, 4, 5]
    content = json.loads(file.read_text())
    assert content["before"] == {}
    assert content["curve"]["rows"] == [{"epoch": epoch, "value": epoch} for epoch in seen]
    Curve(RunFolder(tmp_path), {"images": 3}, measure, every=2, last=5)(0, lambda: 0)
    assert len(json.loads(file.read_text())["curve"]["rows"]) == 1


SIZES = ("--model.width", "2", "--training.epochs", "1", "--defense", "ft", "--defense.epochs", "3")
MIXED = ("--variant", "mixed")  # the curve's own settings, so that the measurement is compiled once


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with its control, measured every second epoch."""
    folder = tmp_path_factory.mktemp("runs")
    assert (
        cli.main(["run", *SIZES, "--smoothness-every", "2", "--quiet", "--out", str(folder)]) == 0
    )
    return folder


@pytest.fixture
def copied(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def file_of(folder, defense="ft"):
    (run_folder,) = folder.glob(f"digits-badnets-{defense}-*")
    return run_folder / "smoothness.json"


def test_a_run_measures_its_curve(whole):
    rows = json.loads(file_of(whole).read_text())["curve"]["rows"]
    after = json.loads((file_of(whole).parent / "record.json").read_text())["metrics"]["after"]
    assert [row["epoch"] for row in rows] == [0, 2, 3]
    assert rows[-1]["clean_accuracy"] == after["clean_accuracy"]
    assert rows[-1]["attack_success_rate"] == after["attack_success_rate"]
    assert len({row["largest_eigenvalue"] for row in rows}) == 3
    control = json.loads(file_of(whole, "none").read_text())["curve"]["rows"]
    assert control == rows[:1], "without a defense there is the attacked network alone"


def test_an_interrupted_run_has_the_same_curve(whole, tmp_path):
    config = configs.resolve(schema.overrides(list(SIZES)))
    shutil.copytree(whole / "victims", tmp_path / "victims")
    with pytest.raises(loop.Stopped):
        run.run(config, Execution(tmp_path, should_stop=lambda: True, smoothness=2))
    assert [row["epoch"] for row in json.loads(file_of(tmp_path).read_text())["curve"]["rows"]] == [
        0
    ]
    # All of its epochs are repeated, and none measured twice
    shutil.rmtree(tmp_path / config.run_id / "checkpoints-0")
    marked = json.loads(file_of(tmp_path).read_text())
    marked["curve"]["rows"][0]["loss"] = -1.0
    atomic.write_json(file_of(tmp_path), marked)
    run.run(config, Execution(tmp_path, smoothness=2))
    first, *rest = json.loads(file_of(tmp_path).read_text())["curve"]["rows"]
    assert first["loss"] == -1.0
    assert rest == json.loads(file_of(whole).read_text())["curve"]["rows"][1:]


def test_a_finished_run_without_a_curve_says_so(copied, caplog, capsys):
    file_of(copied).unlink()
    assert (
        cli.main(["run", *SIZES, "--smoothness-every", "2", "--quiet", "--out", str(copied)]) == 0
    )
    assert "is finished and has no curve of its smoothness" in caplog.text
    capsys.readouterr()


def test_saved_runs_are_measured_once(copied, capsys):
    assert cli.main(["smoothness", str(copied), *MIXED]) == 0
    out, err = capsys.readouterr()
    assert sorted(out.split()) == sorted(
        str(file_of(copied, defense)) for defense in ("none", "ft")
    )
    assert [line.split()[0] for line in err.splitlines()] == ["1/2", "2/2"]
    none, ft = (json.loads(file_of(copied, defense).read_text()) for defense in ("none", "ft"))
    assert ft["settings"] == {"images": 200, "draws": 100, "iterations": 100, "tolerance": 1e-3}
    assert none["before"] == none["after"] == ft["before"]
    assert ft["before"]["mixed"] != ft["after"]["mixed"]
    assert "curve" in ft
    written = {path: path.stat().st_mtime_ns for path in copied.rglob("smoothness.json")}
    assert cli.main(["smoothness", str(copied), *MIXED, "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert written == {path: path.stat().st_mtime_ns for path in copied.rglob("smoothness.json")}

    assert cli.main(["report", str(copied), "--smoothness", "--format", "markdown"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.endswith("| seconds | gradients | λ_max | Tr(H) | Tr(F) |")
    assert "–" not in "".join(rows[:2])
    assert cli.main(["report", str(copied), "--format", "markdown"]) == 0
    assert "λ_max" not in capsys.readouterr().out


def test_a_run_that_cannot_be_loaded_is_named_and_not_trained_again(copied, capsys):
    shutil.rmtree(file_of(copied).parent / "checkpoints-0")
    assert cli.main(["smoothness", str(copied), *MIXED, "--quiet"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "cannot be measured: there is no checkpoint of epoch 3 in" in err
    assert not (file_of(copied).parent / "checkpoints-0").exists()
    assert "after" in json.loads(file_of(copied, "none").read_text()), (
        "the others are measured all the same"
    )
    shutil.rmtree(copied / "victims")
    file_of(copied, "none").unlink()
    assert cli.main(["smoothness", str(copied), *MIXED, "--quiet"]) == 2
    assert "there is no checkpoint of epoch 1 in" in (err := capsys.readouterr().err)
    assert "(and 1 more run)" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "There is no file or folder nowhere"),
        (("{}", "--images", "1"), "images must be 2 or more, got 1"),
        (
            ("{}", "--images", "9999"),
            "9999 clean ones of them are drawn, and the test split has 450; got 9999",
        ),
        (("{}", "--variant", "mix"), "variants must be one of clean, triggered, mixed; got 'mix'"),
        (("{}", "--imges", "3"), "unknown option '--imges'"),
    ],
)
def test_mistakes_are_one_line(whole, words, message, capsys):
    assert cli.main(["smoothness", "--quiet", *(word.format(whole) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert message in err


def test_a_renamed_run_is_refused(copied, capsys):
    folder = file_of(copied).parent.rename(copied / "mine")
    assert cli.main(["smoothness", str(folder), *MIXED, "--quiet"]) == 2
    assert f"{folder} must be named digits-badnets-ft-" in capsys.readouterr().err


def test_a_run_refuses_a_negative_number_of_epochs(capsys):
    assert cli.main(["run", *SIZES, "--smoothness-every", "-1"]) == 2
    assert "smoothness_every must be 0 or more, got -1" in capsys.readouterr().err


# --- The analysis ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curves():
    return smoothness.smoothness(every=5, images=12, draws=2)


@pytest.fixture(scope="module")
def found(curves):
    return curves.measure(planted_subject())


def test_the_curves_are_those_of_the_network_at_each_epoch(curves, found):
    subject = planted_subject()
    assert found["epoch"].tolist() == [0, 1]  # the last one is no multiple
    assert found["attack_success_rate"].tolist() == [1, 0]
    assert found["clean_accuracy"].tolist() == [1, 1]
    # A planted neuron is wrong and very sure
    assert found["fisher_trace"][0] > 100 * found["fisher_trace"][1]
    of = (subject.model, subject.defended, subject.test, subject.triggered)
    after = loss_surface.measure(subject.key, *of, settings=curves.settings)
    for name, value in after._asdict().items():
        np.testing.assert_array_equal(found[name][-1], np.asarray(value))


def test_what_a_logarithmic_axis_cannot_show_is_a_gap(curves, found):
    broken = {
        **found,
        "largest_eigenvalue": np.array([np.nan, 2.0]),
        "hessian_trace": np.array([-3.0, 4.0]),
    }
    page = curves.draw({"run": found, "broken": broken})
    assert len(page.axes) == 4
    lines = page.axes[2].get_lines()
    drawn = {line.get_color(): line.get_ydata() for line in lines if line.get_linestyle() == "-"}
    np.testing.assert_array_equal(drawn[BLUE], [np.nan, 2])
    np.testing.assert_array_equal(drawn[ORANGE], [np.nan, 4])
    assert page.axes[2].get_ylim() == page.axes[0].get_ylim()
    assert 0 < page.axes[0].get_ylim()[0] < 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every must be 1 or more, got 0"),
        ({"variant": "cleen"}, r"variant must be one of .*did you mean 'clean'"),
        ({"draws": 1}, "draws must be 2 or more, got 1"),
    ],
)
def test_the_analysis_refuses(options, words):
    with pytest.raises(InputError, match=words):
        smoothness.smoothness(**options)
