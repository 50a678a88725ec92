"""What tests that take traces share."""

from __future__ import annotations

import gc

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def no_other_programs():
    """Forget compiled programs first: a trace holds every program of the process, thousands after other tests."""
    jax.clear_caches()
    gc.collect()
