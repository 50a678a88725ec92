"""When do SFT, fast SFT and NFT remove a backdoor? One thing changed at a time around a base, with FT in each cell.

    python experiments/when_does_it_work.py --out when
    python experiments/when_does_it_work.py --size cifar10 --data-dir ~/tensorflow_datasets --out when
    python experiments/when_does_it_work.py --full --data-dir ~/tensorflow_datasets --out when
    python experiments/when_does_it_work.py --debug --out when

The size is ``digits`` (minutes on two cores), ``cifar10`` (16 x 16 pixels, a small network, hours), or with ``--full``
that of the papers. What is changed, one at a time: the victim (epochs and rate; whether the holdout is held out of its
training; both, as SFT's and NFT's own victims are), the defense's rate and steps, the loss as a sum, the statistics
of batch norm, augmentation, poison rate, network, images, holdout, and the weights of the penalties.

``<out>/<size>.jsonl`` has a line for each run, ``<out>/<size>.md`` the table; ``<out>/runs`` the victims. The same
command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import _checkout  # noqa: F401  # the checkout's bdjax, where none is installed
import jax
import numpy as np
from _when_settings import DEFENSES, SIZES, Level, resolved
from _when_variants import MODELS, SingularValuesAndRest

from bdjax import defenses, evaluate, poison
from bdjax.checks import InputError
from bdjax.cli import _signals
from bdjax.devices import compilation
from bdjax.files import atomic
from bdjax.runs import plans, run
from bdjax.runs.at_hand import AtHand
from bdjax.runs.config import Config
from bdjax.train import loop
from bdjax.types import Split

Row = dict[str, Any]


def main(words: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(words)
    size = "debug" if options.debug else "full" if options.full else options.size
    compilation.enable_cache()
    file = options.out / f"{size}.jsonl"
    rows = read(file)
    try:
        with _signals.stop_on_signal() as should_stop:
            execution = run.Execution(
                options.out / "runs", checkpoint_seconds=30, should_stop=should_stop
            )
            for level, attack, defense, seed in _wanted(size, options):
                config = resolved(SIZES[size], level, attack, defense, seed, options.data_dir)
                cell = {"factor": level.factor, "level": level.name, "run_id": config.run_id}
                if any(cell.items() <= row.items() for row in rows):
                    continue
                if should_stop():
                    raise loop.Stopped("stopped between two runs")
                named = {**cell, "attack": attack, "defense": defense, "seed": seed}
                rows.append({**named, **carry_out(config, level, execution)})
                keep(file, rows)
                print(_line(rows[-1]), flush=True)
    except (InputError, loop.Stopped) as reason:
        raise SystemExit(f"when_does_it_work: {reason}") from None
    print(table(rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["digits", "cifar10"], default="digits")
    parser.add_argument(
        "--full", action="store_true", help="at the papers' size, for an accelerator"
    )
    parser.add_argument("--debug", action="store_true", help="in miniature, to see that it runs")
    parser.add_argument("--data-dir", help="where prepared data sets lie")
    parser.add_argument("--out", type=Path, default=Path("when"))
    parser.add_argument(
        "--attacks", nargs="+", help="badnets, blended; those of the size unless given"
    )
    parser.add_argument(
        "--factors", nargs="+", help="beginnings of the cells' titles, such as 'victim'"
    )
    parser.add_argument("--seeds", nargs="+", type=int, help="0 1 2; 0 with --debug")
    return parser


def _wanted(size: str, options: argparse.Namespace) -> Iterator[tuple[Level, str, str, int]]:
    """Yield the runs, one seed after another, so that all cells have one early."""
    seeds = options.seeds or ([0] if options.debug else [0, 1, 2])
    for seed, level, attack in itertools.product(
        seeds, SIZES[size].levels, options.attacks or SIZES[size].attacks
    ):
        if not options.factors or level.title.startswith(tuple(options.factors)):
            yield from ((level, attack, defense, seed) for defense in level.defenses)


def carry_out(config: Config, level: Level, execution: run.Execution) -> Row:
    """Train the victim, unless it is there, and defend it; return counts and rates before and after."""
    at_hand = AtHand(execution)
    plan = at_hand.plan(config)
    victim = at_hand.victim(plan)
    plan = plans.with_trigger(plan, victim.trigger_state)
    learner, model = _changed(plan.defense.learner, level), MODELS[level.statistics](plan.model)
    holdout = _with_triggers(plan) if level.knows else plan.holdout
    row: Row = {"before": _rates(victim.metrics)}
    started = time.perf_counter()
    try:
        key = plans.key_for(config, "defense")
        purified = defenses.purify(key, learner, model, victim.trained.variables, holdout)
    except loop.Diverged:
        return {**row, "diverged": True}
    seconds = time.perf_counter() - started
    after = evaluate.evaluate(plan.model, purified.variables, plan.dataset.test, victim.triggered)
    last = purified.history[-1]
    return {**row, "after": _rates(after), "loss": float(last.loss), "seconds": round(seconds, 2)}


def _changed(learner: Any, level: Level) -> Any:
    """Return the defense with what is no option of it."""
    if level.weight_decay:
        sgd = dataclasses.replace(learner.sgd, weight_decay=level.weight_decay)
        learner = dataclasses.replace(learner, sgd=sgd)
    if level.norms:
        learner = dataclasses.replace(learner, parametrization=SingularValuesAndRest())
    return learner


def _with_triggers(plan: plans.Plan) -> Split:
    """Return the holdout, and after it the same with the trigger and its true labels."""
    stamp = poison.trigger_source(
        plan.attack, plan.trigger_state, rounding=plan.config.poison.rounding, at_test=True
    )
    image = plans.stamped(stamp, plans.key_for(plan.config, "analysis"), plan.holdout.input)
    triggered = plan.holdout._replace(input=np.asarray(image))
    return jax.tree.map(lambda *both: np.concatenate(both), plan.holdout, triggered)


def _rates(metrics: Any) -> Row:
    names = ("clean_accuracy", "attack_success_rate", "robust_accuracy")
    return {name: round(float(getattr(metrics, name)), 5) for name in names}


def table(rows: Sequence[Row]) -> str:
    """Return a table with a row for each cell: of each defense ASR and, in brackets, ACC, in percent."""
    names = [name for name in DEFENSES if any(row["defense"] == name for row in rows)]
    lines = ["| attack | changed | victim | " + " | ".join(names) + " | n |"]
    lines.append("| --- | --- |" + " ---: |" * (len(names) + 2))
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["attack"], row["factor"], row["level"]), []).append(row)
    order = list(dict.fromkeys(attack for attack, _, _ in cells))
    for (attack, factor, level), found in sorted(
        cells.items(), key=lambda item: order.index(item[0][0])
    ):
        own = [[row for row in found if row["defense"] == name] for name in names]
        victims = {row["seed"]: row["before"] for row in found}
        title = Level(factor, level).title
        shown = " | ".join(map(_shown, own))
        lines.append(
            f"| {attack} | {title} | {_mean(list(victims.values()))} | {shown} | {len(victims)} |"
        )
    return "\n".join([*lines, "", CAPTION, ""])


CAPTION = (
    "ASR and, in brackets, ACC in percent: mean ± sample standard deviation of ASR over n seeds. Runs that "
    "diverged are left out of the mean and counted."
)


def _shown(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    done = [row["after"] for row in rows if "after" in row]
    gone = len(rows) - len(done)
    words = [_mean(done)] if done else []
    return " ".join([*words, f"{gone} diverged"] if gone else words)


def _mean(rates: Sequence[Row]) -> str:
    asr = [100 * rate["attack_success_rate"] for rate in rates]
    acc = statistics.mean(100 * rate["clean_accuracy"] for rate in rates)
    spread = f" ± {statistics.stdev(asr):.1f}" if len(asr) > 1 else ""
    return f"{statistics.mean(asr):.1f}{spread} ({acc:.1f})"


def _line(row: Row) -> str:
    title = Level(row["factor"], row["level"]).title
    return f"{title}, {row['attack']}, seed {row['seed']}, {row['defense']}: {_mean([row['before']])} → {_shown([row])}"


def read(file: Path) -> list[Row]:
    """Return the rows of earlier calls."""
    return (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        if file.exists()
        else []
    )


def keep(file: Path, rows: Sequence[Row]) -> None:
    """Write the rows and their table."""
    atomic.write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    atomic.write_text(file.with_suffix(".md"), table(rows))


if __name__ == "__main__":
    main()
