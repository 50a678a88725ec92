"""A network as files for others: safetensors with a config, and PyTorch's format in the names that it came in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bdjax import __version__
from bdjax.files import atomic
from bdjax.files.atomic import Plain
from bdjax.files.printable import printable
from bdjax.models.foreign import keys, writing
from bdjax.models.foreign.reading import StateDict
from bdjax.runs.purified import CONFIG, LIBRARY, SAFETENSORS, TORCH
from bdjax.types import Model, Variables

FORMATS = ("safetensors", "torch", "backdoorbench")
_BACKDOORBENCH = "BackdoorBench"
_THEIR_NAMES = {"preact_resnet18": "preactresnet18"}  # the others are called as torchvision's
_MODEL = "model"  # the entry that BackdoorBench, among others, has the weights in


def config(name: str, options: Mapping[str, Any], model: Model, **more: Any) -> Plain:
    """Return what ``config.json`` says of a network: all that is needed to give it images.

    Args:
      name, options: of the network, as `bdjax.models.create` takes them.
      model: it.
      more: further plain values.
    """
    spec = model.spec
    modality: Any = spec.modality
    return {
        "library_name": LIBRARY,
        "bdjax_version": __version__,
        "network": name,
        "options": dict(options),
        "num_classes": spec.num_classes,
        # Of folders, whose names need not be text
        "class_names": list(map(printable, spec.class_names)),
        "image_shape": list(spec.shape),
        "mean": list(modality.mean),
        "std": list(modality.std),
        **more,
    }


def write_safetensors(
    weights: Path, described: Path, model: Model, variables: Variables, content: Plain
) -> None:
    """Write the weights, in torchvision's names, and beside them their config.

    Args:
      weights, described: the files.
      model, variables: the network.
      content: of `config`.
    """
    arrays = keys.state_dict(model, variables)
    _write_config(described, content)
    writing.write_safetensors(weights, arrays, {"format": "pt", "network": content["network"]})


def write(
    folder: Path, form: str, model: Model, variables: Variables, content: Plain
) -> list[Path]:
    """Write a network of bdjax's own into a folder, with its config, and return the files.

    The config is written first, so that a folder whose writing was killed says whose it is.

    Args:
      folder: it is there.
      form: of `FORMATS`; BackdoorBench's has what its loader looks for beside the weights.
      model, variables: the network.
      content: of `config`.
    """
    described = folder / CONFIG
    if form == "safetensors":
        weights = folder / SAFETENSORS
        write_safetensors(weights, described, model, variables, content)
        return [weights, described]
    weights = folder / TORCH
    _write_config(described, content)
    arrays = keys.state_dict(model, variables)
    if form == "torch":
        writing.write_torch(weights, arrays)
    else:
        network: str = content["network"]
        name = _THEIR_NAMES.get(network, network)
        size = content["image_shape"]
        writing.write_backdoorbench(weights, arrays, name, content["num_classes"], img_size=size)
    return [weights, described]


def write_torch(file: Path, model: Model, variables: Variables, state: StateDict) -> str:
    """Write a network as the file has it that it came in: its names, its order and, as far as others read it, its form.

    Returns the entry of the file's dictionary in which the weights are, empty where they are all of it.

    Args:
      file: to be written.
      model, variables: the network.
      state: what came in.
    """
    arrays = keys.as_in_file(state, model, variables)
    if state.format.startswith(_BACKDOORBENCH):
        beside = {name: state.beside[name] for name in state.beside if name != _MODEL}
        writing.write_torch(file, arrays, _plain(beside))
        return _MODEL
    if state.wrappers and state.wrappers[0] == _MODEL:
        writing.write_torch(file, arrays, {})
        return _MODEL
    writing.write_torch(file, arrays)
    return ""


def _plain(beside: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in beside.items()
    }


def _write_config(file: Path, content: Plain) -> None:
    atomic.write_text(file, json.dumps(content, indent=1) + "\n")
