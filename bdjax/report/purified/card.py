"""The card of a network, as the Hugging Face Hub shows it: what it is, what was done to it, and what nobody knows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from bdjax.files.printable import printable
from bdjax.report.purified import words
from bdjax.report.purified.words import Record

TAGS = ("jax", "flax", "image-classification", "backdoor", "security-research")


def front_matter(name: str, tags: tuple[str, ...], metrics: Mapping[str, float], data: str) -> str:
    """Return a card's front matter. What is text in it is quoted as JSON, which YAML reads, so that no name breaks it.

    The license is the owner's to say; none is claimed.
    """
    lines = ["library_name: bdjax", "pipeline_tag: image-classification", "tags:"]
    lines += [f"- {tag}" for tag in tags]
    if metrics:
        lines += ["metrics:", *[f"- {name}" for name in metrics]]
        lines += [
            "model-index:",
            "- name: " + json.dumps(name),
            "  results:",
            "  - task:",
            "      type: image-classification",
            "    dataset:",
            f"      name: {json.dumps(data)}",
            "      type: image-folder",
            "    metrics:",
        ]
        for name, value in metrics.items():
            lines += [f"    - type: {name}", f"      value: {value:.4f}", "      verified: false"]
    return "---\n" + "\n".join(lines) + "\n---\n"


def markdown(record: Record) -> str:
    """Return the card of a purified network."""
    after = words.share(record["accuracy"]["after"])
    data = printable(record["data"]["name"], 80)
    tags = (*TAGS, "purified")
    parts = [
        front_matter(_name(record), tags, {"accuracy": after.value}, data),
        f"# {_text(words.title(record))}\n",
        _text(_what(record)) + "\n",
        *[f"**Look at this:** {_text(line)}\n" for line in words.warnings(record)],
        "## What is known\n",
        as_list(words.known(record)),
        "## What is not\n",
        as_list(words.unknown(record)),
        "## Back into PyTorch\n",
        f"```python\n{words.into_pytorch(record)}```\n",
        "`model.safetensors` holds the same weights in torchvision's names; `config.json` says how the network is "
        "given images. `report.html` has all of this with tables.\n",
        "## How it was made\n",
        as_list(f"{head}: {said}" for head, said in words.made(record)),
    ]
    return "\n".join(parts)


def _name(record: Record) -> str:
    """Return a name for a list of models, of words that are bdjax's own."""
    return f"{record['network']['name']}, purified with {record['defense']['name']}"


def _what(record: Record) -> str:
    return (
        f"This network is {words.name(record)} (SHA-256 {record['suspect']['sha256']}) after the defense "
        f"{words.defense(record)} of bdjax, with {record['data']['given']} clean images. It may have had a backdoor, "
        f"and may have one still. {words.network(record)}."
    )


def as_list(lines: Iterable[str]) -> str:
    """Return lines as a list, whatever a name in one of them has."""
    return "".join(f"- {_text(line)}\n" for line in lines)


def _text(line: str) -> str:
    """Return a line that is text in Markdown, whatever a name in it has."""
    for mark in "\\`*_<>[]|":
        line = line.replace(mark, f"\\{mark}")
    return line
