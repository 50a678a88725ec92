"""What the numbers mean, what the runs share and where they differ, and how to repeat one."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from xml.etree.ElementTree import Element

from bdjax.report.labels import flatten, plain
from bdjax.report.page.content import PERCENT, Content, listed, mapping, percent
from bdjax.report.page.markup import add, tag
from bdjax.report.records import Record
from bdjax.report.standing import target_classes
from bdjax.runs.folder import CONFIG
from bdjax.runs.soundness import LOW_ATTACK_SUCCESS
from bdjax.tasks.metrics import Metric

_HASH = 16  # hexadecimal digits of a fingerprint that are printed


def section(content: Content) -> Element:
    """Return the section of definitions, settings and circumstances."""
    made = tag("section", tag("h2", "Protocol"), id="protocol", aria_label="Protocol")
    add(made, _definitions(content), _statistics(content), tag("h3", "How to repeat a run"))
    add(made, tag("p", _how_to_repeat(content)), tag("pre", _command(content), tabindex=0))
    add(made, _settings(content), _environments(content), _data(content))
    licenses = (
        "bdjax is free software under the Apache license 2.0. Test images belong to their data set, and its terms hold "
        "for those that are shown here."
    )
    return add(made, tag("p", licenses, class_="note"))


def _definitions(content: Content) -> list[Element]:
    meanings = {
        metric.head: f"{metric.words}: {_defined(content, metric)}" for metric in content.metrics
    }
    meanings["seconds"] = "time of the defense's run; compiling is counted apart, in each run."
    meanings["gradients"] = "gradients of a batch's loss that the defense computes."
    terms = [(tag("dt", term), tag("dd", words)) for term, words in meanings.items()]
    return [tag("h3", "Measures"), tag("dl", terms)]


def _defined(content: Content, metric: Metric) -> str:
    """Return how a metric is found, with what its definition leaves open (`bdjax.tasks.metrics.Metric`)."""
    targets = target_classes(content.rows)
    known = {
        "total": _totals(total for row in content.rows for total in row.totals(metric.total)),
        "targets": f" ({targets})" if targets else "",
        "utility_head": content.utility.head,
        "utility": content.utility.brief,
        "attack_head": content.attack.head,
    }
    words = metric.definition
    for name, value in known.items():
        words = words.replace(f"{{{name}}}", value)
    return words


def _totals(numbers: Iterable[int]) -> str:
    return " or ".join(f"{number:,}" for number in sorted(set(numbers)))


def _statistics(content: Content) -> list[Element]:
    utility, attack = content.utility, content.attack
    succeeds = f"{attack.brief[:1].upper()}{attack.brief[1:]}"
    words = (
        "A row sums up the runs whose config differs in nothing but the seed. Each seed draws its own trigger, "
        "poisoned images, initial weights, order of the batches and clean images of the defender, so that it is one "
        "victim with its defense. ± is the sample standard deviation (n − 1); a single run has none. Marks compare "
        f"means, and do not say that a difference is significant. {succeeds} tends to be either high or low, so the "
        f"table also counts the runs below {percent(LOW_ATTACK_SUCCESS)}. No defense sees the test images. "
        f"A victim is at chance whose {utility.brief} is not above a guess, and an attack did not take whose success "
        f"rate is not above {percent(LOW_ATTACK_SUCCESS)}, or a guess where that is more (one-sided, at the level of "
        f"5{PERCENT}): there is no backdoor to remove, and no defense is the best."
    )
    return [tag("h3", "Statistics"), tag("p", words)]


def _with_config(content: Content) -> Record | None:
    """Return a run whose folder has its config, as those of a bundle of records have none."""
    for record in content.records:
        if record.line is None and record.file.is_file():
            return record
    return None


def _how_to_repeat(content: Content) -> str:
    if _with_config(content):
        what = "Each run folder has the resolved config beside its record."
        return f"{what} From the folder of this page, this repeats one:"
    return "Below each row of the table stands the resolved config of its runs. Saved as a file, this repeats one:"


def _command(content: Content) -> str:
    if record := _with_config(content):
        config = os.path.join(os.path.dirname(content.path(record)), CONFIG)
        return f"bdjax run --config {shlex.quote(config)} --out elsewhere"
    return f"bdjax run --config config.yaml --seed {content.records[0].seed} --out elsewhere"


# --- Settings --------------------------------------------------------------------------------------------------------


def _settings(content: Content) -> list[Element]:
    """Return what all runs share, and the values of what differs between them."""
    configs = [row.records[0].settings for row in content.rows]
    values: dict[str, dict[str, None]] = {key: {} for config in configs for key in config}
    for key, of in values.items():
        for config in configs:
            of[plain(config[key]) if key in config else "–"] = None
    shared = {key: next(iter(of)) for key, of in values.items() if len(of) == 1}
    varying = {key: listed(of) for key, of in values.items() if len(of) > 1}
    blocks = [_folded(f"Settings that all runs share ({len(shared)})", shared)]
    if varying:
        blocks.append(
            _folded(f"Settings that differ ({len(varying)}; – where a run has none)", varying)
        )
    return [tag("h3", "Settings"), *blocks]


def _folded(heading: str, settings: Mapping[str, str]) -> Element:
    lines = [
        tag("tr", tag("th", key, scope="row"), tag("td", value)) for key, value in settings.items()
    ]
    grid = tag("div", tag("table", tag("tbody", lines), class_="settings"), class_="scroll")
    return tag("details", tag("summary", heading), grid)


# --- Where and on what -----------------------------------------------------------------------------------------------


def _environments(content: Content) -> list[Element]:
    lines = []
    for text, number in content.environments.items():
        found = json.loads(text)
        versions, device = ", ".join(_pairs(found["versions"])), ", ".join(_pairs(found["device"]))
        lines.append(
            tag(
                "li",
                f"{versions or 'versions not known'}; device: {device or 'not known'}",
                value=number,
                id=f"environment-{number}",
            )
        )
    return [tag("h3", "Environments"), tag("ol", lines, class_="numbered")]


def _data(content: Content) -> list[Element]:
    lines = []
    for text, number in content.fingerprints.items():
        found = json.loads(text)
        known = flatten(mapping(found.pop("fingerprint", None)))
        hashes = [
            f"{name.removeprefix('files.')} {str(value)[:_HASH]}…" for name, value in known.items()
        ]
        of = (
            f"; SHA-256 of the images and labels, and of files: {', '.join(hashes)}"
            if hashes
            else ""
        )
        lines.append(tag("li", ", ".join(_pairs(found)), of, value=number, id=f"data-{number}"))
    return [tag("h3", "Data"), tag("ol", lines, class_="numbered")]


def _pairs(found: Any) -> Iterator[str]:
    for key, value in mapping(found).items():
        if value not in ("", None):
            yield f"{key.replace('_', ' ')} {plain(value)}"
