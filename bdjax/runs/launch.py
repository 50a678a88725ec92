"""A sweep as several jobs of a cluster: each takes the groups that no other has, from one folder."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bdjax.checks import RUNS, InputError, integer, one_of

CLUSTERS = ("slurm", "local")


@dataclasses.dataclass(frozen=True)
class SweepJob:
    """``bdjax sweep`` with these words, as what submitit carries out: called, and asked for its successor."""

    words: tuple[str, ...]

    def __call__(self) -> int:
        """Run in the job, in a process of its own, and return the exit code."""
        code = subprocess.call([sys.executable, "-m", "bdjax", "sweep", *self.words, "--quiet"])
        if code:
            raise SystemExit(code)
        return code

    def checkpoint(self) -> Any:
        """Return the job that goes on where this one was preempted: the same one, as checkpoints are its memory."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    words: Sequence[str],
    out: Path,
    jobs: int,
    *,
    cluster: str = "slurm",
    options: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Submit a job array whose members share one sweep, and return submitit's jobs.

    The folder must be on a file system that all nodes see and that has file locks (flock). Logs go to ``<out>/jobs``.

    Args:
      words: of ``bdjax sweep``, without those that submit.
      out: the sweep's folder.
      jobs: how many.
      cluster: ``slurm``, or ``local``: processes of this machine.
      options: of `submitit.AutoExecutor`, such as ``timeout_min`` or ``slurm_partition``.

    Raises:
      InputError: no such cluster, less than one job, an option that submitit does not know, no SLURM, or no submitit.
    """
    integer(1, RUNS, jobs=jobs)
    one_of(CLUSTERS, cluster=cluster)
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise InputError(
            "to submit jobs, install the extra: pip install 'bdjax[slurm]'."
        ) from error
    try:
        executor = submitit.AutoExecutor(folder=out / "jobs", cluster=cluster)
        executor.update_parameters(**{"name": "bdjax-sweep", **(options or {})})
    # No sbatch here; no such option, or value
    except (AssertionError, RuntimeError, NameError, TypeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise InputError(f"{cluster} does not take these jobs: {reason}.") from error
    with executor.batch():
        return [executor.submit(SweepJob(tuple(words))) for _ in range(jobs)]
