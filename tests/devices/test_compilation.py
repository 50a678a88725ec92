"""Compiling: options that an XLA may not know, the cache on disk, and how long it took."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bdjax.checks import InputError
from bdjax.devices import compilation

# --- options ---------------------------------------------------------------------------------------------------------


def test_what_a_function_is_compiled_with_is_asked_at_the_call(monkeypatch):
    """A module may be imported before its caller says where to compute."""
    asked, used = [], compilation.flags.used
    monkeypatch.setattr(
        compilation.flags, "used", lambda backend: asked.append(backend) or used(backend)
    )
    function = compilation.jit(lambda x: x + 1)
    assert asked == []
    assert function(1) == 2
    assert asked == ["cpu"]


def test_further_options_hold_in_the_block_and_over_the_backends_own():
    own = dict(compilation.options_in_force())
    assert own == compilation.flags.used("cpu")
    (name,) = own
    with compilation.also({name: ""}), compilation.also({"xla_gpu_deterministic_ops": True}):
        assert compilation.options_in_force() == {name: "", "xla_gpu_deterministic_ops": True}
    assert compilation.options_in_force() == own


def test_each_set_of_options_makes_a_program_and_a_known_one_is_used_again(monkeypatch):
    made, own = [], dict(compilation.options_in_force())
    jit, options = jax.jit, {"xla_gpu_deterministic_ops": True}
    assert compilation.flags.unknown(options) is None  # which compiles, once

    def recorded(*args, **kwargs):
        made.append(kwargs["compiler_options"])
        return jit(*args, **kwargs)

    monkeypatch.setattr(jax, "jit", recorded)
    function, bare = compilation.jit(jnp.sin), compilation.jit(jnp.cos, tuned=False)
    for _ in range(2):
        function(1.0)
        with compilation.also(options):
            function(1.0)
    assert made == [own, {**own, **options}]
    bare(1.0)
    with compilation.also(options):
        bare(1.0)
    assert made[2:] == [None, options]


def test_an_option_reaches_the_compiler():
    dot = compilation.jit(lambda x: x @ x)
    x = jnp.ones((64, 64))
    assert "ynn_fusion" in dot.lower(x).compile().as_text()
    with compilation.also({"xla_cpu_experimental_ynn_fusion_type": ""}):
        assert "ynn_fusion" not in dot.lower(x).compile().as_text()


def test_an_option_that_xla_does_not_know_is_refused_before_anything_is_called():
    refused = pytest.raises(InputError, match="No such compile option: 'xla_of_another_age'")
    with refused, compilation.also({"xla_of_another_age": 1}):
        pytest.fail("the block was entered")


def test_jit_passes_its_options_on_and_keeps_the_name():
    def scaled(x, times):
        """Scale."""
        assert isinstance(times, int)  # static, so no tracer
        return x * times

    function = compilation.jit(scaled, static_argnames="times")
    assert function(jnp.arange(3), times=2).tolist() == [0, 2, 4]
    assert (function.__name__, function.__doc__) == ("scaled", "Scale.")
    assert "stablehlo" in function.lower(jnp.arange(3), times=2).as_text()


# --- cache on disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cache_folder():
    """The setting, without one at first and as it was afterwards."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield lambda: jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", before)


NAME = f"bdjax/xla-{importlib.metadata.version('jaxlib')}"


