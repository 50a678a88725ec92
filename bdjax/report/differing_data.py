"""What records were made of, told apart by content: the same name and config say nothing of changed files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

UNKNOWN = "unknown"  # in place of a digest that a record lacks, where others differ
_DIGITS, _ALL = 8, 64  # of a digest that are shown at least, and at most


class _Source(NamedTuple):
    """Something that has a digest: what a label calls it, and which records name the same."""

    key: str
    scope: str


def told_apart(contents: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return, for each record, the digests that others under the same name do not share, under keys like a config's.

    Data of one ``data`` section (their folder aside) are compared by the digests of their splits,
    ``data.train_sha256``, and files that options name by those of the files, such as ``attack.path_sha256``. A record
    without a digest is no difference: only where others differ is it told apart from them, as ``unknown``.
    """
    sources = [dict(_sources(content)) for content in contents]
    digests: dict[_Source, set[str]] = defaultdict(set)
    for own in sources:
        for source, digest in own.items():
            if digest is not None:
                digests[source].add(digest)
    shown = {source: _shortened(of) for source, of in digests.items() if len(of) > 1}
    return [
        {
            source.key: shown[source].get(digest, UNKNOWN)
            for source, digest in own.items()
            if source in shown
        }
        for own in sources
    ]


def _sources(content: Mapping[str, Any]) -> Iterator[tuple[_Source, Any]]:
    """Yield what a record was made of, with its digest or None."""
    config, fingerprint = content["config"], content["data"].get("fingerprint", {})
    data = {key: value for key, value in config["data"].items() if key != "data_dir"}
    for split in ("train", "test"):
        yield (
            _Source(f"data.{split}_sha256", json.dumps(data, sort_keys=True)),
            fingerprint.get(split),
        )
    files = fingerprint.get("files", {})
    for option, value in _texts(config):
        yield _Source(f"{option}_sha256", value), files.get(option)


def _texts(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the options that are texts, which may name files, under their full keys."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _texts(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield prefix + key, value


def _shortened(digests: set[str]) -> dict[str, str]:
    """Return the first digits of each digest, as many as tell all apart."""
    for digits in range(_DIGITS, _ALL, _DIGITS):
        shortened = {digest: digest[:digits] for digest in digests}
        if len(set(shortened.values())) == len(digests):
            return shortened
    return {digest: digest for digest in digests}
