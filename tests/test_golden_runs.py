"""Golden runs: what small runs and sweeps gave when `golden_runs.json` was written, they give now.

The file holds for each run its name and its victim's, its counts and rates before and after the defense, what it took,
and digests of all bits of the attacked and of the purified network. Names hold everywhere. Bits depend on JAX, on XLA's
options and on the processor: where these are the file's, everything must be equal. Elsewhere the digests are skipped,
and counts of images may differ by `TOLERANCE`.

A run that is there twice, from a sweep or with streamed images too, is the same to the bit.

A change that is to move a result renews the file, and its commit says why: ``python tests/test_golden_runs.py``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import conftest  # noqa: F401 - in a process of its own too, programs are compiled as in the tests
import jax
import numpy as np
import pytest

from bdjax import cli, saved

GOLDEN = Path(__file__).with_name("golden_runs.json")
TOLERANCE = 25  # of 450 test images, elsewhere; with the instructions and options of another machine it was 17 at most
COUNTS = ("clean_correct", "clean_total", "attack_hits", "robust_correct", "attack_total")
RATES = ("clean_accuracy", "attack_success_rate", "robust_accuracy")

VICTIM = "--model.width 4 --training.epochs 6"
# The commands of a group share a folder, and so their victim. The programs of all are small, and as few as can be.
GROUPS = {
    "defenses": [
        f"run {VICTIM} --defense.epochs 8 --defense {defense}"
        for defense in (
            "ft_sam --defense.rho 4",
            "ft_sam --defense.rho auto --selection.budget 0.04",
            "l2_ft",
            "sft",
            "fast_sft",
            "nft",
            "fine_pruning",
            "grad_prune",
        )
    ]
    + [
        f"run {VICTIM} --defense chain --defense.first fine_pruning --defense.first.epochs 0 "
        "--defense.second ft_sam --defense.second.epochs 8"
    ],
    "streamed": [f"run {VICTIM} --defense none --data-on host"],
    "adaptive": [
        f"run {VICTIM} --attack blended --attack.poison_rate 0.3 --training.start clean "
        "--training.frozen_convolutions 2 --training.rho 1 --defense none"
    ],
    "batch-poisoned": [
        f"run {VICTIM} --attack wanet --attack.poison_rate 0.3 --attack.cover_ratio 0.5 --attack.strength 1 "
        "--defense none"
    ],
    "learned": [
        f"run {VICTIM} --attack lira --attack.poison_rate 0.3 --attack.epsilon 0.1 --attack.width 4 "
        "--attack.learning_epochs 6 --attack.learning_rate 0.002 --defense none"
    ],
    "clean-label": [
        f"run {VICTIM} --attack lc --attack.steps 10 --attack.epsilon 0.3 --attack.step_size 0.03 --defense none"
    ],
    "parts": [
        f"run {VICTIM} --attack combined --attack.parts badnets+trojan --attack.poison_rate 0.25 --defense none"
    ],
    "preact_resnet18": [
        "run --model preact_resnet18 --model.width 2 --training.epochs 2 --defense none"
    ],
    "sweep": [
        f"sweep {VICTIM} --defense ft_sam --defense.epochs 8 --over defense.rho=1,4 --seeds 2 --form loop",
    ],
    "sweep-of-victims": [
        f"sweep {VICTIM} --training.eta_f 0.0001 --holdout.held_out true --defense nft --defense.epochs 8 "
        "--over attack=badnets,blended --over attack.poison_rate=0.05,0.2 --form vmap",
    ],
}

SLOW = ("learned", "clean-label", "preact_resnet18", "sweep", "sweep-of-victims")
CASES = [pytest.param(group, marks=[pytest.mark.slow] if group in SLOW else []) for group in GROUPS]

Rows = dict[str, dict[str, Any]]  # by the run's id


def carry_out(group: str, root: Path) -> Rows:
    """Return what the runs of a group give; all that a later shape of the package may change stands here."""
    out = root / group
    for command in GROUPS[group]:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = cli.main([*command.split(), "--quiet", "--out", str(out)])
        assert code == 0, said.getvalue()
    return {file.parent.name: _row(file) for file in sorted(out.glob("*/record.json"))}


def _row(file: Path) -> dict[str, Any]:
    record = json.loads(file.read_text())
    networks = saved.restore(file.parent)
    metrics = record["metrics"]
    return {
        "victim_id": record["victim_id"],
        "poisoned_count": record["data"]["poisoned_count"],
        "gradient_evaluations": [
            record[part]["gradient_evaluations"] for part in ("victim", "cost")
        ],
        "before": {name: metrics["before"][name] for name in COUNTS},
        "after": {name: metrics["after"][name] for name in COUNTS},
        "rates": [metrics[when][name] for when in ("before", "after") for name in RATES],
        "defense_effectiveness_rating": metrics["defense_effectiveness_rating"],
        "chosen": record.get("selection", {}).get("chosen"),
        "victim": digest(networks.victim),
        "purified": digest(networks.defended),
    }


def digest(variables: Any) -> str:
    """Return the SHA-256 of a tree's leaves by sorted path: path, shape, type and bytes of each."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }
    found = hashlib.sha256()
    for path, leaf in sorted(named.items()):
        found.update(f"{path} {leaf.shape} {leaf.dtype.str} ".encode() + leaf.tobytes())
    return found.hexdigest()


