"""How fast this machine does what bdjax does: ``bdjax bench``.

Every ratio is of two medians of one run whose rounds were timed in turn; compiling is in no figure but its own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from bdjax.bench import loads, measure, scaling, startup, steps, sweeps
from bdjax.bench.profile import Traces
from bdjax.bench.session import SECTIONS, Session, Settings
from bdjax.devices import environment, numerics
from bdjax.files import atomic, failures, places

SCHEMA_VERSION = 1
_MEASURES: dict[str, Callable[[Session], object]] = {
    "loads": loads.section,
    "startup": startup.section,
    "steps": steps.section,
    "sweeps": sweeps.section,
    "scaling": scaling.section,
}


def run_sections(
    settings: Settings,
    out: Path,
    tell: Callable[[str], None] = lambda line: None,
    traces: Traces | None = None,
) -> measure.Row:
    """Measure section by section and return the results; what is done is in the file ``out``, whatever comes next.

    Args:
      settings: of `bdjax.bench.session.settings`.
      out: a JSON file, replaced if it is there.
      tell: is given a line for each section and for whatever is skipped.
      traces: where a trace of each kind of step goes, which is taken after it is timed.

    Raises:
      InputError: ``out`` is no file that could be.
    """
    places.check_file("out", out)
    with numerics.in_force(settings.matmul_precision):
        return _run_sections(Session(settings, tell, traces), out)


def _run_sections(session: Session, out: Path) -> measure.Row:
    settings = session.settings
    results = {"schema_version": SCHEMA_VERSION, "machine": measure.machine()}
    results |= measure.described(dataclasses.asdict(settings))
    peak = measure.Peak(settings.dtype or "float32").rates()
    results |= {"peak": peak, "load_average": {}, "section_seconds": {}, "skipped": session.skipped}
    atomic.write_json(out, results)  # what cannot be written is noticed before the work
    for name in SECTIONS:
        if name not in settings.sections:
            continue
        results["load_average"][name], started = (
            measure.machine()["load_average"],
            time.perf_counter(),
        )
        try:
            results[name] = _MEASURES[name](session)
        except (RuntimeError, MemoryError) as error:
            if not failures.is_out_of_memory(error):
                raise
            session.skip(name, "not enough memory")
        results["section_seconds"][name] = time.perf_counter() - started
        results["memory"] = environment.memory()
        atomic.write_json(out, results)
        session.tell(f"{name}: {results['section_seconds'][name]:.0f} s")
    return results
