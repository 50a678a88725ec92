"""The rows of `accelerator.speed` as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from accelerator.session import Row
from bdjax.bench.table import markdown_table, milliseconds

STEP_NAMES = {
    "plain": "plain",
    "sam": "SAM",
    "nft": "NFT",
    "anp_like": "SAM on masks (ANP-like)",
    "sft": "SFT",
    "fast_sft": "fast SFT",
}
TYPE_NAMES = {
    "bfloat16": "bfloat16",
    "tensorfloat32": "float32, TF32",
    "float32": "float32",
}
_MISSING = "–"
_Columns = Mapping[str, Callable[[Row], str]]


def tables(rows: Sequence[Row]) -> str:
    """Return the tables of what there is and what it was measured on; empty, where there is nothing."""
    mine = [row for row in rows if row["part"].startswith("speed/")]
    written = [text for write in _TABLES if (text := write(mine))]
    return "\n\n".join(["## How fast?", *written, _note(mine)]) if written else ""


def _steps(rows: Sequence[Row]) -> str:
    found = [row for row in rows if row.get("by") == "bdjax" and "ratio_to_plain" in row]
    # And not those that torch.compile was compared with
    first = {_case(row): row for row in reversed(found)}
    return _table(sorted(first.values(), key=_case), _STEP_COLUMNS, words=2)


def _against_torch(rows: Sequence[Row]) -> str:
    found = [row for row in rows if row.get("by") == "PyTorch"]
    table = _table(sorted(found, key=_case), _TORCH_COLUMNS, words=4)
    return (
        table
        and f"Images a second over PyTorch's in the same seconds (above 1, bdjax is faster):\n\n{table}"
    )


def _feedings(rows: Sequence[Row]) -> str:
    found = [row for row in rows if "feeding" in row and row["feeding"] == row["against"]]
    table = _table(sorted(found, key=_case), _FEEDING_COLUMNS, words=3)
    return (
        table
        and f"An epoch that is fed in another way than `bdjax run` takes by itself here:\n\n{table}"
    )


def _sweep(rows: Sequence[Row]) -> str:
    table = _table([row for row in rows if "form" in row], _SWEEP_COLUMNS, words=1)
    return table and f"A sweep of FT-SAM over ρ and seeds, in single runs:\n\n{table}"


def _peaks(rows: Sequence[Row]) -> str:
    return _table([row for row in rows if "peak" in row], _PEAK_COLUMNS, words=1)


def _rates(rows: Sequence[Row]) -> str:
    return _table([row for row in rows if "rate" in row], _RATE_COLUMNS, words=1)


def _startup(rows: Sequence[Row]) -> str:
    return _table([row for row in rows if "startup" in row], _STARTUP_COLUMNS, words=1)


def _operations(rows: Sequence[Row]) -> str:
    return _table([row for row in rows if "operation_of" in row], _OPERATION_COLUMNS, words=2)


_TABLES = (_steps, _against_torch, _feedings, _sweep, _peaks, _rates, _startup, _operations)


def _table(rows: Iterable[Row], columns: _Columns, words: int) -> str:
    lines = [[cell(row) for cell in columns.values()] for row in rows]
    return markdown_table(list(columns), lines, words) if lines else ""


def _note(rows: Sequence[Row]) -> str:
    """Say what the numbers were measured on, and when; a folder may hold the parts of several calls."""
    found = {}
    for row in rows:
        if "device" in row:
            device, versions = row["device"], row["versions"]
            what = f"{device['count']} × {device['kind']}, jax {versions['jax']}, {row['date']}"
            found[what] = None
    torch = {f"PyTorch {row['version']}": None for row in rows if "version" in row}
    sizes = {f"{row['model']} of width {row['width']}": None for row in rows if "model" in row}
    return "\n".join(
        [
            f"{'; '.join([*sizes, *torch, *found])}; random 32×32 images, which are cropped and flipped too.",
            "*Of matmul*, *of copy*: a step's operations and bytes over those of products and copies that took their",
            "turn in the same rounds, in the same type. *Host*: the time until a call of many steps has returned, over",
            "that until its results are there; it includes waiting where the device's queue is full. *GiB*: what the",
            "program asks for.",
        ]
    )


def _case(row: Row) -> tuple[int, int, int]:
    return (
        list(TYPE_NAMES).index(row["kind"]),
        row["batch_size"],
        list(STEP_NAMES).index(row["step"]),
    )


def _number(name: str, form: str, unit: int = 1) -> Callable[[Row], str]:
    """Return the cell of a number that a row may lack."""

    def cell(row: Row) -> str:
        value = row.get(name)
        return _MISSING if value is None else format(value if unit == 1 else value / unit, form)

    return cell


def _ratio_or_reason(row: Row) -> str:
    return row["missing"] if "missing" in row else f"{row['bdjax_over_torch']:.2f}"


def _ms(name: str) -> Callable[[Row], str]:
    return lambda row: milliseconds(row[name]) if name in row else _MISSING


_WHICH: _Columns = {
    "step": lambda row: STEP_NAMES[row["step"]],
    "type": lambda row: TYPE_NAMES[row["kind"]],
}
_STEP_COLUMNS: _Columns = {
    **_WHICH,
    "batch": _number("batch_size", "d"),
    "ms": _ms("seconds_per_step"),
    "images/s": _number("images_per_second", ",.0f"),
    "× plain": _number("ratio_to_plain", ".2f"),
    "of matmul": _number("share_of_matmul", ".0%"),
    "of copy": _number("share_of_copy", ".0%"),
    "host ms": _ms("host_seconds_per_step"),
    "host": _number("host_share", ".1%"),
    "compile s": _number("compile_seconds", ".1f"),
    "GiB": _number("program_bytes", ".2f", 2**30),
}
_TORCH_COLUMNS: _Columns = {
    **_WHICH,
    "PyTorch": lambda row: row["mode"],
    "layout": lambda row: row["layout"],
    "batch": _number("batch_size", "d"),
    "its ms": _ms("seconds_per_step"),
    "its images/s": _number("images_per_second", ",.0f"),
    "bdjax's": _number("bdjax_images_per_second", ",.0f"),
    "ratio": _ratio_or_reason,
    "prepared in s": _number("prepare_seconds", ".0f"),
}
_FEEDING_COLUMNS: _Columns = {
    **_WHICH,
    "fed": lambda row: row["feeding"],
    "batch": _number("batch_size", "d"),
    "ms": _ms("seconds_per_step"),
    "× by itself": _number("ratio_to_auto", ".3f"),
    "host": _number("host_share", ".1%"),
    "compile s": _number("compile_seconds", ".1f"),
}
_SWEEP_COLUMNS: _Columns = {
    "form": lambda row: row["form"],
    "points": _number("points", "d"),
    "batch": _number("batch_size", "d"),
    "ms a step of all": _ms("seconds_per_step"),
    "ms a single step": _ms("single_seconds_per_step"),
    "a point, in singles": _number("cost_per_point", ".2f"),
    "all, in singles": lambda row: (
        row["missing"] if "missing" in row else f"{row['in_singles']:.1f}"
    ),
    "compile s": _number("compile_seconds", ".1f"),
}
_PEAK_COLUMNS: _Columns = {
    "products of": lambda row: TYPE_NAMES[row["peak"]],
    "GFLOP/s": _number("matmul_flops_per_second", ",.0f", 10**9),
    "copy, GB/s": _number("copy_bytes_per_second", ",.0f", 10**9),
}
_RATE_COLUMNS: _Columns = {
    "": lambda row: row["rate"],
    "images/s": _number("images_per_second", ",.0f"),
}
_STARTUP_COLUMNS: _Columns = {
    "seconds in a fresh process": lambda row: row.get("missing", row["startup"]),
    "cold": _number("cold", ".1f"),
    "cached": _number("cached", ".1f"),
}
_OPERATION_COLUMNS: _Columns = {
    "step": lambda row: STEP_NAMES[row["operation_of"]],
    "operation": lambda row: row["name"],
    "share": _number("share", ".1%"),
    "ms a step": lambda row: milliseconds(row["seconds"] / row["steps"]),
    "times a step": lambda row: f"{row['count'] / row['steps']:,.0f}",
    "from": lambda row: row["line"] or row["path"][-60:],
}
