"""A network of a finished run as files for others, with a card that says what was planted in it."""

from __future__ import annotations

import os
from pathlib import Path

from bdjax import saved
from bdjax.checks import InputError, one_of
from bdjax.files import atomic, failures, places
from bdjax.files.printable import printable
from bdjax.report import run_card
from bdjax.runs import model_files
from bdjax.runs.purified import CARD, CONFIG, LIBRARY, SAFETENSORS, TORCH


def write(
    run: str | os.PathLike[str],
    out: Path,
    *,
    form: str = "safetensors",
    which: str = run_card.DEFENDED,
    data_dir: str | None = None,
) -> list[Path]:
    """Write a network of a finished run into a new folder, and return the files.

    Args:
      run: the run's folder.
      out: the folder; what is in it must be of an earlier export.
      form: of `bdjax.runs.model_files.FORMATS`: ``safetensors``, or PyTorch's format as a bare state dict or as
        BackdoorBench has it. ``config.json`` and the card lie beside each.
      which: of `bdjax.report.run_card.WHICH`.
      data_dir: where the data lie now.

    Raises:
      InputError: as `bdjax.saved.restore`, an unknown word, or a folder that holds something else.
    """
    one_of(model_files.FORMATS, format=form)
    one_of(run_card.WHICH, which=which)
    _check_free(out)
    record = saved.one(run)
    networks = saved.restore(record, data_dir)
    model = networks.plan.model
    variables = networks.victim if which == run_card.ATTACKED else networks.defended
    options = {key: value for key, value in record.config["model"].items() if key != "name"}
    name = record.config["model"]["name"]
    content = model_files.config(
        name,
        options,
        model,
        run_id=record.run_id,
        which=which,
        attack=dict(record.config["attack"]),
    )
    with failures.blaming_the_path(f"the network cannot be written to {out}"):
        out.mkdir(parents=True, exist_ok=True)
        files = model_files.write(out, form, model, variables, content)
        _remove_others(out, files)
        atomic.write_text(out / CARD, run_card.markdown(record, which))
    return [*files, out / CARD]


def _remove_others(out: Path, files: list[Path]) -> None:
    """Remove the weights of an earlier export, which are not those that config and card are of."""
    for name in {SAFETENSORS, TORCH} - {file.name for file in files}:
        (out / name).unlink(missing_ok=True)


def _check_free(out: Path) -> None:
    places.check_folder("out", out)
    names = (SAFETENSORS, TORCH, CONFIG, CARD)
    there = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    there = [name for name in there if not atomic.is_left_over(name, names)]
    others = [name for name in there if name not in names]
    if others or (there and not _is_ours(out / CONFIG)):
        wanted = "a new folder, or that of an earlier export"
        shown = ", ".join((others or there)[:3])
        raise InputError(f"out must be {wanted}; {out} holds {printable(shown)}.")


def _is_ours(config: Path) -> bool:
    try:
        content = atomic.read_json(config)
    except InputError:
        return False
    return content is not None and content.get("library_name") == LIBRARY
