"""The benchmark's results as text: Markdown whose columns are aligned, for a console and a page alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from bdjax.bench.measure import Row

_NAMES = {
    "plain": "plain",
    "sam": "SAM",
    "fast_sft_without_trace": "fast SFT without the trace",
    "fast_sft": "fast SFT",
    "nft": "NFT",
}
_MISSING = "–"
_OF_STEPS = (
    "*Of matmul*, *of copy*: the step's operations and bytes over those of products and copies that",
    "took their turn in the same rounds. Fast SFT has its exact trace in one of ten steps.",
)
_Lines: TypeAlias = list[list[str]]


def benchmark_table(results: Row) -> str:
    """Write whatever sections there are, and below them what was measured on what and what was skipped."""
    parts: list[str] = []
    for name, write in _SECTIONS.items():
        if results.get(name):
            parts.append(write(results[name]))
    return "\n\n".join([*filter(None, parts), _note(results)])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Write a Markdown table whose first columns are words and whose others are numbers."""
    columns: list[list[str]] = []
    for number, column in enumerate(zip(head, *rows, strict=True)):
        width = max(3, *map(len, column))
        title, *cells = column
        if number < words:
            columns.append([cell.ljust(width) for cell in (title, "-" * width, *cells)])
        else:
            rule = "-" * (width - 1) + ":"
            columns.append([cell.rjust(width) for cell in (title, rule, *cells)])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in zip(*columns, strict=True))


def _steps(rows: list[Row]) -> str:
    head = ["step", "width", "batch", "ms", "images/s", "× plain", "of matmul", "of copy"]
    lines: _Lines = []
    for row in rows:
        for name, title in _NAMES.items():
            if name in row["seconds_per_step"]:
                lines.append([title, *_of_step(row, name)])
    return markdown_table(head, lines) if lines else ""


def _of_step(row: Row, name: str) -> list[str]:
    ratio = row.get("ratio_to_plain", {}).get(name)
    return [
        str(row["width"]),
        str(row["batch_size"]),
        milliseconds(row["seconds_per_step"][name]),
        f"{row['images_per_second'][name]:,.0f}",
        _or(ratio, ".2f"),
        _or(row["share_of_matmul"].get(name), ".0%"),
        _or(row["share_of_copy"].get(name), ".0%"),
    ]


def _sweeps(sweep: Row) -> str:
    forms: dict[str, None] = {}  # in their order
    for row in sweep["rows"]:
        forms |= dict.fromkeys(row["cost_per_point"])
    lines: _Lines = []
    for row in sweep["rows"]:
        costs = [_or(row["cost_per_point"].get(form), ".2f") for form in forms]
        lines.append([str(row["points"]), *costs])
    sizes = f"width {sweep['width']}, batch {sweep['batch_size']}"
    title = f"Cost of a point of a sweep over that of a single run, {sizes}:"
    return f"{title}\n\n{markdown_table(['points', *forms], lines)}" if lines else ""


def _scaling(scaling: Row) -> str:
    of: dict[tuple[str, str], dict[int, float]] = {}
    for row in scaling["rows"]:
        of.setdefault((row["axis"], row["kind"]), {})[row["devices"]] = row["efficiency"]
    counts = sorted(set().union(*of.values()))
    lines: _Lines = []
    for names, row in of.items():
        lines.append([*names, *(_or(row.get(count), ".0%") for count in counts)])
    title = f"Efficiency on more devices, width {scaling['width']}, batch {scaling['batch_size']}"
    if scaling["devices_share_cores"]:
        shared = "these are virtual devices that share the processor's cores"
        title += f" ({shared}: 1/n is all that weak scaling can reach)"
    head = ["on the mesh", "scaling", *map(str, counts)]
    return f"{title}:\n\n{markdown_table(head, lines, words=2)}" if lines else ""


def _loads(loads: Row) -> str:
    lines: _Lines = []
    for verb in ("load", "poison"):
        for name, rate in loads[f"{verb}_images_per_second"].items():
            lines.append([f"{verb} {name}", f"{rate:,.0f}"])
    return markdown_table(["", "images/s"], lines)


def _startup(startup: Row) -> str:
    seconds = startup["compile_seconds"]
    lines: _Lines = []
    for name in seconds["cold"]:
        numbers = [f"{of_kind[name]:.1f}" for of_kind in seconds.values()]
        lines.append([f"compile a {_NAMES[name]} epoch", *numbers])
    lines.append(["import", f"{startup['import_seconds']:.1f}", _MISSING])
    return markdown_table(["seconds in a fresh process", *seconds], lines)


_SECTIONS: dict[str, Callable[..., str]] = {
    "steps": _steps,
    "sweeps": _sweeps,
    "scaling": _scaling,
    "loads": _loads,
    "startup": _startup,
}


def _note(results: Row) -> str:
    machine, settings, peak = results["machine"], results["settings"], results["peak"]
    device, size = machine["device"], settings["image_size"]
    kind = "CPU" if device["platform"] == "cpu" else device["kind"]
    averages = [machine["load_average"], *results["load_average"].values()]
    loads = [load[0] for load in averages]
    matmul, copy = peak["matmul_flops_per_second"], peak["copy_bytes_per_second"]
    steps = "one step" if settings["steps"] == 1 else f"{settings['steps']} steps"
    lines = [
        f"`{settings['model']}`, {_numbers(settings)}, random {size}×{size} images; "
        f"{device['count']} × {kind}, {machine['cpus']} CPU cores, load {min(loads):.1f} to {max(loads):.1f}, "
        f"jax {results['versions']['jax']}, {results['date']}.",
        f"Medians of {settings['rounds']} interleaved rounds of {steps}, without compiling.",
        f"The best matrix product reached {matmul / 1e9:,.0f} GFLOP/s, the best copy {copy / 1e9:,.1f} GB/s.",
    ]
    if results.get("steps"):
        lines += _OF_STEPS
    lines += [f"Skipped: {skipped['what']} ({skipped['why']})." for skipped in results["skipped"]]
    return "\n".join(lines)


def _numbers(settings: Row) -> str:
    """Say in what the network computes, and how products round where they were told."""
    dtype, precision = settings["dtype"] or "float32", settings.get("matmul_precision")
    return dtype if precision is None else f"{dtype} (products in {precision})"


def milliseconds(seconds: float) -> str:
    """Write a time with about three digits."""
    digits = 0 if seconds >= 0.1 else 1
    if seconds < 0.01:
        digits = 2
    return f"{1000 * seconds:,.{digits}f}"


def _or(value: float | None, form: str) -> str:
    return _MISSING if value is None else format(value, form)
