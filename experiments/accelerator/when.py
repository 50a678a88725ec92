"""SFT, fast SFT and NFT on the victim of their own papers, at full size: 250 epochs at 0.01, the holdout held out.

These are cells of `when_does_it_work.py` (its `_when_settings.FULL`) in bfloat16. The victim is trained in three
pieces, each of which fits into a call; what a piece leaves is continued by the next.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from _when_settings import DEBUG, FULL, Level, Size, resolved
from when_does_it_work import carry_out, table

from accelerator.session import Part, Row, Session, Settings
from bdjax.runs import run, schema
from bdjax.runs.at_hand import AtHand
from bdjax.runs.config import Config
from bdjax.train import loop

PIECES = 3
CELLS = (
    "victim: both",
    "both, rate: × 5",
    "both, loss: sum",
    "both, weights: no penalty, rate × 25",
)
# Expected, not measured: an epoch of the victim, a defense's 100 epochs on 500 images, and compiling either.
EPOCH, DEFENSE, COMPILE = 1.25, 4.0, 45.0


class Plan(NamedTuple):
    """What is run: of which size, in which cells, all of one victim, and how long it is expected to compile."""

    size: Size
    cells: Sequence[Level]
    defenses: Sequence[str]
    compiling: float = COMPILE


def parts(settings: Settings) -> list[Part]:
    """Return the parts, an attack's victim before what is done to it."""
    plan = _plan(settings)
    return [part for attack in plan.size.attacks for part in _of_attack(plan, attack)]


def tables(rows: Sequence[Row]) -> str:
    """Return ASR and ACC of every defense and cell."""
    found = [row for row in rows if row["part"].startswith("when/") and "defense" in row]
    if not found:
        return ""
    title = "## The papers' own victims: 250 epochs at 0.01, 1 % of the images held out for the defender"
    return f"{title}\n\n{table(found)}"


def _plan(settings: Settings) -> Plan:
    if settings.debug:
        cells = [level for level in DEBUG.levels if level.factor == "held out"]
        return Plan(DEBUG, cells, ("ft", "nft"), compiling=2.0)
    bf16 = schema.merge(FULL.base, {"model": {"dtype": "bfloat16"}})
    cells = [level for level in FULL.levels if level.title in CELLS]
    return Plan(FULL._replace(base=bf16), cells, ("ft", "sft", "fast_sft", "nft", "ft_sam"))


def _of_attack(plan: Plan, attack: str) -> Iterator[Part]:
    names = [f"when/{attack}/victim-{piece}" for piece in range(1, PIECES + 1)]
    epochs = plan.cells[0].changes["training"]["epochs"]
    for piece, name in enumerate(names, 1):
        work = functools.partial(_train, plan, attack, last=round(epochs * piece / PIECES))
        yield Part(name, plan.compiling + EPOCH * epochs / PIECES, work, tuple(names[: piece - 1]))
    for defense in plan.defenses:
        cells = [level for level in plan.cells if defense in level.defenses]
        work = functools.partial(_defend, plan, cells, attack, defense)
        yield Part(
            f"when/{attack}/{defense}", plan.compiling + DEFENSE * len(cells), work, tuple(names)
        )


def _train(plan: Plan, attack: str, session: Session, *, last: int) -> Iterator[Row]:
    """Train the victim as far as this epoch, or to the end of the call."""
    epochs = plan.cells[0].changes["training"]["epochs"]
    done: list[loop.Epoch] = []

    def reached() -> bool:
        return last < epochs and bool(done) and done[-1].epoch >= last

    def enough() -> bool:
        return reached() or session.out_of_time()

    def on_epoch(label: str, total: int, epoch: loop.Epoch) -> None:
        del label, total
        done.append(epoch)

    execution = dataclasses.replace(_execution(session, enough), on_epoch=on_epoch)
    try:
        at_hand = AtHand(execution)
        at_hand.victim(at_hand.plan(_config(plan, plan.cells[0], attack, "ft", session)))
    except loop.Stopped:
        if not reached():
            raise
    seconds = sum(epoch.seconds for epoch in done)
    yield {
        "attack": attack,
        "epochs": last,
        "seconds_an_epoch": round(seconds / max(len(done), 1), 3),
    }


def _defend(
    plan: Plan, cells: Sequence[Level], attack: str, defense: str, session: Session
) -> Iterator[Row]:
    """Run a defense in each cell; only numbers differ, so that it is compiled once."""
    for level in cells:
        config = _config(plan, level, attack, defense, session)
        named = {
            "factor": level.factor,
            "level": level.name,
            "attack": attack,
            "defense": defense,
            "seed": config.seed,
        }
        yield {**named, **carry_out(config, level, _execution(session, session.out_of_time))}


def _config(plan: Plan, level: Level, attack: str, defense: str, session: Session) -> Config:
    return resolved(plan.size, level, attack, defense, seed=0, data_dir=session.settings.data_dir)


def _execution(session: Session, should_stop: Callable[[], bool]) -> run.Execution:
    return run.Execution(
        session.settings.work / "when", checkpoint_seconds=30, should_stop=should_stop
    )
