"""Options of XLA that help, one table for each backend, and which of them the XLA that is here knows.

They go with each program as compiler options, not through ``XLA_FLAGS``: there an unknown one aborts the process, here
it is an exception, so that each can be tried before it is used. Names and values are checked without the device that
they are for: a jaxlib knows the options of all backends, and refuses what it does not know on a CPU too.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import re
from collections.abc import Mapping
from typing import TypeAlias

import jax

Value: TypeAlias = bool | int | str
Options: TypeAlias = Mapping[str, Value]


@dataclasses.dataclass(frozen=True)
class Flag:
    """One or more options of XLA that are set together.

    Attributes:
      name: what it is called in tables.
      options: names and values, as ``compiler_options`` of `jax.jit` takes them.
      why: what is hoped for, or was found.
      measured: where it was measured, and what came out; None where nobody has.
      since, before: the versions of jaxlib that it is for; None for any.
    """

    name: str
    options: Options
    why: str
    measured: str | None = None
    since: str | None = None
    before: str | None = None

    def fits(self, jaxlib: str) -> bool:
        """Whether it is for a version of jaxlib."""
        here = _numbers(jaxlib)
        late_enough = self.since is None or _numbers(self.since) <= here
        return late_enough and (self.before is None or here < _numbers(self.before))


# What is switched on.
USED: dict[str, tuple[Flag, ...]] = {
    "cpu": (
        Flag(
            "own convolutions",
            {
                "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
            },
            "XLA sends convolutions to a library that is slower than its own kernels for training",
            measured="two CPU cores, jax 0.10 and 0.11; the XLA of jax 0.12 knows the option, too",
        ),
    )
}

_GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION"
_LAUNCHES = "on GPUs a scan launches the kernels of each step from the host"

# What `experiments/on_accelerator.py` times, one at a time over the defaults. Nothing here is switched on.
CANDIDATES: dict[str, tuple[Flag, ...]] = {
    "gpu": (  # in the order of what is hoped for
        Flag(
            "unrolled loops in graphs",
            {
                "xla_gpu_enable_command_buffer": f"{_GRAPHS},WHILE,CONDITIONAL",
                "xla_gpu_command_buffer_unroll_loops": True,
            },
            _LAUNCHES,
        ),
        Flag(
            "loops in graphs",
            {"xla_gpu_enable_command_buffer": f"{_GRAPHS},WHILE,CONDITIONAL"},
            _LAUNCHES,
        ),
        Flag("deterministic", {"xla_gpu_deterministic_ops": True}, "what --deterministic costs"),
        Flag(
            "deterministic kernels",
            {"xla_gpu_exclude_nondeterministic_ops": True},
            "no kernel that adds in any order, but the tuned ones",
        ),
        Flag(
            "fusions tuned",
            {"xla_gpu_experimental_enable_fusion_autotuner": True},
            "tries kernels of two kinds for each fusion, such as batch norm's",
        ),
        Flag(
            "Triton for several outputs",
            {"xla_gpu_unsupported_enable_triton_multi_output_fusion": True},
            "one sweep for the two sums of batch norm",
        ),
        Flag(
            "convolution fusions",
            {"xla_gpu_experimental_enable_conv_fusion": True},
            "convolution with what follows it as one kernel",
        ),
        Flag(
            "runtime fusion",
            {"xla_gpu_use_runtime_fusion": True},
            "cuDNN compiles such kernels; a slow first call",
        ),
        Flag(
            "loops unrolled by two",
            {"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_DOUBLE_BUFFER"},
            "saves the copies between two steps; otherwise done only where devices communicate",
        ),
        Flag(
            "no tuning",
            {"xla_gpu_autotune_level": 0},
            "how much of compiling is trying kernels out, and its worth",
        ),
        Flag(
            "no Triton products",
            {"xla_gpu_enable_triton_gemm": False},
            "the products are few; compiles faster",
        ),
        Flag(
            "no graphs",
            {"xla_gpu_enable_command_buffer": ""},
            "how much CUDA graphs bring as it is",
        ),
        Flag(
            "small graphs",
            {"xla_gpu_graph_min_graph_size": 2},
            "five kernels make a graph otherwise",
        ),
        Flag(
            "all fusions by Triton",
            {"xla_gpu_experimental_all_fusions_with_triton": True},
            "other kernels for what the memory limits",
        ),
        Flag(
            "NHWC",
            {"xla_gpu_force_conv_nhwc": True},
            "before Hopper, float32 convolutions are laid out as NCHW",
        ),
    ),
    "cpu": (
        Flag(
            "no library",
            {"xla_cpu_experimental_ynn_fusion_type": ""},
            "XLA's own kernels for products and sums too",
        ),
    ),
}

# Of a GPU, XLA's tuning times kernels in each process, which may choose others. The option forbids that, and the
# kernels that add in any order; xla_gpu_exclude_nondeterministic_ops forbids the latter alone.
DETERMINISTIC: dict[str, Options] = {"gpu": {"xla_gpu_deterministic_ops": True}}


@functools.cache
def used(backend: str) -> dict[str, Value]:
    """Return the options that are switched on for a backend, as far as this XLA knows them."""
    found: dict[str, Value] = {}
    for flag in USED.get(backend, ()):
        if flag.fits(importlib.metadata.version("jaxlib")) and unknown(flag.options) is None:
            found |= flag.options
    return found


def unknown(options: Options) -> str | None:
    """Return why this XLA refuses the options, in its own words; None where it takes them."""
    return _refusal(tuple(options.items()))


@functools.cache
def _refusal(options: tuple[tuple[str, Value], ...]) -> str | None:
    try:
        jax.jit(lambda x: x + 1, compiler_options=dict(options)).lower(0.0).compile()
    except Exception as error:  # a JaxRuntimeError or a ValueError, depending on the version
        return str(error).partition("\n")[0].removeprefix("INVALID_ARGUMENT: ").rstrip(".")
    return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", version)[:3])
