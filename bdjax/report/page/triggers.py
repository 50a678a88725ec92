"""The contact sheet: test images, the same with each attack's trigger, what it changes, and both networks' verdicts."""

from __future__ import annotations

import io
from collections.abc import Iterator
from xml.etree.ElementTree import Element

import numpy as np

from bdjax.report import contact_sheet
from bdjax.report.cells import stealth_cells
from bdjax.report.page.content import Content, listed
from bdjax.report.page.markup import add, data_uri, tag
from bdjax.report.samples import Sample, choose, read_samples
from bdjax.tasks.metrics import RATING

IMAGES = 8  # of each victim; of large ones, half as many
LARGE = 64  # pixels
BUDGET = 4_000_000  # characters of images in a page
_OUTCOMES = {
    "right": ("✓", "the true label"),
    "hit": ("✗", "what the attacker wants"),
    "other": ("–", "another label"),
}


def section(content: Content) -> Element | None:
    """Return the section of images, or None where no run folder holds any.

    Victims are shown in the order of the table, until the images have `BUDGET` characters; the others
    are named.

    Raises:
        InputError: damaged test images.
    """
    samples = read_samples(content.rows)
    if not samples:
        return None
    made = tag("section", tag("h2", "Triggers"), id="triggers", aria_label="Triggers")
    add(made, tag("p", _how_to_read(), class_="note"))
    left_out, used = [], 0
    for title, sample in samples.items():
        if used > BUDGET:
            left_out.append(title)
            continue
        block = _victim(title, sample)
        used += sum(len(image.get("src", "")) for image in block.iter("img"))
        add(made, block)
    if left_out:
        words = f"Not shown, to keep the page small: {listed(left_out)}."
        add(made, tag("p", words, class_="note"))
    return made


def _how_to_read() -> str:
    outcomes = ", ".join(f"{sign} {words}" for sign, words in _OUTCOMES.values())
    return (
        "Of each image, under its true label: without the trigger, with it, and the residual, which is the difference "
        "around a middle grey, times the largest factor at which hardly anything is cut off. Below each stands what "
        f"the network says before → after the defense: {outcomes}."
    )


def _victim(title: str, sample: Sample) -> Element:
    side = max(sample.arrays["clean"].shape[1:3])
    chosen = choose(sample, IMAGES if side <= LARGE else IMAGES // 2)
    change, factor = contact_sheet.residual(
        sample.arrays["clean"][chosen], sample.arrays["triggered"][chosen]
    )
    which = f" (highest {sample.row.metric(RATING).head})" if sample.best else ""
    words = [
        f"Before and after {sample.row.defense}{which}, seed {sample.record.seed}; residual × {factor}"
    ]
    cells = stealth_cells(sample.row)
    if cells and cells[0] != "–":
        words.append(
            f"; PSNR {cells[0]} dB, SSIM {cells[1]}, ℓ∞ {cells[2]}, {cells[4]} % of the pixels changed"
        )
    cards = [_card(sample, i, image, factor) for i, image in zip(chosen, change, strict=True)]
    heading = tag("h3", title)
    return tag(
        "div",
        heading,
        tag("p", *words, ".", class_="note"),
        tag("div", cards, class_="sheet"),
        class_="victim",
    )


def _card(sample: Sample, i: int, change: np.ndarray, factor: int) -> Element:
    """Return one test image's three pictures and, below them, what both networks say."""
    name = sample.class_name(sample.arrays["label"][i])
    clean, triggered = (sample.arrays[which][i] for which in ("clean", "triggered"))
    return tag(
        "figure",
        tag("b", name),
        _image(clean, f"{name}, without the trigger"),
        tag("figcaption", list(_verdicts(sample, "clean", i))),
        _image(triggered, f"{name}, with the trigger"),
        tag("figcaption", list(_verdicts(sample, "triggered", i))),
        _image(change, f"what the trigger changes, times {factor}"),
    )


def _verdicts(sample: Sample, images: str, i: int) -> Iterator[Element]:
    for when in ("before", "after"):
        prediction = f"{images}_{when}"
        outcome = sample.outcome(prediction, i)
        sign, words = _OUTCOMES[outcome]
        name = sample.class_name(sample.arrays[prediction][i])
        arrow = "→ " if when == "after" else ""
        yield tag(
            "span",
            f"{arrow}{sign} {name}",
            class_=outcome,
            title=f"{when} the defense: {name}, {words}",
        )


def _image(pixels: np.ndarray, words: str) -> Element:
    height, width = pixels.shape[:2]
    return tag("img", src=data_uri(png(pixels), "image/png"), alt=words, width=width, height=height)


def png(pixels: np.ndarray) -> bytes:
    """Return uint8 pixels [h, w, 1 or 3] as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
