"""The minutes of one call, what still fits into them, and the files that it leaves.

Under ``out`` lie few small files that are whole after every part: ``results.jsonl``, a line for each number;
``log.txt``; and ``summary.md``, the tables. Runs, victims and checkpoints lie under ``work``, which may be large.
"""

from __future__ import annotations

import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bdjax import records
from bdjax.bench import measure
from bdjax.train import loop

Row = dict[str, Any]
RESULTS, LOG, SUMMARY = "results.jsonl", "log.txt", "summary.md"
RESERVE = 5.0  # seconds for the files of the last part


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a call is asked for.

    Attributes:
      out: the folder of the three files.
      work: the folder of runs and victims; a second call with the same one goes on with them.
      minutes: the time of the whole call.
      debug: everything in miniature, on the embedded digits.
      data_dir: where a prepared CIFAR-10 lies; None asks ``BDJAX_DATA_DIR``.
      only: the beginnings of the names of the parts that are wanted; all, if there is none.
    """

    out: Path
    work: Path
    minutes: float = 9.0
    debug: bool = False
    data_dir: str | None = None
    only: tuple[str, ...] = ()


class Part(NamedTuple):
    """A piece of work that is done whole or not at all.

    Attributes:
      name: ``subject/what``; a part whose name is among the results is not done again.
      seconds: how long it is expected to take, compiling included.
      run: gives the rows of the results, each as soon as it is measured.
      needs: parts that must have come to their end before.
    """

    name: str
    seconds: float
    run: Callable[[Session], Iterable[Row]]
    needs: tuple[str, ...] = ()


class Session:
    """One call: its clock, and the files that it writes."""

    def __init__(self, settings: Settings):
        """Start the clock, and read what earlier calls have left."""
        self.settings = settings
        self._started = time.perf_counter()
        self._out = settings.out
        self._out.mkdir(parents=True, exist_ok=True)
        self.rows: list[Row] = _read(self._out / RESULTS)

    @property
    def left(self) -> float:
        """Seconds until the call should end."""
        return 60 * self.settings.minutes - RESERVE - (time.perf_counter() - self._started)

    def out_of_time(self) -> bool:
        """Whether the call should end; the ``should_stop`` of what can be stopped and continued."""
        return self.left <= 0

    def tell(self, line: str) -> None:
        """Print a line, and keep it in the log."""
        elapsed = time.perf_counter() - self._started
        stamped = f"[{elapsed:6.1f} s] {line}"
        print(stamped, flush=True)
        with (self._out / LOG).open("a", encoding="utf-8") as log:
            log.write(stamped + "\n")

    def done(self, name: str) -> bool:
        """Whether a part has come to its end, in this call or an earlier one."""
        return any(row["part"] == name and row.get("done") for row in self.rows)

    def of(self, subject: str) -> list[Row]:
        """Return the rows of the parts whose name begins like this."""
        return [row for row in self.rows if row["part"].startswith(subject)]

    def carry_out(self, parts: Sequence[Part], summarize: Callable[[Sequence[Row]], str]) -> None:
        """Do in turn what is wanted, not yet done and fits into what is left; say what is not."""
        for part in parts:
            if not _wanted(part.name, self.settings.only) or self.done(part.name):
                continue
            missing = [name for name in part.needs if not self.done(name)]
            if missing:
                self.tell(f"{part.name}: skipped, as it needs {', '.join(missing)}")
            elif part.seconds > self.left:
                self.tell(f"{part.name}: skipped, as it takes about {part.seconds:.0f} s of {self.left:.0f} s left")
            else:
                self._carry_out(part)
                records.write_text(self._out / SUMMARY, summarize(self.rows))

    def _carry_out(self, part: Part) -> None:
        self.tell(f"{part.name}: about {part.seconds:.0f} s, {self.left:.0f} s left")
        kept = [row for row in self.rows if row["part"] != part.name]
        fresh: list[Row] = []
        started = time.perf_counter()
        ending: Row = {"done": True}
        try:
            for row in part.run(self):
                fresh.append({"part": part.name, **row})
                self._keep([*kept, *fresh])
        except loop.Stopped as stopped:  # as `out_of_time` said: another call goes on with it
            ending = {"stopped": str(stopped)}
        except Exception as error:  # one part that fails must not cost the minutes of the others
            ending = {"failed": f"{type(error).__name__}: {error}"[:500]}
            self.tell(traceback.format_exc())
        seconds = time.perf_counter() - started
        self._keep([*kept, *fresh, {"part": part.name, **ending, "seconds": round(seconds, 2), **_where()}])
        self.tell(f"{part.name}: {next(iter(ending))} in {seconds:.1f} s")

    def _keep(self, rows: list[Row]) -> None:
        self.rows = rows
        records.write_text(self._out / RESULTS, "".join(json.dumps(row) + "\n" for row in rows))


def _wanted(name: str, only: Sequence[str]) -> bool:
    return not only or name.startswith(tuple(only))


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _where() -> Row:
    """Return what the numbers of a part were measured on."""
    described = measure.machine()
    return {"date": time.strftime("%Y-%m-%d"), "device": described["device"], "versions": records.versions()}
