"""The benchmark's results as text: Markdown whose columns are aligned, for a console and a page alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_NAMES = {
    "plain": "plain",
    "sam": "SAM",
    "fast_sft_without_trace": "fast SFT without the trace",
    "fast_sft": "fast SFT",
    "nft": "NFT",
}
_MISSING = "–"


def table(results: dict[str, Any]) -> str:
    """Write whatever sections there are, and below them what was measured on what and what was skipped."""
    parts = [write(results[name]) for name, write in _SECTIONS.items() if results.get(name)]
    return "\n\n".join([part for part in parts if part] + [_note(results)])


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """Write a Markdown table whose first columns are words and whose others are numbers."""
    widths = [max(3, *map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * width if index < words else "-" * (width - 1) + ":" for index, width in enumerate(widths)]
    lines = []
    for cells in (head, rule, *rows):
        padded = [
            cell.ljust(width) if index < words else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def _steps(rows: list[dict[str, Any]]) -> str:
    head = ["step", "width", "batch", "ms", "images/s", "× plain", "of matmul", "of copy"]
    lines = []
    for row in rows:
        for name, title in _NAMES.items():
            if (seconds := row["seconds_per_step"].get(name)) is not None:
                matmul, copy = (row[f"share_of_{what}"].get(name) for what in ("matmul", "copy"))
                ratio = row.get("ratio_to_plain", {}).get(name)
                numbers = [milliseconds(seconds), f"{row['images_per_second'][name]:,.0f}", _or(ratio, ".2f")]
                sizes = [str(row["width"]), str(row["batch_size"])]
                lines.append([title, *sizes, *numbers, _or(matmul, ".0%"), _or(copy, ".0%")])
    return grid(head, lines) if lines else ""


def _sweeps(sweep: dict[str, Any]) -> str:
    forms = list(dict.fromkeys(form for row in sweep["rows"] for form in row["cost_per_point"]))
    lines = [
        [str(row["points"]), *(_or(row["cost_per_point"].get(form), ".2f") for form in forms)] for row in sweep["rows"]
    ]
    title = (
        f"Cost of a point of a sweep over that of a single run, width {sweep['width']}, batch {sweep['batch_size']}:"
    )
    return f"{title}\n\n{grid(['points', *forms], lines)}" if lines else ""


def _scaling(scaling: dict[str, Any]) -> str:
    of: dict[tuple[str, str], dict[int, float]] = {}
    for row in scaling["rows"]:
        of.setdefault((row["axis"], row["kind"]), {})[row["devices"]] = row["efficiency"]
    counts = sorted({count for row in of.values() for count in row})
    lines = [[*names, *(_or(row.get(count), ".0%") for count in counts)] for names, row in of.items()]
    title = f"Efficiency on more devices, width {scaling['width']}, batch {scaling['batch_size']}"
    if scaling["devices_share_cores"]:
        title += " (these are virtual devices that share the processor's cores: 1/n is all that weak scaling can reach)"
    head = ["on the mesh", "scaling", *map(str, counts)]
    return f"{title}:\n\n{grid(head, lines, words=2)}" if lines else ""


def _loads(loads: dict[str, Any]) -> str:
    lines = [
        [f"{verb} {name}", f"{rate:,.0f}"]
        for verb in ("load", "poison")
        for name, rate in loads[f"{verb}_images_per_second"].items()
    ]
    return grid(["", "images/s"], lines)


def _startup(startup: dict[str, Any]) -> str:
    seconds = startup["compile_seconds"]
    lines = [
        [f"compile a {_NAMES[name]} epoch", *(f"{seconds[kind][name]:.1f}" for kind in seconds)]
        for name in seconds["cold"]
    ]
    lines.append(["import", f"{startup['import_seconds']:.1f}", _MISSING])
    return grid(["seconds in a fresh process", *seconds], lines)


_SECTIONS: dict[str, Callable[[Any], str]] = {
    "steps": _steps,
    "sweeps": _sweeps,
    "scaling": _scaling,
    "loads": _loads,
    "startup": _startup,
}


def _note(results: dict[str, Any]) -> str:
    machine, settings, peak = (results[name] for name in ("machine", "settings", "peak"))
    device, size = machine["device"], settings["image_size"]
    kind = "CPU" if device["platform"] == "cpu" else device["kind"]
    loads = [load[0] for load in [machine["load_average"], *results["load_average"].values()]]
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
        lines.append("*Of matmul*, *of copy*: the step's operations and bytes over those of products and copies that")
        lines.append("took their turn in the same rounds. Fast SFT has its exact trace in one of ten steps.")
    lines += [f"Skipped: {skipped['what']} ({skipped['why']})." for skipped in results["skipped"]]
    return "\n".join(lines)


def _numbers(settings: dict[str, Any]) -> str:
    """Say in what the network computes, and how products round where they were told."""
    dtype, precision = settings["dtype"] or "float32", settings.get("matmul_precision")
    return dtype if precision is None else f"{dtype} (products in {precision})"


def milliseconds(seconds: float) -> str:
    """Write a time with about three digits."""
    return f"{1000 * seconds:,.{0 if seconds >= 0.1 else 1 if seconds >= 0.01 else 2}f}"


def _or(value: float | None, form: str) -> str:
    return _MISSING if value is None else format(value, form)