def test_an_existing_setting_is_left_alone(cache_folder, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    compilation.enable_cache()
    compilation.enable_cache(tmp_path / "ours")
    assert cache_folder() == str(tmp_path / "theirs")
    assert not (tmp_path / "ours").exists()


def test_the_cache_lies_where_xdg_says(cache_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    compilation.enable_cache()
    assert cache_folder() == str(tmp_path / "xdg" / NAME)
    assert Path(cache_folder()).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("xdg", [None, ""])
def test_without_xdg_the_cache_lies_in_the_home(cache_folder, tmp_path, monkeypatch, xdg):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if xdg is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    compilation.enable_cache()
    assert cache_folder() == str(tmp_path / ".cache" / NAME)


def test_a_folder_of_ones_own(cache_folder, tmp_path):
    compilation.enable_cache(tmp_path / "mine")
    assert cache_folder() == str(tmp_path / "mine")


def test_a_place_that_cannot_be_written_means_no_cache(cache_folder, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    compilation.enable_cache(tmp_path / "file" / "cache")
    assert cache_folder() is None


def test_a_home_that_is_not_there_means_no_cache(cache_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    # As of a user whom the system does not know
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    compilation.enable_cache()
    assert cache_folder() is None
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_once_and_what_is_kept_is_still_read(
    cache_folder, tmp_path, monkeypatch, caplog
):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings(record=True) as warned:
        compilation.enable_cache(tmp_path / "mine")
        warnings.warn(
            "Error writing persistent compilation cache entry for 'jit_f': OSError: full",
            stacklevel=1,
        )
    assert [str(warning.message) for warning in warned] == []
    assert caplog.messages == [
        f"Compiled programs cannot be kept in {tmp_path / 'mine'} (No space left on device); "
        "each start compiles them again."
    ]
    assert cache_folder() == str(tmp_path / "mine")


MENDED = """
import pathlib, sys
from bdjax.devices import compilation
compilation.enable_cache(pathlib.Path(sys.argv[1]))
import jax
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
print(jax.jit(lambda x: jax.numpy.sin(x) + 1)(0.0))
"""


def test_a_program_that_was_cut_short_is_made_again_without_a_word(tmp_path):
    def start():
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", MENDED, str(tmp_path)]
        ended = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1.0\n", "")
        return {file: file.read_bytes() for file in tmp_path.glob("*-cache")}

    whole = start()
    assert whole
    for file, content in whole.items():
        file.write_bytes(content[: len(content) // 2])
    mended = start()
    assert mended.keys() == whole.keys()
    assert all(len(mended[file]) > len(whole[file]) // 2 for file in whole)


# --- devices ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        # What jax 0.10 says of cuda without its plugin
        (AssertionError(), "its plugin is not installed"),
        (
            RuntimeError(
                "Unable to initialize backend 'tpu': INTERNAL: Failed to open libtpu.so "
                "(set JAX_PLATFORMS='' to automatically choose an available backend)"
            ),
            "Unable to initialize backend 'tpu': INTERNAL: Failed to open libtpu.so",
        ),
    ],
)
def test_an_accelerator_that_is_not_there_is_refused(error, reason, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax, "local_devices", fail)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "tpu")
    try:
        with pytest.raises(InputError) as refused:
            compilation.require_devices()
    finally:
        jax.config.update("jax_platforms", before)
    asked = f"JAX_PLATFORMS asks for 'tpu', which cannot be used here ({reason})"
    assert str(refused.value) == f"{asked}; name another, or none."


# --- seconds ---------------------------------------------------------------------------------------------------------


def test_a_first_call_takes_seconds_to_compile_and_a_second_none():
    function = jax.jit(lambda x: jnp.tanh(x) + 0.125)
    x = jnp.ones(3)
    with compilation.count_seconds() as first:
        function(x)
    with compilation.count_seconds() as second:
        function(x)
    assert sum(first) > 0
    assert second == []


def test_nothing_is_counted_after_the_block():
    with compilation.count_seconds() as seconds:
        pass
    jax.jit(lambda x: x - 0.375)(jnp.ones(3))
    assert seconds == []
    with pytest.raises(ZeroDivisionError), compilation.count_seconds() as seconds:
        raise ZeroDivisionError
    jax.jit(lambda x: x - 0.625)(jnp.ones(3))
    assert seconds == []


def test_blocks_may_be_nested():
    with compilation.count_seconds() as outer:
        with compilation.count_seconds() as inner:
            jax.jit(lambda x: x * 0.875)(jnp.ones(3))
        counted = len(outer)
        jax.jit(lambda x: x * 1.875)(jnp.ones(3))
    assert len(inner) == counted < len(outer)
