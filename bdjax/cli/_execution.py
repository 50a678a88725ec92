"""What the commands that train share: the options of an execution, a config from words, and the progress."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdjax.checks import InputError, integer, non_negative
from bdjax.cli._parser import EXIT_FAILED, EXIT_STOPPED, complain, tell
from bdjax.devices import guard
from bdjax.files import places

if TYPE_CHECKING:
    from bdjax.runs import run

_NAMED = 3  # runs that are told by name; of more, how many


def execution_options(
    parser: argparse.ArgumentParser,
    out: str,
    *,
    flag: str = "--out",
    devices: str = "split each batch over this many devices (default: 1; of several hosts: all)",
) -> None:
    """Add the options of `bdjax.runs.run.Execution`; runs go to ``out`` unless ``flag`` says otherwise."""
    option = parser.add_argument
    option(flag, default=out, metavar="DIR", help=f"folder of the run folders (default: {out})")
    option("--devices", type=int, help=devices)
    option(
        "--checkpoint-seconds",
        type=float,
        default=1.0,
        help="least seconds between checkpoints; 0: after every epoch",
    )
    option(
        "--changed-data",
        default="refuse",
        metavar="WHAT",
        help="where a run was begun with other data than are there now: refuse (default), or "
        "rerun it, the old one set aside in a folder that is named after its data",
    )
    option(
        "--deterministic",
        action="store_true",
        help="the same bits from every process on GPUs too, where untuned kernels are slower",
    )
    option(
        "--prepare",
        default="auto",
        metavar="WHEN",
        help="crop and flip the images of a step or of an epoch at once; no bit changes (default: by device and size)",
    )
    option(
        "--unroll",
        default="1",
        metavar="N|auto",
        help="write out N steps of the compiled loop, which changes results by rounding; auto: as timed (default: 1)",
    )
    option("--quiet", action="store_true", help="no progress")


def check_execution(options: argparse.Namespace) -> Path:
    """Return the folder of the run folders; refuse options of an execution that cannot be."""
    from bdjax.devices import hosts
    from bdjax.runs import folder
    from bdjax.train import feeding

    feeding.check(options.prepare, _number(options.unroll))
    if options.devices is not None:
        integer(1, devices=options.devices)
    integer(smoothness_every=getattr(options, "smoothness_every", 0))
    non_negative(checkpoint_seconds=options.checkpoint_seconds)
    if options.name == "run":
        hosts.check_options(options.hosts, options.host, options.coordinator, options.host_timeout)
        if options.hosts is not None and sys.platform == "win32":
            why = "where JAX computes on one host alone"
            raise InputError(f"hosts must not be given on Windows, {why}.")
    return places.check_folder("out", options.out, folder.DEEPEST)


def carry_out(options: argparse.Namespace, work: Callable[[run.Execution], Any]) -> int:
    """Call ``work(execution)`` with a progress bar; tell in one line if it diverged or was stopped."""
    from bdjax.cli import _progress, _signals
    from bdjax.devices import compilation, hosts
    from bdjax.runs import run
    from bdjax.train import loop

    out = check_execution(options)
    compilation.enable_cache()
    asked = _join(options)
    compilation.require_devices()
    devices = options.devices or (hosts.devices() if hosts.process_count() > 1 else 1)
    quiet = options.quiet or not hosts.is_first()
    try:
        with _signals.stop_on_signal() as signaled, _progress.bar(quiet=quiet) as on_epoch:
            finished: list[str] = []
            execution = run.Execution(
                out,
                devices=devices,
                checkpoint_seconds=options.checkpoint_seconds,
                on_epoch=on_epoch,
                should_stop=lambda: signaled() or asked(),
                smoothness=getattr(options, "smoothness_every", 0),
                data_on=getattr(options, "data_on", "auto"),
                prepare=options.prepare,
                unroll=_number(options.unroll),
                changed=options.changed_data,
                deterministic=options.deterministic,
                on_finished=finished.append,
            )
            work(execution)
        if finished and not quiet:
            _tell_of(finished)
    except loop.Stopped as stopped:
        if hosts.is_first():
            tell(f"{stopped}; the same command continues.")
        return EXIT_STOPPED
    except loop.Diverged as diverged:
        return complain(diverged, EXIT_FAILED)
    return 0


def _number(word: str) -> int | str:
    return int(word) if word.isdecimal() else word


def _tell_of(finished: list[str]) -> None:
    """Say which runs were there already, or how many, where there are many."""
    what = ", ".join(finished) if len(finished) <= _NAMED else f"{len(finished)} runs"
    print(f"finished already: {what}", file=sys.stderr)


def _join(options: argparse.Namespace) -> Callable[[], bool]:
    """Join the other processes of the run, if it has any; return whether the process that guards this is to stop."""
    from bdjax.devices import hosts

    asked = guard.listen() if guard.is_watched() else lambda: False
    if options.name != "run":
        return asked
    if options.hosts is not None:
        hosts.start(options.hosts, options.host, options.coordinator, options.host_timeout)
    return asked


def values_of(files: list[str], rest: list[str]) -> dict[str, Any]:
    """Return the values of a config file with those of the command line over them; the file may come first, bare."""
    from bdjax.runs import schema

    if rest and not rest[0].startswith("--"):
        files = [*files, rest.pop(0)]
    if len(files) > 1:
        raise InputError(f"name one config, not {len(files)}: {', '.join(files)}.")
    values = schema.read(Path(files[0])) if files else {}
    with shallow():
        return schema.merge(values, schema.overrides(rest))


def values_of_attacks(
    names: Sequence[str],
    files: list[str],
    rest: list[str],
) -> Iterator[dict[str, Any]]:
    """Yield, for attacks that a command names by themselves, what `values_of` returns for each.

    An option that some of them have is left out for the others; one that none has stays, to be refused.
    """
    from bdjax.runs import schema

    first = 1 if rest and not rest[0].startswith("--") else 0
    below = values_of(files, rest[:first])
    with shallow():
        given = schema.overrides(rest[first:])
        options = schema.as_mapping("attack", given.get("attack"))
        if "name" in options:
            named = ", ".join(names)
            raise InputError(f"attack.name must be left out where the attack is named: {named}.")
        known = {name: schema.parameters("bdjax.attacks", name) for name in names}
        for name, own in known.items():
            of_others = {option for other in known.values() for option in other} - set(own)
            kept = {option: value for option, value in options.items() if option not in of_others}
            named = schema.merge(below, {"attack": {"name": name}})
            yield schema.merge(named, {**given, "attack": kept})


@contextlib.contextmanager
def shallow() -> Iterator[None]:
    """Take a config without end for a mistake."""
    try:
        yield
    except RecursionError:
        raise InputError("the config is nested too deeply.") from None
