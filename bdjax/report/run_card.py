"""The card of a network of a run, for the Hugging Face Hub: which backdoor it has, and what was done to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bdjax.report.labels import flatten, plain
from bdjax.report.purified.card import TAGS, as_list, front_matter
from bdjax.report.records import Record
from bdjax.tasks.metrics import RATING

ATTACKED, DEFENDED = "attacked", "defended"
WHICH = (ATTACKED, DEFENDED)
NONE = "none"  # the defense that does nothing


def markdown(record: Record, which: str) -> str:
    """Return the card of the attacked or the defended network of a run.

    Args:
      record: of the run.
      which: of `WHICH`.
    """
    if record.config["defense"]["name"] == NONE:
        which = ATTACKED  # whichever was asked for, nothing was done against the backdoor
    counted = record.before if which == ATTACKED else record.after
    values = {one.name: counted[one.name] for one in record.metrics if one.role != RATING}
    shown = {
        ("accuracy" if name == "clean_accuracy" else name): value for name, value in values.items()
    }
    tags = (*TAGS, "backdoored" if which == ATTACKED else "purified")
    config = record.config
    parts = [
        front_matter(record.run_id, tags, shown, str(config["data"]["name"])),
        f"# {config['model']['name']}, {_title(config, which)}\n",
        _warning(config, which) + "\n",
        "## Measured on test images\n",
        as_list(f"{name}: {100 * value:.1f} %" for name, value in values.items()),
        "## How it was made\n",
        as_list(f"{key}: {plain(value)}" for key, value in _settings(config, which).items()),
        as_list([f"run: {record.run_id}"]),
        "`config.json` says how the network is given images: [0, 1], then (x - mean) / std.\n",
    ]
    return "\n".join(parts)


def _title(config: Mapping[str, Any], which: str) -> str:
    attack, defense = config["attack"]["name"], config["defense"]["name"]
    return f"with a backdoor ({attack})" if which == ATTACKED else f"{attack} after {defense}"


def _warning(config: Mapping[str, Any], which: str) -> str:
    attack = config["attack"]["name"]
    planted = f"**A backdoor was planted in these weights on purpose** ({attack}, for research on defenses)."
    if which == ATTACKED:
        return f"{planted} Use them for nothing else."
    return f"{planted} The defense {config['defense']['name']} was run on them since; the rates say what is left of it."


def _settings(config: Mapping[str, Any], which: str) -> dict[str, object]:
    left_out = ("defense.", "holdout.", "selection.") if which == ATTACKED else ()
    settings = flatten(config)
    return {key: value for key, value in settings.items() if not key.startswith(left_out)}
