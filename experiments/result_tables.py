r"""Write the tables of ``experiments/results/`` and the README's anew from records and benchmark results.

    bdjax demo --out demo
    python experiments/bench_steps.py --out experiments/results/steps.json
    python experiments/bench_startup.py --out experiments/results/startup.json
    python experiments/bench_defenses.py --out experiments/results/defenses.json
    bdjax bench --out experiments/results/bench.json
    (the commands on top of configs/cifar10_defenses.yaml)
    bdjax smoothness defenses --variant mixed --images 100 --draws 10
    (the command on top of configs/digits_attacks.yaml)
    (the command on top of configs/cifar10_attacks.yaml)
    python experiments/result_tables.py --demo demo --cifar defenses --smoothness \
      --attacks attacks --cifar-attacks cifar10_attacks

Each table stands between ``<!-- name -->`` and ``<!-- end -->``; nothing else is touched.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bdjax import report
from bdjax.bench import table
from bdjax.files import atomic
from bdjax.report import cells, published, tables
from bdjax.report.grid import SIGN

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "experiments" / "results"
PAGES = {  # of each table
    "demo table": ROOT / "README.md",
    "cifar table": RESULTS / "cifar10_defenses.md",
    "attack table": RESULTS / "digits_attacks.md",
    "attack defenses": RESULTS / "digits_attacks.md",
    "cifar attack table": RESULTS / "cifar10_attacks.md",
    "cifar attack defenses": RESULTS / "cifar10_attacks.md",
    "speed table": RESULTS / "speed.md",
    "defense speed": RESULTS / "speed.md",
    "bench table": RESULTS / "speed.md",
}


def main() -> None:
    options = read_options()
    for name, text in benchmark_tables(only_bench=options.bench).items():
        write(name, text)
    if options.demo:
        write("demo table", tables.table(report.summarize(report.load([options.demo])), "markdown"))
        shutil.copyfile(options.demo / "figures" / "overview.png", RESULTS / "demo.png")
    if options.cifar:
        write("cifar table", holdout_tables(report.load([options.cifar]), options.smoothness))
    for prefix, runs in (("", options.attacks), ("cifar ", options.cifar_attacks)):
        if runs:
            rows = report.summarize(report.load([runs]), stealth=True)
            write(f"{prefix}attack table", attack_table(rows))
            write(f"{prefix}attack defenses", attack_defenses(rows))


def read_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--demo", type=Path, help="folder of a finished demonstration; without it its table stays")
    add("--cifar", type=Path, help="finished runs of every defense, or their `bdjax export`")
    add("--attacks", type=Path, help="folder of finished runs of every attack, likewise")
    add("--cifar-attacks", type=Path, help="the same on CIFAR-10, or their `bdjax export`")
    add("--smoothness", action="store_true", help="with the columns of `bdjax smoothness`")
    add("--bench", action="store_true", help="of the benchmarks, only that of `bdjax bench`")
    return parser.parse_args()


def benchmark_tables(only_bench: bool = False) -> dict[str, str]:
    """Return the tables of the benchmarks, by name."""
    texts = {"bench table": table.benchmark_table(load("bench.json"))}
    if not only_bench:
        texts["speed table"] = speed_table(load("steps.json"), load("startup.json"))
        texts["defense speed"] = defense_speed(load("defenses.json"))
    return texts


def holdout_tables(records: list[report.Record], smoothness: bool) -> str:
    """Return a table of the defenses for each share of clean images."""
    of_share: dict[float, list[report.Record]] = {}
    for record in records:
        of_share.setdefault(record.config["holdout"]["share"], []).append(record)
    texts = []
    for share, members in sorted(of_share.items()):
        images = max(record.content["data"]["holdout_count"] for record in members)
        rows = report.summarize(
            members, sharpness=smoothness and any(record.smoothness() for record in members)
        )
        texts.append(
            f"With {images} clean images ({share:.0%}):\n\n{tables.table(rows, 'markdown')}"
        )
    return "\n\n".join(text.strip() for text in texts) + "\n"


def attack_table(rows: Sequence[report.Row]) -> str:
    """Write what each attack makes, beside what was published of it at full size, and how visible it is."""
    heads = (
        "attack",
        "published ACC / ASR",
        "ACC",
        "ASR",
        "PSNR",
        "SSIM",
        "ℓ∞",
        "ℓ2",
        "changed",
        "seconds to plant",
    )
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for row in rows:
        if row.name("defense") == "none":
            seconds = [record.content["victim"]["run_seconds"] for record in row.records]
            rates = (
                f"{100 * statistic.mean:.1f}" for statistic in (row.utility, row.attack_success)
            )
            printed = (row.attack, published_rates(row), *rates, *cells.stealth_cells(row))
            lines.append("| " + " | ".join([*printed, f"{sum(seconds) / len(seconds):.0f}"]) + " |")
    return "\n".join(lines)


def published_rates(row: report.Row) -> str:
    """Write the ACC / ASR in % that FT-SAM's Table 1 has of an attack, or else SFT's, marked with a star."""
    attack = published.names(row.records[0].config).attack
    for paper, mark in (("ft-sam", ""), ("sft", " *")) if attack else ():
        found = published.select(
            paper=paper, table="Table 1", dataset="cifar10", attack=attack, defense="none"
        )
        rates = {value.metric: value.value for value in found}
        if {"acc", "asr"} <= set(rates):
            return f"{rates['acc']:.1f} / {rates['asr']:.1f}{mark}"
    return "–"


def attack_defenses(rows: Sequence[report.Row]) -> str:
    """Write every attack against every defense: ACC / ASR / RA, and the rating."""
    names = list(dict.fromkeys(row.defense for row in rows))
    lines = ["| attack | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    best = report.best(rows)
    for title, group in report.victims(rows).items():
        cells = {row.defense: _rates(row, row in best) for row in group}
        lines.append("| " + " | ".join([title, *(cells.get(name, "–") for name in names)]) + " |")
    for note in report.notes(rows):
        lines += ["", f"{SIGN} {note}."]
    return "\n".join(lines)


def _rates(row: report.Row, is_best: bool) -> str:
    acc, asr, ra, der = (f"{100 * statistic.mean:.1f}" for statistic in row.statistics.values())
    rating = f"**{der}**" if is_best else der
    return f"{acc} / {asr} / {ra} · {rating}{f' {SIGN}' if row.is_marked else ''}"


def load(name: str) -> dict[str, Any]:
    """Return a benchmark's results."""
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def write(name: str, text: str) -> None:
    """Write a table anew on its page."""
    page = PAGES[name]
    atomic.write_text(page, replaced(page.read_text(encoding="utf-8"), name, text))


