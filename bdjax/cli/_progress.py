"""A progress bar on the terminal, one line for each network that is trained."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from bdjax.train.loop import Epoch


@contextlib.contextmanager
def bar(*, quiet: bool = False) -> Iterator[Callable[[str, int, Epoch], None]]:
    """Give a function to call after each epoch with (what is trained, epochs in all, the epoch's report).

    Where standard error is no terminal, each network gets one line when it is done instead.
    """
    if quiet:
        yield lambda label, epochs, epoch: None
    elif not sys.stderr.isatty():
        yield _print_last
    else:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  accuracy {task.fields[accuracy]:.1%}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield _Bar(progress)


@contextlib.contextmanager
def counter(noun: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Give a function to call with how many are done and how many there are; where there is no terminal, once each."""
    if quiet or not sys.stderr.isatty():

        def print_last(done: int, whole: int) -> None:
            if done >= whole and not quiet:
                print(f"{whole} {noun}", file=sys.stderr)

        yield print_last
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(noun, total=None)
        yield lambda done, whole: progress.update(task, completed=done, total=whole)


def _print_last(label: str, epochs: int, epoch: Epoch) -> None:
    if epoch.epoch == epochs:
        print(
            f"{label}: {epochs} epochs, loss {epoch.loss:.3f}, accuracy {epoch.accuracy:.1%}",
            file=sys.stderr,
        )


class _Bar:
    def __init__(self, progress: Progress):
        self._progress = progress
        self._task: TaskID | None = None

    def __call__(self, label: str, epochs: int, epoch: Epoch) -> None:
        if self._task is None:
            self._task = self._progress.add_task(
                label,
                total=epochs,
                loss=epoch.loss,
                accuracy=epoch.accuracy,
            )
        self._progress.update(
            self._task,
            description=label,
            completed=epoch.epoch,
            loss=epoch.loss,
            accuracy=epoch.accuracy,
        )
        if epoch.epoch == epochs:
            self._progress.remove_task(self._task)
            self._task = None
