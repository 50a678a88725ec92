"""The console script ``bdjax``: it reads words, calls the library and prints; it has no logic of its own."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bdjax import __version__, guard
from bdjax.checks import InputError, integer, non_negative, one_of

EXIT_FAILED, EXIT_MISTAKE, EXIT_STOPPED = 1, 2, 143
_RUNS = "run folders, folders of run folders, or bundles of records (.jsonl)"
_KINDS = {
    "attacks": "bdjax.attacks",
    "defenses": "bdjax.defenses",
    "models": "bdjax.models",
    "data": "bdjax.data.sources",
    "analyses": "bdjax.analysis",
}


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help).")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code: 0, 1 failed, 2 a mistake in what was asked, 143 stopped."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return _of_several(words) if guard.is_watched() else _answer(words)


def _of_several(words: list[str]) -> int:
    """Do as `main`, being one process of several: leave with the others, or at once if one of them is gone."""
    from bdjax.train import hosts

    try:
        code = _answer(words)
    except Exception as error:
        if hosts.is_loss(error):
            _complain(f"{guard.LOST} ({str(error).partition(chr(10))[0][:200]}).", EXIT_FAILED)
        else:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(EXIT_FAILED)  # what JAX does at the end waits for the others
    hosts.finish(code)
    return code


def _answer(words: list[str]) -> int:
    try:
        try:
            return _call(words)
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
    options.words = words[1:]
    if rest and options.command not in (_run, _sweep, _show, _analyze):
        raise InputError(f"unknown option {rest[0]!r}; see bdjax {options.name} --help.")
    if options.command is _run and options.hosts and not options.show and not guard.is_watched():
        return guard.watch("bdjax.cli", words)
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
    run.add_argument(
        "--data-on",
        default="auto",
        metavar="PLACE",
        help="training images on the device, on the host or on disk, from where they are streamed (default: by size)",
    )
    _execution_options(run, "runs")
    several = run.add_argument_group(
        "several hosts",
        "Start the same command on each host, with folders that they share. One that is lost ends the others; the same "
        "command continues, also on another number of hosts.",
    )
    several.add_argument(
        "--hosts",
        metavar="auto|N",
        help="split each batch over N processes; auto: as SLURM, MPI or a TPU pod says",
    )
    several.add_argument("--host", type=int, metavar="I", help="which one this is, from 0 (not with auto)")
    several.add_argument("--coordinator", metavar="ADDRESS:PORT", help="where host 0 is to listen (not with auto)")
    several.add_argument(
        "--host-timeout", type=int, default=60, metavar="SECONDS", help="when a silent one counts as lost (default: 60)"
    )
    run.set_defaults(command=_run)

    sweep = commands.add_parser(
        "sweep",
        usage="bdjax sweep [CONFIG] --over KEY=V1,V2,... [--over ...] [--seeds N] [--section.key VALUE ...] [options]",
        help="many runs as few programs, with a sensitivity curve",
        description="Carry out a run for each combination of the values, and the control rows of all. Runs that differ "
        "in numbers alone are trained together. What is finished is not done again: the same command continues, and "
        "several of them, in one folder, share the work.",
        epilog="Every field of a config is an option, as for bdjax run: --section.key value.",
        allow_abbrev=False,
    )
    sweep.add_argument(
        "--config", metavar="CONFIG", action="append", default=[], help="a YAML file, defaults where it is silent"
    )
    sweep.add_argument(
        "--over",
        metavar="KEY=V1,V2,...",
        action="append",
        default=[],
        help="values of a key, such as defense.rho=0.5,1,2 or attack=badnets,blended; may be repeated",
    )
    sweep.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N - 1 for each combination")
    sweep.add_argument(
        "--form",
        default="auto",
        help="how the runs of one device are computed: loop, one after another; vmap, all at once; map:k, k at once; "
        "auto times them on a few steps (default)",
    )
    sweep.add_argument(
        "--at-once", type=int, metavar="N", help="most runs in one program (default: 32, or each job's share)"
    )
    sweep.add_argument(
        "--batch-devices", type=int, default=1, metavar="N", help="devices that share the batches of a run (default: 1)"
    )
    _job_options(sweep)
    _execution_options(sweep, "runs", devices="spread the runs over this many devices (default: 1)")
    sweep.set_defaults(command=_sweep)

    listing = commands.add_parser("list", help="what there is", allow_abbrev=False)
    listing.add_argument("kind", choices=_KINDS)
    listing.add_argument("method", nargs="?", help="show this one's description and options")
    listing.set_defaults(command=_list)

    show = commands.add_parser(
        "show",
        usage="bdjax show ATTACK [ATTACK ...] [--config CONFIG] [--section.key VALUE ...] [options]",
        help="draw what triggers look like",
        description="Draw test images without and with each attack's trigger, and what it changes. A trigger that is "
        "learned needs its victim: that of the same config in --out, which is trained if there is none.",
        epilog="Every field of a config is an option, as for bdjax run: --section.key value.",
        allow_abbrev=False,
    )
    show.add_argument("attacks", nargs="+", metavar="ATTACK", help="as bdjax list attacks names them, or all")
    show.add_argument("--config", metavar="CONFIG", action="append", default=[], help="a YAML file")
    show.add_argument("--file", metavar="FILE", help="png, pdf or svg (default: the attack's name, or attacks, .png)")
    _execution_options(show, "runs")
    show.set_defaults(command=_show)

    report = commands.add_parser("report", help="tables and figures of finished runs", allow_abbrev=False)
    report.add_argument("runs", nargs="+", metavar="RUNS", help=_RUNS)
    report.add_argument("--format", default="console", help="console, markdown, csv or latex")
    report.add_argument(
        "--figures", metavar="DIR", help="also draw the figures here, with a curve of each swept option"
    )
    report.add_argument("--html", metavar="FILE", help="also write one page with tables, charts, triggers and records")
    report.add_argument("--smoothness", action="store_true", help="add λ_max, Tr(H), Tr(F) where they were measured")
    report.add_argument("--stealth", action="store_true", help="add how visible the trigger is: PSNR, SSIM, ℓ∞, ℓ2")
    report.add_argument(
        "--statistics",
        action="store_true",
        help="add 95 %% intervals, runs below 10 %% ASR and ranges over swept options; rank the defenses below",
    )
    report.set_defaults(command=_report)

    analyze = commands.add_parser(
        "analyze",
        usage="bdjax analyze ANALYSIS RUNS [RUNS ...] [--option VALUE ...] [--figures DIR] [--format FORMAT] ...",
        help="look into the networks of finished runs, and draw what is there",
        description="Measure finished runs and draw a figure of them. Needs their checkpoints and data; what has been "
        "measured is kept beside the record and not measured again.",
        epilog="An analysis' options are its own: see bdjax list analyses ANALYSIS.",
        allow_abbrev=False,
    )
    analyze.add_argument("analysis", metavar="ANALYSIS", help="as bdjax list analyses names them")
    analyze.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders of run folders")
    analyze.add_argument("--figures", default="figures", metavar="DIR", help="of the figure (default: figures)")
    analyze.add_argument("--format", default="png", help="png, pdf or svg (default: png)")
    analyze.add_argument("--data-dir", help="where prepared data sets lie")
    analyze.add_argument("--quiet", action="store_true", help="no progress")
    analyze.set_defaults(command=_analyze)

    compare = commands.add_parser(
        "compare",
        usage="bdjax compare RUNS [RUNS ...] --defenses FIRST SECOND [--metric METRIC ...] [--format FORMAT]",
        help="two defenses on the same victims and seeds",
        description="Compare two defenses over the runs that differ in nothing else, and test their differences by "
        "flipping signs.",
        allow_abbrev=False,
    )
    compare.add_argument("runs", nargs="+", metavar="RUNS", help=_RUNS)
    compare.add_argument(
        "--defenses",
        nargs=2,
        required=True,
        metavar=("FIRST", "SECOND"),
        help="as the table of the report labels them, such as ft_sam, or 'ft_sam rho=2' where there are several",
    )
    compare.add_argument(
        "--metric",
        nargs="+",
        metavar="METRIC",
        help="clean_accuracy, attack_success_rate, robust_accuracy, defense_effectiveness_rating (default: all but the "
        "third)",
    )
    compare.add_argument("--format", default="console", help="console, markdown, csv or latex")
    compare.set_defaults(command=_compare)

    export = commands.add_parser(
        "export",
        help="records of finished runs as one file",
        description="Write the records of finished runs to one file, a line of JSON each, without checkpoints, images "
        "and the epochs' losses. bdjax report and bdjax compare read it like the runs.",
        allow_abbrev=False,
    )
    export.add_argument("runs", nargs="+", metavar="RUNS", help=_RUNS)
    export.add_argument("--out", default="records.jsonl", metavar="FILE", help="replaced if there (records.jsonl)")
    export.set_defaults(command=_export)

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

    bench = commands.add_parser(
        "bench",
        help="how fast this machine is at all this",
        description="Measure training steps, sweeps, scaling over devices, loading, poisoning and compiling on random "
        "images; print a table and write JSON. What is not given suits the machine.",
        allow_abbrev=False,
    )
    bench.add_argument("--out", default="bench.json", metavar="FILE", help="replaced if there (default: bench.json)")
    bench.add_argument("--model", help="a network (default: preact_resnet18)")
    bench.add_argument("--width", type=int, nargs="+", metavar="W", dest="widths", help="widths of the network")
    bench.add_argument("--batch", type=int, nargs="+", metavar="B", dest="batch_sizes", help="images a step")
    bench.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the random images (default: 32)")
    bench.add_argument("--dtype", metavar="TYPE", help="in which the network computes: float32 or bfloat16")
    bench.add_argument(
        "--only", nargs="+", metavar="SECTION", dest="sections", help="loads steps sweeps scaling startup"
    )
    bench.add_argument("--points", type=int, nargs="+", metavar="N", help="sizes of the sweeps (default: 1 2 4 8 16)")
    bench.add_argument("--devices", type=int, metavar="N", help="the most that scaling uses (default: all)")
    bench.add_argument("--steps", type=int, metavar="N", help="training steps in a timed call")
    bench.add_argument("--rounds", type=int, metavar="R", help="how often each call is timed")
    bench.add_argument(
        "--minutes", type=float, metavar="M", help="skip what is left then (default: 5 on a CPU, else 8)"
    )
    bench.add_argument("--data-dir", help="where a prepared CIFAR-10 may lie")
    bench.add_argument("--quick", action="store_true", help="one width and batch size, small sweeps, one round")
    bench.add_argument("--quiet", action="store_true", help="no progress")
    bench.set_defaults(command=_bench)
    return parser


def _job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, metavar="N", help="submit N jobs that share the sweep, and return at once")
    parser.add_argument(
        "--cluster", default="slurm", help="where: slurm (default), or local, processes of this machine"
    )
    parser.add_argument(
        "--job",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of submitit, such as timeout_min=240, gpus_per_node=1 or slurm_partition=gpu; may be repeated",
    )


def _execution_options(
    parser: argparse.ArgumentParser,
    out: str,
    devices: str = "split each batch over this many devices (default: 1; of several hosts: all)",
) -> None:
    parser.add_argument("--out", default=out, metavar="DIR", help=f"folder of the run folders (default: {out})")
    parser.add_argument("--devices", type=int, help=devices)
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
    from bdjax.train import hosts

    values = _values(options.config, rest)
    with _shallow():
        config = configs.resolve(values)
    if options.show:
        for key, value in schema.flatten(config.to_dict()).items():
            print(f"{key}: {'null' if value is None else value}")
        return 0
    code = _carry_out(options, lambda execution: run.run_with_controls(config, execution))
    if code or not hosts.is_first():
        return code
    _print_table([Path(options.out) / row.run_id for row in run.with_controls(config)])
    _print_selection(Path(options.out) / config.run_id)
    print(f"record: {Path(options.out) / config.run_id / 'record.json'}")
    return 0


def _sweep(options: argparse.Namespace, rest: list[str]) -> int:
    from bdjax import run, sweep_run

    values = _values(options.config, rest)
    axes: dict[str, list[str]] = {}
    for word in options.over:
        path, equals, listed = word.partition("=")
        if not (path and equals):
            raise InputError(f"--over must be KEY=V1,V2,..., such as defense.rho=0.5,1,2; got {word!r}.")
        if path in axes:
            raise InputError(f"--over {path} stands twice; list all of its values in one.")
        axes[path] = [value.strip() for value in listed.split(",") if value.strip()]
    if options.seeds is not None:
        integer(1, seeds=options.seeds)
        if "seed" in axes:
            raise InputError("--seeds and --over seed exclude each other; give one.")
        axes["seed"] = [str(seed) for seed in range(options.seeds)]
    with _shallow():
        wanted = sweep_run.points(values, axes)
    devices = 1 if options.devices is None else options.devices
    at_once = _at_once(options, len(wanted))
    spread = sweep_run.Spread(options.form, devices, options.batch_devices, at_once)
    if options.jobs is not None:
        return _submit(options, at_once)
    rows = []
    code = _carry_out(options, lambda execution: rows.extend(sweep_run.run(wanted, execution, spread)))
    if code:
        return code
    folders = [folder for row in rows if run.finished(folder := Path(options.out) / row.run_id) is not None]
    if len(folders) < len(rows):
        count = len(rows) - len(folders)
        _complain(f"{count} of {len(rows)} runs diverged; the reason stands in their record.json.", EXIT_FAILED)
    if not folders:
        return EXIT_FAILED
    _print_table(folders)
    _draw(folders, Path(options.out) / "figures")
    return 0


def _at_once(options: argparse.Namespace, count: int) -> int:
    """Return how many runs make a group: as asked, or so many that there is a group for each job."""
    if options.at_once is not None:
        return options.at_once
    return min(32, -(-count // max(options.jobs or 1, 1)))


def _submit(options: argparse.Namespace, at_once: int) -> int:
    """Submit the same command, less what submits it, as jobs."""
    from bdjax import launch

    non_negative(checkpoint_seconds=options.checkpoint_seconds)
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _job_options(own)
    words = own.parse_known_args(options.words)[1]
    words += [] if options.at_once is not None else ["--at-once", str(at_once)]
    given = {}
    for word in options.job:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise InputError(f"--job must be KEY=VALUE, such as timeout_min=240; got {word!r}.")
        given[key] = int(value) if value.isdecimal() else value
    jobs = launch.submit(words, _out(options), options.jobs, cluster=options.cluster, options=given)
    print("submitted: " + ", ".join(job.job_id for job in jobs))
    print(f"then: bdjax report {options.out} --figures {Path(options.out) / 'figures'}")
    return 0


def _values(files: list[str], rest: list[str]) -> dict[str, Any]:
    """Return the values of a config file with those of the command line over them; the file may come first, bare."""
    from bdjax import schema

    if rest and not rest[0].startswith("--"):
        files = [*files, rest.pop(0)]
    if len(files) > 1:
        raise InputError(f"name one config, not {len(files)}: {', '.join(files)}.")
    values = schema.read(Path(files[0])) if files else {}
    with _shallow():
        return schema.merge(values, schema.overrides(rest))


@contextlib.contextmanager
def _shallow() -> Iterator[None]:
    try:
        yield
    except RecursionError:
        raise InputError("the config is nested too deeply.") from None


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
    from bdjax.train import compilation, hosts, loop

    if options.devices is not None:
        integer(1, devices=options.devices)
    every = getattr(options, "smoothness_every", 0)
    integer(smoothness_every=every)
    non_negative(checkpoint_seconds=options.checkpoint_seconds)
    compilation.enable_cache()
    out = _out(options)
    asked = _join(options)
    devices = options.devices or (hosts.devices() if hosts.count() > 1 else 1)
    quiet = options.quiet or not hosts.is_first()
    try:
        with run.stop_on_signal() as signaled, progress.bar(quiet=quiet) as on_epoch:
            should_stop = lambda: signaled() or asked()  # noqa: E731
            execution = run.Execution(out, devices, options.checkpoint_seconds, on_epoch, should_stop, every)
            work(dataclasses.replace(execution, data_on=getattr(options, "data_on", "auto")))
    except loop.Stopped as stopped:
        if hosts.is_first():
            print(f"bdjax: {stopped}; the same command continues.", file=sys.stderr)
        return EXIT_STOPPED
    except loop.Diverged as diverged:
        return _complain(diverged, EXIT_FAILED)
    return 0


def _out(options: argparse.Namespace) -> Path:
    if not options.out:
        raise InputError("out must name a folder, got ''.")
    out = Path(options.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"out must be a folder; {out} is a file.")
    return out


def _join(options: argparse.Namespace) -> Callable[[], bool]:
    """Join the other processes of the run, if it has any; return whether the process that guards this is to stop."""
    from bdjax.train import hosts

    asked = guard.listen() if guard.is_watched() else lambda: False
    if options.command is not _run:
        return asked
    hosts.check(options.hosts, options.host, options.coordinator, options.host_timeout)
    if options.hosts is not None:
        hosts.start(options.hosts, options.host, options.coordinator, options.host_timeout)
    return asked


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


def _show(options: argparse.Namespace, rest: list[str]) -> int:
    from bdjax import config as configs
    from bdjax import contact_sheet, registry, schema, show

    names = registry.names("bdjax.attacks") if options.attacks == ["all"] else options.attacks
    values = _values(options.config, rest)
    with _shallow():
        wanted = [configs.resolve(schema.merge(values, {"attack": {"name": name}})) for name in names]
    file = contact_sheet.check(options.file or f"{names[0] if len(names) == 1 else 'attacks'}.png")
    shown: list[show.Shown] = []
    code = _carry_out(options, lambda execution: shown.extend(show.show(config, execution) for config in wanted))
    if code:
        return code
    print(contact_sheet.draw(shown, file, heading=wanted[0].data.name))
    return 0


def _report(options: argparse.Namespace, rest: list[str]) -> int:
    del rest
    _print_table(options.runs, options.format, options.smoothness, options.stealth, options.statistics)
    if options.figures:
        _draw(options.runs, Path(options.figures))
    if options.html:
        from bdjax import findings, page, report

        runs = report.load(options.runs)
        print(page.write(runs, options.html, findings.pictures(runs)))
    return 0


def _analyze(options: argparse.Namespace, rest: list[str]) -> int:
    from bdjax import analyze, schema
    from bdjax.train import compilation

    compilation.enable_cache()
    for file in analyze.analyze(
        options.analysis,
        options.runs,
        options.figures,
        options=schema.overrides(rest),
        format=options.format,
        data_dir=options.data_dir,
        on_run=_teller(options.quiet),
    ):
        print(file)
    return 0


def _teller(quiet: bool) -> Callable[[int, int, Any], None]:
    def tell(number: int, count: int, record: Any) -> None:
        if not quiet:
            print(f"{number}/{count} {record.run_id}", file=sys.stderr, flush=True)

    return tell


def _compare(options: argparse.Namespace, rest: list[str]) -> int:
    del rest
    from bdjax import paired, report, tables

    one_of(tables.FORMATS, format=options.format)
    first, second = options.defenses
    found = paired.compare(report.load(options.runs), first, second, options.metric or paired.METRICS)
    print(paired.table(found, options.format))
    return 0


def _export(options: argparse.Namespace, rest: list[str]) -> int:
    del rest
    from bdjax import bundle, report

    file = bundle.check(options.out)
    found = report.load(options.runs)
    print(f"{bundle.write(found, file)}: {len(found)} {'run' if len(found) == 1 else 'runs'}")
    return 0


def _smoothness(options: argparse.Namespace, rest: list[str]) -> int:
    del rest
    from bdjax import saved
    from bdjax.analysis.smoothness import VARIANTS, Settings
    from bdjax.train import compilation

    compilation.enable_cache()
    given = {name: getattr(options, name) for name in ("images", "draws", "chunk")}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    variants = options.variant or VARIANTS
    for file in saved.smoothness(
        options.runs, variants=variants, settings=settings, data_dir=options.data_dir, on_run=_teller(options.quiet)
    ):
        print(file)
    return 0


def _bench(options: argparse.Namespace, rest: list[str]) -> int:
    del rest
    from bdjax import bench
    from bdjax.bench import session, table

    def tell(line: str) -> None:
        if not options.quiet:
            print(line, file=sys.stderr, flush=True)

    given = {field.name: getattr(options, field.name, None) for field in dataclasses.fields(session.Settings)}
    settings = session.settings(quick=options.quick, **given)
    try:
        results = bench.run(settings, Path(options.out), tell)
    except KeyboardInterrupt:
        return _complain(f"interrupted; {options.out} has the sections that were done.", EXIT_STOPPED)
    print(table.table(results))
    return 0


def _print_table(
    runs: Sequence[Any],
    style: str = "console",
    sharpness: bool = False,
    stealth: bool = False,
    statistics: bool = False,
) -> None:
    from bdjax import ranking, report, sensitivity, tables

    rows = report.summarize(report.load(runs), sharpness=sharpness, stealth=stealth, intervals=statistics)
    if statistics:
        rows = ranking.with_mean_ranks(sensitivity.with_ranges(rows))
    print(tables.table(rows, style))
    if statistics and style != "csv":  # which has the mean ranks in a column
        print("\n" + ranking.table(ranking.rank(rows), style))


def _draw(runs: Sequence[Any], folder: Path) -> None:
    from bdjax import figures, report

    for path in figures.draw(report.load(runs), folder):
        print(path)


if __name__ == "__main__":
    sys.exit(main())
