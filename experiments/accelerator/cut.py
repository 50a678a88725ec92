"""``bdjax run`` in processes of their own: one that SIGTERM cuts short and another continues, and one that nobody cuts.

Do both end in the same bits? On a GPU that is not given: kernels are chosen by their speed when a program is compiled,
and some add in any order. So it is asked with several flags of XLA, and with a cache of programs that all processes
share (as those of one user do) or one for each (as on another machine).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeAlias

import jax
import numpy as np
import orbax.checkpoint as ocp

from accelerator import processes
from accelerator.session import Row, Session
from accelerator.twice import flat

Process: TypeAlias = "subprocess.Popen[bytes]"

EPOCHS, CUT_AFTER = 20, 2
DETERMINISTIC = "--deterministic"  # bdjax's own way to ask for it
_RUN = ("-m", "bdjax", "run", "--defense", "none", "--checkpoint-seconds", "0", "--quiet")
_POLL = 0.005


class Setting(NamedTuple):
    """What the processes have in common: a flag of XLA or of bdjax, and whether they share compiled programs."""

    flag: str
    shared: bool

    @property
    def words(self) -> tuple[str, ...]:
        """What of it is an option of ``bdjax run``."""
        return (self.flag,) if self.flag == DETERMINISTIC else ()

    @property
    def xla_flags(self) -> str:
        """The environment's flags of XLA, and its own."""
        own = "" if self.words else self.flag
        return f"{os.environ.get('XLA_FLAGS', '')} {own}".strip()

    def describe(self) -> str:
        programs = "programs shared" if self.shared else "each compiles"
        return f"a run cut and continued, {self.flag or 'no flag'}, {programs}"


_ANYWHERE = (Setting("", shared=True),)
_ON_GPU = (
    *_ANYWHERE,
    Setting("", shared=False),
    Setting("--xla_gpu_exclude_nondeterministic_ops=true", shared=False),
    Setting("--xla_gpu_deterministic_ops=true", shared=False),
    Setting(DETERMINISTIC, shared=False),
)


def checks(session: Session) -> Iterator[Row]:
    """Yield a row for each setting; all are tried at once, as most of the time is starting and compiling."""
    settings = _ON_GPU if jax.default_backend() == "gpu" else _ANYWHERE
    width = 4 if session.settings.debug else 32
    root = session.settings.work / "right" / "cut"
    shutil.rmtree(root, ignore_errors=True)  # a run that is there would not be cut
    with ThreadPoolExecutor(len(settings)) as pool:
        tries = [
            pool.submit(_check, setting, root / str(number), width)
            for number, setting in enumerate(settings)
        ]
        for attempt in tries:
            yield attempt.result()


def _check(setting: Setting, root: Path, width: int) -> Row:
    row: Row = {
        "check": setting.describe(),
        "flag": setting.flag,
        "error": None,
        "bound": 0,
        "ok": False,
    }
    try:
        continued, uncut = _networks(setting, root, width)
    except Exception as error:  # a flag that this XLA does not know, or refuses, is an answer
        return {**row, "why": str(error)}
    differ = int((continued != uncut).sum())
    largest = float(np.abs(continued - uncut).max())
    return {**row, "error": differ, "ok": differ == 0, "of": continued.size, "by_at_most": largest}


def _networks(setting: Setting, root: Path, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what a run that was cut has trained in the end, and what one that was not."""
    words = [
        *_RUN,
        *setting.words,
        "--model.width",
        str(width),
        "--training.epochs",
        str(EPOCHS),
        "--out",
    ]
    cut, uncut = root / "cut", root / "uncut"

    def start(out: Path, cache: str, said: str) -> contextlib.AbstractContextManager[Process]:
        cache = str(root / ("programs" if setting.shared else cache))
        environment = {"JAX_COMPILATION_CACHE_DIR": cache, "XLA_FLAGS": setting.xla_flags}
        return processes.started([*words, str(out)], root / said, **environment)

    with start(cut, "first", "cut.txt") as process:
        _cut(process, cut, root / "cut.txt")
    with (
        start(cut, "second", "continued.txt") as again,
        start(uncut, "third", "uncut.txt") as whole,
    ):
        processes.finish(again, root / "continued.txt")
        processes.finish(whole, root / "uncut.txt")
    return _victim(cut), _victim(uncut)


def _cut(process: Process, out: Path, said: Path) -> None:
    """Send SIGTERM once some epochs are saved, and see that the process stops on its way."""
    deadline = time.monotonic() + processes.PATIENCE
    while _saved(out) < CUT_AFTER and process.poll() is None:
        if time.monotonic() > deadline:
            raise processes.Failed(f"no epoch was saved within {processes.PATIENCE:.0f} s")
        time.sleep(_POLL)
    process.send_signal(signal.SIGTERM)
    processes.finish(process, said, code=143)


def _saved(out: Path) -> int:
    numbers = [
        int(path.name) for path in out.glob("victims/*/checkpoints/*") if path.name.isdigit()
    ]
    return max(numbers, default=0)


def _victim(out: Path) -> np.ndarray:
    """Return every number of the last checkpoint: network, statistics, optimizer."""
    (folder,) = out.glob("victims/*/checkpoints")
    items = {"state": ocp.StandardCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(folder, options=options, item_handlers=items) as manager:
        restore = ocp.args.Composite(state=ocp.args.StandardRestore())
        return flat(manager.restore(EPOCHS, args=restore)["state"])
