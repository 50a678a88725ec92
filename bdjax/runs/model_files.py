"""A network as files for others: safetensors with a config, and PyTorch's format in the names that it came in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bdjax import __version__
from bdjax.files import atomic
from bdjax.files.atomic import Plain
from bdjax.models.foreign import keys, writing
from bdjax.models.foreign.reading import StateDict
from bdjax.types import Model, Variables

FORMATS = ("safetensors", "torch", "backdoorbench")
_PREFIX = re.compile(r"\w+\.")
_BACKDOORBENCH = "BackdoorBench"
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
        "library_name": "bdjax",
        "bdjax_version": __version__,
        "network": name,
        "options": dict(options),
        "num_classes": spec.num_classes,
        "class_names": list(spec.class_names),
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
    writing.write_safetensors(weights, arrays, {"format": "pt", "network": content["network"]})
    atomic.write_json(described, content)


def write_torch(file: Path, model: Model, variables: Variables, state: StateDict) -> str:
    """Write a network as the file has it that it came in: its names, its order and, as far as others read it, its form.

    Returns the entry of the file's dictionary in which the weights are, empty where they are all of it.

    Args:
      file: to be written.
      model, variables: the network.
      state: what came in.
    """
    arrays = as_in_file(model, variables, state)
    if state.format.startswith(_BACKDOORBENCH):
        beside = {name: state.beside[name] for name in state.beside if name != _MODEL}
        writing.write_torch(file, arrays, _plain(beside))
        return _MODEL
    if state.wrappers and state.wrappers[0] == _MODEL:
        writing.write_torch(file, arrays, {})
        return _MODEL
    writing.write_torch(file, arrays)
    return ""


def as_in_file(model: Model, variables: Variables, state: StateDict) -> dict[str, np.ndarray]:
    """Return a network's arrays under the names that a file has for them, prefixes included, in its order.

    What the file has and the network does not compute with, such as PyTorch's counters, stays as it is. A prefix is left
    off where the weights of a normalization stood beside the network, as it is then a part of something else.
    """
    made = keys.state_dict(model, variables)
    names = {old: name for name, old in keys.matching(state.arrays, model).names.items()}
    prefix = ""
    if "mean" not in state.beside:
        prefix = "".join(word for word in state.wrappers if _PREFIX.fullmatch(word))
    found: dict[str, np.ndarray] = {}
    for old, array in state.arrays.items():
        kept = made[names[old]].reshape(array.shape) if old in names else _writable(array)
        found[prefix + old] = kept
    return found


def _writable(array: np.ndarray) -> np.ndarray:
    """Return an array that the network does not compute with, in a type that is written."""
    return array.astype(np.int64 if array.dtype.kind in "iub" else np.float32)


def _plain(beside: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in beside.items()}
