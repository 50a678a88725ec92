"""Compiling: options that an XLA may not know, the cache on disk, and how long it took."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bdjax.train import compilation


@pytest.fixture
def fresh_options():
    """Ask for the compiler options anew, before and after."""
    compilation._compiler_options.cache_clear()
    yield
    compilation._compiler_options.cache_clear()


# --- options ---------------------------------------------------------------------------------------------------------


def test_the_option_is_used_where_xla_knows_it(fresh_options):
    assert compilation._compiler_options() == compilation._CPU_OPTIONS


def test_an_option_that_xla_does_not_know_is_left_out(fresh_options, monkeypatch):
    monkeypatch.setattr(compilation, "_CPU_OPTIONS", {"xla_of_another_age": "1"})
    assert compilation._compiler_options() is None
    assert compilation.jit(lambda x: x + 1)(1) == 2


def test_other_backends_get_no_cpu_options(fresh_options, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compilation._compiler_options() is None


def test_jit_asks_the_backend_at_the_first_call_only(fresh_options, monkeypatch):
    """A module may be imported before its caller says where to compute."""
    asked = []
    monkeypatch.setattr(compilation, "_compiler_options", lambda: asked.append(True))
    function = compilation.jit(lambda x: x + 1)
    assert asked == []
    assert (function(1), function(2.0)) == (2, 3.0)
    assert asked == [True]


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