def environment() -> dict[str, Any]:
    """Return what the bits depend on."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {
        **{name: importlib.metadata.version(name) for name in packages},
        "xla_flags": _flags(),
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "processor": _processor(),
    }


def _flags() -> dict[str, str]:
    """Return XLA's flags with their values; of one that stands twice the last counts, as in the workers of a test."""
    words = (word.partition("=") for word in os.environ["XLA_FLAGS"].split())
    return {name: value for name, _, value in words}


def _processor() -> list[str]:
    """Return the kind of processor, and on Linux its family, model and vector instructions."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().partition("\n\n")[0].splitlines() if file.exists() else []
    fields = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    known = [fields[name] for name in ("vendor_id", "cpu family", "model") if name in fields]
    vectors = [
        flag for flag in fields.get("flags", "").split() if flag.startswith(("avx", "fma", "amx"))
    ]
    return [platform.machine(), *known, *sorted(vectors)]


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory, no_cache_of_the_user):
    """Carry out a group, once."""
    return functools.cache(functools.partial(carry_out, root=tmp_path_factory.mktemp("golden")))


def without_images(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what no rounding changes."""
    totals = {
        name: row[when][name]
        for when in ("before", "after")
        for name in ("clean_total", "attack_total")
    }
    return {
        **{name: row[name] for name in ("victim_id", "poisoned_count", "gradient_evaluations")},
        **totals,
    }


@pytest.mark.parametrize("group", CASES)
def test_a_run_keeps_its_name_and_about_its_counts(group, found, golden):
    rows, stored = found(group), golden["runs"][group]
    assert {name: without_images(row) for name, row in rows.items()} == {
        name: without_images(row) for name, row in stored.items()
    }
    for name, row in rows.items():
        for when in ("before", "after"):
            assert row[when] == pytest.approx(stored[name][when], abs=TOLERANCE), name


@pytest.mark.parametrize("group", CASES)
def test_a_run_keeps_its_bits_in_the_same_environment(group, found, golden):
    here, there = environment(), golden["environment"]
    if here != there:
        differing = [name for name in here if here[name] != there.get(name)]
        pytest.skip(f"the stored bits are of another {', '.join(differing)}")
    assert found(group) == golden["runs"][group]


def test_a_run_that_is_there_twice_has_one_result(golden):
    rows: Rows = {}
    twice = set()
    for group in golden["runs"].values():
        twice |= rows.keys() & group.keys()
        assert {name: row for name, row in group.items() if rows.setdefault(name, row) != row} == {}
    assert len(twice) == 3  # of the sweep; the streamed one is among them


def renew() -> None:
    """Write the file anew, a run a line."""
    with tempfile.TemporaryDirectory() as root:
        groups = {group: carry_out(group, Path(root)) for group in GROUPS}
    written = []
    for group, rows in groups.items():
        lines = [f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
        written.append(f"  {json.dumps(group)}: {{\n" + ",\n".join(lines) + "\n  }")
    GOLDEN.write_text(
        f'{{"environment": {json.dumps(environment())},\n "runs": {{\n'
        + ",\n".join(written)
        + "\n }\n}\n"
    )


if __name__ == "__main__":
    renew()
