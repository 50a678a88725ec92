"""What a result was computed with and on, as plain values."""

import json
import sys

import jax
import numpy as np

from bdjax.devices import environment


def test_versions_and_device_are_plain_values():
    found = environment.versions()
    assert {"python", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"} <= found.keys()
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["numpy"] == np.__version__
    assert json.loads(json.dumps(environment.device(2)))["count"] == 2


def test_the_device_comes_with_the_settings_that_decide_rounding(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    with jax.default_matmul_precision("highest"):
        found = environment.device(1)
    assert (found["matmul_precision"], found["xla_flags"]) == (
        "highest",
        "--xla_gpu_deterministic_ops=true",
    )
    monkeypatch.delenv("XLA_FLAGS")
    assert (environment.device(1)["matmul_precision"], environment.device(1)["xla_flags"]) == (
        None,
        "",
    )
