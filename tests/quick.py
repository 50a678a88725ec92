"""What several test files compile with."""

from __future__ import annotations

import functools

import jax

# Tests run a compiled function once or twice: LLVM's optimization takes longer than it saves.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
