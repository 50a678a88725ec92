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

from bdjax.bench import measure
from bdjax.checks import InputError, did_you_mean, positive
from bdjax.devices import environment
from bdjax.files import atomic, places, shapes
from bdjax.train import loop

Row = dict[str, Any]
RESULTS, LOG, SUMMARY = "results.jsonl", "log.txt", "summary.md"
RESERVE = 5.0  # seconds for the files of the last part
_LONGEST = 20_000  # letters of what is told at once: an error of XLA may have megabytes
_ROW = {
    "part": str,
    "done?": bool,
    "debug?": bool,
    "device?": {"platform": str, "kind": str, "count": int},
}


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

    def check(self) -> None:
        """Refuse what would cost minutes to find out.

        Raises:
          InputError: no time at all, a folder that cannot be, or data that are not there.
        """
        positive(minutes=self.minutes)
        places.check_folder("out", self.out)
        places.check_folder("work", self.work)
        if self.data_dir is not None and not Path(self.data_dir).expanduser().is_dir():
            raise InputError(f"data-dir must be a folder that is there, got {self.data_dir!r}.")


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
        """Start the clock, and read what earlier calls have left.

        Raises:
          InputError: the results are damaged, or of another device or size.
        """
        self.settings = settings
        self._started = time.perf_counter()
        self._out = settings.out
        self.rows: list[Row] = _read(self._out / RESULTS)
        self._refuse_others()
        self._out.mkdir(parents=True, exist_ok=True)
        for name in (RESULTS, SUMMARY):  # what a call leaves that is killed while it writes
            for half in self._out.glob(f".{name}.*"):
                half.unlink(missing_ok=True)

    @property
    def left(self) -> float:
        """Seconds until the call should end."""
        return 60 * self.settings.minutes - RESERVE - (time.perf_counter() - self._started)

    def out_of_time(self) -> bool:
        """Whether the call should end; the ``should_stop`` of what can be stopped and continued."""
        return self.left <= 0

    def tell(self, line: str) -> None:
        """Print a line, and keep it in the log."""
        if len(line) > _LONGEST:
            line = f"{line[: _LONGEST // 2]}\n[…]\n{line[-_LONGEST // 2 :]}"
        elapsed = time.perf_counter() - self._started
        stamped = f"[{elapsed:6.1f} s] {line}"
        print(stamped, flush=True)
        with (self._out / LOG).open("a", encoding="utf-8") as log:
            log.write(stamped + "\n")

    def done(self, name: str) -> bool:
        """Whether a part has come to its end, in this call or an earlier one."""
        return any(row["part"] == name and row.get("done") for row in self.rows)

    def failed(self, name: str) -> bool:
        """Whether a part failed when it was last tried."""
        return any(row["part"] == name and "failed" in row for row in self.rows)

    def of(self, subject: str) -> list[Row]:
        """Return the rows of the parts whose name begins like this."""
        return [row for row in self.rows if row["part"].startswith(subject)]

    def carry_out(
        self, parts: Sequence[Part], summarize: Callable[[Sequence[Row]], str]
    ) -> list[str]:
        """Do in turn what is wanted, not yet done and fits into what is left; say what is not.

        Returns:
          The names of the parts that failed.
        """
        failed = []
        for part in wanted(self.settings.only, parts):
            if self.done(part.name):
                continue
            missing = [name for name in part.needs if not self.done(name)]
            if missing:
                self.tell(f"{part.name}: skipped, as it needs {', '.join(missing)}")
            elif part.seconds > self.left:
                self.tell(
                    f"{part.name}: skipped, as it takes about {part.seconds:.0f} s of {self.left:.0f} s left"
                )
            else:
                self._carry_out(part)
                atomic.write_text(self._out / SUMMARY, summarize(self.rows))
                failed += [part.name] if self.failed(part.name) else []
        return failed

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
        self._keep(
            [
                *kept,
                *fresh,
                {"part": part.name, **ending, "seconds": round(seconds, 2), **self._where()},
            ]
        )
        self.tell(f"{part.name}: {next(iter(ending))} in {seconds:.1f} s")

    def _keep(self, rows: list[Row]) -> None:
        self.rows = rows
        text = "".join(json.dumps(row, default=_plain) + "\n" for row in rows)
        atomic.write_text(self._out / RESULTS, text)

    def _where(self) -> Row:
        """Return what the numbers of a part were measured on."""
        here = {"device": measure.machine()["device"], "debug": self.settings.debug}
        return {"date": time.strftime("%Y-%m-%d"), **here, "versions": environment.versions()}

    def _refuse_others(self) -> None:
        """Refuse results that this call would take for its own, though another device or size gave them."""
        here = self._where()
        for row in self.rows:
            if "device" not in row:
                continue
            theirs, ours = (_described(one) for one in (row, here))
            if theirs != ours:
                there = f"{self._out} has results of {theirs}, and this is {ours}"
                raise InputError(f"out must be another folder: {there}.")


def _described(row: Row) -> str:
    device = row["device"]
    size = " with --debug" if row.get("debug") else ""
    return f"{device['count']} × {device['kind']} ({device['platform']}){size}"


def wanted(only: Sequence[str], parts: Sequence[Part]) -> list[Part]:
    """Return the parts whose names begin with one of the words; all, if there is none."""
    return [part for part in parts if not only or part.name.startswith(tuple(only))]


def check_only(only: Sequence[str], parts: Sequence[Part]) -> None:
    """Refuse a word that no part's name begins with."""
    names = [part.name for part in parts]
    for word in only:
        if not any(name.startswith(word) for name in names):
            near = did_you_mean(word, names)
            raise InputError(
                f"only must be the beginning of a part's name, such as {names[0]}; got {word!r}{near}."
            )


def _plain(number: Any) -> Any:
    """Return a number of NumPy's or JAX's as Python has it: a part's minutes must not be lost to its type."""
    return number.item()


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise atomic.damaged(path, error) from error
    for number, row in enumerate(rows, 1):
        if (wrong := shapes.misfit(row, _ROW)) is not None:
            raise atomic.damaged(path, f"line {number}: {wrong}")
    return rows