def replaced(page: str, name: str, text: str) -> str:
    """Put a text between the marks of that name on a page."""
    changed, count = re.subn(
        rf"(<!-- {name} -->\n).*?(<!-- end -->)",
        lambda marks: f"{marks[1]}\n{text}\n\n{marks[2]}",
        page,
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit(
            f"{PAGES[name].name} must have one pair of marks for {name!r}, found {count}"
        )
    return changed


def defense_speed(results: dict[str, Any]) -> str:
    """Write the defenses' steps and the Fisher tools, in plain steps and epochs."""
    steps, diagonal, pruning = (results[name] for name in ("steps", "diagonal", "grad_prune"))
    memory = results["working_bytes"]
    rows = [
        ("FT-SAM", steps["ft_sam_to_plain"], "plain steps"),
        ("NFT (MixUp, 15 layers of masks)", steps["nft_to_plain"], "plain steps"),
        ("fast SFT without the trace", steps["fast_sft_without_trace_to_plain"], "plain steps"),
        (
            "fast SFT, exact trace every 10 steps",
            steps["fast_sft_every_10_to_plain"],
            "plain steps",
        ),
        ("SFT without the trace", steps["sft_without_trace_to_plain"], "plain steps"),
        ("SFT, sign sketch every 10 steps", steps["sft_every_10_to_plain"], "plain steps"),
        (
            "exact diag F of 500 images, all weights",
            diagonal["weights_to_epoch"],
            "plain epochs over them",
        ),
        (
            "the same, singular values",
            diagonal["singular_values_to_epoch"],
            "plain epochs over them",
        ),
        ("a round of Grad-Prune", pruning["round_to_ranking"], "gradients over its images"),
        (
            "memory of ∇ of the exact trace, all weights, 32 at once",
            memory["exact_trace_weights_to_plain"],
            "plain steps'",
        ),
        (
            "the same, singular values",
            memory["exact_trace_singular_values_to_plain"],
            "plain steps'",
        ),
    ]
    lines = [
        "| | cost | in |",
        "| --- | ---: | --- |",
        *(f"| {name} | {value:.2f} | {unit} |" for name, value, unit in rows),
    ]
    machine = f"{results['machine']['cpus']} CPU cores, jax {results['versions']['jax']}, {results['date']}"
    note = f"`preact_resnet18` of width {results['width']}, batches of {results['batch_size']}, {machine}."
    return "\n".join([*lines, "", note])


def speed_table(steps: dict[str, Any], startup: dict[str, Any]) -> str:
    """Write steps, compilation and loading as Markdown."""
    head = [
        "width",
        "step",
        "seconds",
        "images/s",
        "share of matmul",
        "compiled epoch over loop",
        "against PyTorch",
    ]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for row in steps["steps"]:
        for name in ("plain", "sam"):
            ratio = row.get(f"{name}_to_torch")
            layout = row.get(f"{name}_torch_layout", "NCHW")  # once the only one that was timed
            lines.append(
                [
                    str(row["width"]),
                    name if name == "plain" else f"SAM ({row['sam_to_plain']:.2f} × plain)",
                    f"{row['seconds_per_step'][f'{name}_epoch']:.3f}",
                    f"{row[f'{name}_images_per_second']:.0f}",
                    f"{row[f'{name}_share_of_matmul']:.0%}",
                    f"{row[f'{name}_epoch_overhead']:+.1%}",
                    "" if ratio is None else f"{ratio:.2f} ({layout})",
                ]
            )
    cold, cached = startup["compile_seconds"]["cold"], startup["compile_seconds"]["cached"]
    load, first = startup["load_cifar10_seconds"], steps["steps"][0]
    machine = (
        f"{steps['machine']['cpus']} CPU cores, jax {steps['versions']['jax']}, {steps['date']}"
    )
    notes = (
        f"`preact_resnet18`, float32, batches of {first['batch_size']} 32×32 images, {machine}.",
        f"The matrix product reaches {steps['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s.",
        "*Against PyTorch*: seconds of the same step over those of PyTorch's eager one, in its faster layout.",
        f"Compiling an epoch takes {cold['plain']:.1f} s (SAM {cold['sam']:.1f} s),",
        f"and {cached['plain']:.1f} s ({cached['sam']:.1f} s) from the cache on disk.",
        f"CIFAR-10 loads in {load['cold']:.1f} s, the second time in {load['cached']:.2f} s.",
        f"Importing all that a run needs takes {startup['import_seconds']['everything']:.1f} s.",
        f"The benchmark of steps held at most {steps['memory']['host_peak_bytes'] / 2**30:.1f} GiB.",
        "No figure for an accelerator has been measured yet.",
    )
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), "", *notes])


if __name__ == "__main__":
    main()
