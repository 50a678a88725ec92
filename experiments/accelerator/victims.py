"""The attacked models at full size: BadNets and Blended on CIFAR-10, by FT-SAM's protocol, in bfloat16.

A victim that the time does not suffice for is saved, and gone on with by the next call; until it is whole it has no
rates and no defense is tried on it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from accelerator import runs
from accelerator.runs import Planted
from accelerator.session import Part, Row, Session, Settings
from bdjax.devices import compilation
from bdjax.report.grid import Grid, Line, write
from bdjax.runs import run, soundness

MAIN = (Planted("badnets_a2o"), Planted("blended"))
_ENOUGH = (
    45.0  # seconds in which a victim gets on: its program is compiled, and some epochs are trained
)
_HEADS = ("victim", "network", "epochs", "ACC", "ASR", "RA", "images/s", "compile s", "run s")
_PUBLISHED = ("ACC published", "ASR published", "source", "remark")
_CAPTION = (
    "Victims by FT-SAM's protocol, one of seed 0 each. ACC of the clean test images, ASR and RA of the triggered ones "
    "(%, with counts). images/s: those of all epochs over the seconds without compiling, where the attacker trains "
    "the victim alone."
)


def parts(settings: Settings) -> list[Part]:
    """Return the parts of this subject, in the order of their worth."""
    return [part(settings, planted) for planted in MAIN]


def part(settings: Settings, planted: Planted) -> Part:
    """Return the part that trains a victim; it asks for little time, as it can be stopped and gone on with."""
    seconds = 3.0 if settings.debug else _ENOUGH
    return Part(name(planted), seconds, functools.partial(_train, planted=planted))


def name(planted: Planted) -> str:
    """Return the name of the part that trains a victim."""
    return f"victims/{planted.name}"


def _train(session: Session, planted: Planted) -> Iterator[Row]:
    """Train a victim, test it, and give its rates."""
    compilation.enable_cache(session.settings.work / "compiled")
    config = runs.resolve(runs.values(session.settings, planted))
    record = run.run(config, runs.execution(session), runs.at_hand(session))
    runs.keep_records(session)
    cost, images = record["victim"], record["data"]["train_count"]
    # No surrogate or trigger was trained before
    alone = cost["epochs"] == config.training["epochs"]
    yield {
        "victim": planted.name,
        "run_id": record["run_id"],
        "victim_id": record["victim_id"],
        "data": record["data"]["name"],
        "model": record["config"]["model"],
        "images": images,
        **cost,
        "images_per_second": cost["epochs"] * images / cost["run_seconds"] if alone else None,
        **runs.rates(record["metrics"]["before"]),
        "remark": "; ".join(soundness.told([soundness.of_victim(record)])),
        "published": runs.published_of(planted, "ft-sam", "none", ""),
    }


def tables(rows: Sequence[Row]) -> str:
    """Return the tables of this subject as Markdown; empty, where there are no rows of it."""
    own = [row for row in rows if row["part"].startswith("victims/")]
    lines = [_line(row) for row in own if "victim" in row]
    lines += [_unfinished(row) for row in own if "stopped" in row or "failed" in row]
    if not lines:
        return ""
    grid = Grid(
        "",
        (*_HEADS, *_PUBLISHED),
        {"": lines},
        _CAPTION,
        words=(0, 1, len(_HEADS) + 2, len(_HEADS) + 3),
    )
    return f"## Victims\n\n{write(grid, 'markdown')}"


def _line(row: Row) -> Line:
    counted = (
        ("clean_accuracy", "clean_correct", "clean_total"),
        ("attack_success_rate", "attack_hits", "attack_total"),
        ("robust_accuracy", "robust_correct", "attack_total"),
    )
    rates = [f"{row[rate]:.2%} ({row[part]:,}/{row[whole]:,})" for rate, part, whole in counted]
    speed = row["images_per_second"]
    cost = [f"{row[name]:.1f}" for name in ("compile_seconds", "run_seconds")]
    known = row["published"]
    beside = [known_rate(known, metric) for metric in ("acc", "asr")]
    network = "{name}, width {width}, {dtype}".format(**row["model"])
    front = [
        row["victim"],
        f"{row['images']:,} images of {row['data']}; {network}",
        str(row["epochs"]),
    ]
    return Line(
        [
            *front,
            *rates,
            "–" if speed is None else f"{speed:,.0f}",
            *cost,
            *beside,
            known.get("source", "–"),
            row["remark"],
        ]
    )


def known_rate(known: Row, metric: str) -> str:
    """Write a published rate, or a dash."""
    return f"{known[metric]:.2f}" if metric in known else "–"


def _unfinished(row: Row) -> Line:
    why = row.get("stopped") or row.get("failed", "")
    empty = ["–"] * (len(_HEADS) + len(_PUBLISHED) - 2)
    return Line([row["part"].removeprefix("victims/"), *empty, f"not whole: {why}"])
