"""The console script ``bdjax``: it reads words, calls the library and prints; it has no logic of its own."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from bdjax import __version__
from bdjax.checks import InputError, integer, non_negative

EXIT_FAILED, EXIT_MISTAKE, EXIT_STOPPED = 1, 2, 143
_KINDS = {
    "attacks": "bdjax.attacks",
    "defenses": "bdjax.defenses",
    "models": "bdjax.models",
    "data": "bdjax.data.sources",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help).")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 failed, 2 a mistake in what was asked, 143 stopped."""
    try:
        try:
            return _call(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            print(end="", flush=True)  # a reader who has gone is noticed here, not when Python exits
    except InputError as error:
        return _complain(error, EXIT_MISTAKE)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command continues.", EXIT_STOPPED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # there is nobody to tell
        return EXIT_FAILED
    except (OSError, MemoryError) as error:
        return _complain(error, EXIT_FAILED)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        first = str(error).partition("\n")[0]
        return _complain(f"the device has not enough memory: lower batch_size, chunk or width ({first})", EXIT_FAILED)


def _call(words: list[str]) -> int:
    options, rest = _parser().parse_known_args(words)
    if rest and options.command is not _run:
        raise InputError(f"unknown option {rest[0]!r}; see bdjax {options.name} --help.")
    return options.command(options, rest)


def _complain(error: object, code: int) -> int:
    print("bdjax: " + " ".join(str(error).split()), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("bdjax", description="Plant backdoors in image classifiers, remove them, and measure both.")
    parser.add_argument("--version", action="version", version=f"bdjax {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="name")

    demo = commands.add_parser("demo", help="plant and remove two backdoors; table and picture", allow_abbrev=False)
    demo.add_argument("--dataset", default="digits", help="digits (a minute on a laptop) or cifar10 (full size)")
    demo.add_argument("--seeds", type=int, help="how often to repeat everything (3 on digits, 1 on cifar10)")
    demo.add_argument("--data-dir", help="where prepared data sets lie")
    _execution_options(demo, "demo")
    demo.set_defaults(command=_demo)

    run = commands.add_parser(
        "run",
        usage="bdjax run [CONFIG] [--section.key VALUE ...] [options]",
        help="one attack and one defense, with its control rows",
        description="Carry out a run: plant the attack, then no defense, plain fine-tuning, and the defense.",
        epilog="Every field of a config is an option: --section.key value; --defense NAME is short for "
        "--defense.name NAME. Add --show to print the config, every field with its value, and stop.",
        allow_abbrev=False,
    )
    run.add_argument(
        "--config",
        metavar="CONFIG",
        action="append",
        default=[],
        help="a YAML file, defaults where it is silent; may come first",
    )
    run.add_argument(
        "--smoothness-every",
        type=int,
        default=0,
        metavar="N",
        help="measure the loss surface every N epochs of each defense",
    )
    run.add_argument("--show", action="store_true", help="print the resolved config and stop")
    _execution_options(run, "runs")
    run.set_defaults(command=_run)

    listing = commands.add_parser("list", help="what there is", allow_abbrev=False)
    listing.add_argument("kind", choices=_KINDS)
    listing.add_argument("method", nargs="?", help="show this one's description and options")
    listing.set_defaults(command=_list)

    report = commands.add_parser("report", help="tables and figures of finished runs", allow_abbrev=False)
    report.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders of run folders")
    report.add_argument("--format", default="console", help="console, markdown, csv or latex")
    report.add_argument("--figures", metavar="DIR", help="also draw the figures into this folder")
    report.add_argument("--smoothness", action="store_true", help="add λ_max, Tr(H), Tr(F) where they were measured")
    report.set_defaults(command=_report)

    smoothness = commands.add_parser(
        "smoothness",
        help="measure the loss surface of finished runs' networks",
        description="Measure the loss surface before and after the defense: largest eigenvalue and trace of the "
        "Hessian, trace of the Fisher matrix. Needs the runs' checkpoints and data; trains nothing.",
        allow_abbrev=False,
    )
    smoothness.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders of run folders")
    smoothness.add_argument("--images", type=int, metavar="N", help="test images to measure on (default: 200)")
    smoothness.add_argument("--draws", type=int, metavar="N", help="random vectors for the trace (default: 100)")
    smoothness.add_argument("--chunk", type=int, metavar="N", help="images at once; bounds the memory (default: 100)")
    smoothness.add_argument(
        "--variant", action="append", metavar="NAME", help="only clean, triggered or mixed; may be repeated"
    )
    smoothness.add_argument("--data-dir", help="where prepared data sets lie")
    smoothness.add_argument("--quiet", action="store_true", help="no progress")
    smoothness.set_defaults(command=_smoothness)
    return parser


def _execution_options(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("--out", default=out, metavar="DIR", help=f"folder of the run folders (default: {out})")
    parser.add_argument("--devices", type=int, default=1, help="split each batch over this many devices (default: 1)")
    parser.add_argument(
        "--checkpoint-seconds", type=float, default=1.0, help="least seconds between checkpoints; 0: after every epoch"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _demo(options: argparse.Namespace, rest: list[str]) -> int:
    del rest
    from bdjax import demo

    started = time.perf_counter()
    runs = demo.plan(options.dataset, seeds=options.seeds, data_dir=options.data_dir)
    code = _carry_out(options, lambda execution: demo.carry_out(runs, execution))
    if code:
        return code
    _print_table([Path(options.out) / config.run_id for config in runs])
    _draw([Path(options.out) / config.run_id for config in runs], Path(options.out) / "figures")
    print(f"{len(runs)} runs in {options.out} in {time.perf_counter() - started:.0f} s")
    return 0


def _run(options: argparse.Namespace, rest: list[str]) -> int:
    from bdjax import config as configs
    from bdjax import run, schema

    files = options.config
    if rest and not rest[0].startswith("--"):
        files = [*files, rest.pop(0)]
    if len(files) > 1:
        raise InputError(f"name one config, not {len(files)}: {', '.join(files)}.")
    values = schema.read(Path(files[0])) if files else {}
    try:
        config = configs.resolve(schema.merge(values, schema.overrides(rest)))
    except RecursionError:
        raise InputError("the config is nested too deeply.") from None
    if options.show:
        for key, value in schema.flatten(config.to_dict()).items():
            print(f"{key}: {'null' if value is None else value}")
        return 0
    code = _carry_out(options, lambda execution: run.run_with_controls(config, execution))
    if code:
        return code
    _print_table([Path(options.out) / row.run_id for row in run.with_controls(config)])
    _print_selection(Path(options.out) / config.run_id)
    print(f"record: {Path(options.out) / config.run_id / 'record.json'}")
    return 0


def _print_selection(folder: Path) -> None:
    """Tell which strength was chosen, where it was ``auto``, and what each cost."""
    from bdjax import records

    selection = (records.read_json(folder / "record.json") or {}).get("selection")
    if selection:
        tried = ", ".join(f"{trial['value']:g} → {trial['accuracy']:.1%}" for trial in selection["trials"])
        beyond = "" if selection["within_budget"] else ", the weakest, though it costs more than the budget"
        count = selection["aside_count"]
        print(
            f"{selection['option']} = {selection['chosen']:g}{beyond}; accuracy on {count} images kept aside "
            f"(one is {1 / count:.1%}): {selection['accuracy_before']:.1%} before, {tried}"
        )


def _carry_out(options: argparse.Namespace, work: Any) -> int:
    """Call ``work(execution)`` with a progress bar; tell in one line if it diverged or was stopped."""
    from bdjax import progress, run
    from bdjax.train import compilation, loop

    integer(1, devices=options.devices)
    every = getattr(options, "smoothness_every", 0)
    integer(smoothness_every=every)
    non_negative(checkpoint_seconds=options.checkpoint_seconds)
    compilation.enable_cache()
    if not options.out:
        raise InputError("out must name a folder, got ''.")
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"out must be a folder; {out} is a file.")
    try:
        with run.stop_on_signal() as should_stop, progress.bar(quiet=options.quiet) as on_epoch:
            work(run.Execution(out, options.devices, options.checkpoint_seconds, on_epoch, should_stop, every))
    except loop.Stopped as stopped:
        print(f"bdjax: {stopped}; the same command continues.", file=sys.stderr)
        return EXIT_STOPPED
    except loop.Diverged as diverged:
        return _complain(diverged, EXIT_FAILED)
    return 0


def _list(options: argparse.Namespace, rest: list[str]) -> int:
    del rest
    from bdjax import registry

    package = _KINDS[options.kind]
    if options.method:
        print(inspect.getdoc(registry.factory(package, options.method)))
        for name, values in registry.strengths(package, options.method).items():
            print(f"auto for {name} tries: " + ", ".join(f"{value:g}" for value in values))
        for name, values in registry.presets(package, options.method).items():
            print(f"preset {name}: " + (", ".join(f"{key}={value}" for key, value in values.items()) or "the defaults"))
        return 0
    names = registry.names(package)
    width = max(map(len, names))
    for name in names:
        print(f"{name:{width}}  {registry.summary(package, name)}")
    return 0


def _report(options: argparse.Namespace, rest: list[str]) -> int:
    del rest
    _print_table(options.runs, options.format, options.smoothness)
    if options.figures:
        _draw(options.runs, Path(options.figures))
    return 0


def _smoothness(options: argparse.Namespace, rest: list[str]) -> int:
    del rest
    from bdjax import saved
    from bdjax.analysis.smoothness import VARIANTS, Settings
    from bdjax.train import compilation

    def tell(number: int, count: int, record: Any) -> None:
        if not options.quiet:
            print(f"{number}/{count} {record.run_id}", file=sys.stderr, flush=True)

    compilation.enable_cache()
    given = {name: getattr(options, name) for name in ("images", "draws", "chunk")}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    variants = options.variant or VARIANTS
    for file in saved.smoothness(
        options.runs, variants=variants, settings=settings, data_dir=options.data_dir, on_run=tell
    ):
        print(file)
    return 0


def _print_table(runs: Sequence[Any], style: str = "console", sharpness: bool = False) -> None:
    from bdjax import report, tables

    print(tables.table(report.summarize(report.load(runs), sharpness=sharpness), style))


def _draw(runs: Sequence[Any], folder: Path) -> None:
    from bdjax import figures, report

    for path in figures.draw(report.load(runs), folder):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
