"""Test set-up: eight virtual CPU devices, run-time checks of every annotated shape, small shared parts."""

from __future__ import annotations

import gc
import os
from importlib.util import find_spec
from pathlib import Path

# Most programs are small and run once or twice here: LLVM's full effort takes longer than it saves, and so do dividing
# a program among threads and XLA's newer way to write fused loops. Numbers differ by rounding only.
os.environ["XLA_FLAGS"] = (
    "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters "
    + os.environ.get("XLA_FLAGS", "")
)

import jax

jax.config.update("jax_num_cpu_devices", 8)  # before anything else touches JAX
# JAX makes and keeps many small objects; to look through them all again and again takes time.
gc.set_threshold(50_000, 50, 1000)

import jaxtyping  # noqa: E402

CHECKED = (
    "analysis",
    "attacks",
    "bench",
    "curvature",
    "data.augment",
    "data.mixing",
    "data.operations",
    "data.randaugment",
    "data.similarity",
    "data.streams",
    "defenses",
    "devices",
    "evaluate",
    "models",
    "optim",
    "parametrizations",
    "poison",
    "structure",
    "train",
)
jaxtyping.install_import_hook(
    [f"bdjax.{name}" for name in CHECKED], "beartype.beartype"
).__enter__()

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from bdjax import models  # noqa: E402
from bdjax.data.modalities.images import image_spec  # noqa: E402
from bdjax.types import Spec, Split  # noqa: E402

# Networks of PyTorch, which is no part of what tests need: where it is missing, nothing asks for them.
collect_ignore = [] if find_spec("torchvision") else ["torch_networks.py", "torch_transformers.py"]
MOST_MAPS = 35_000  # of 65,530, past which a process is aborted

SPEC = image_spec(
    "tiny", (8, 8, 3), 4, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), crop_padding=1, flip=True
)


@pytest.fixture(scope="session")
def spec() -> Spec:
    return SPEC


@pytest.fixture(scope="session")
def split() -> Split:
    """48 random 8×8 uint8 images of four classes, twelve of each."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (48, 8, 8, 3), dtype=np.uint8)
    return Split(image, np.arange(48, dtype=np.int32) % 4, np.ones(48, bool))


@pytest.fixture(scope="session")
def model(spec):
    """A small network; one object, so that tests share its compilations."""
    return models.create("small_cnn", spec, width=4)


@pytest.fixture(scope="session")
def variables(model):
    return model.init(jax.random.key(0))


@pytest.fixture(scope="module")
def no_cache_of_the_user():
    """Let commands that are called in this process keep no compiled programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bdjax.devices.compilation.enable_cache", lambda: None)
        yield


@pytest.fixture(scope="module")
def no_other_programs():
    """Forget compiled programs first: a trace holds every program of the process, thousands after other tests."""
    jax.clear_caches()
    gc.collect()


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forget compiled programs between files before there are too many: each takes memory maps, which Linux limits."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
