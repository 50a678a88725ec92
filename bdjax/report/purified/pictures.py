"""The triggers that inversion found, as pictures: the pattern where the mask is, on gray."""

from __future__ import annotations

from bdjax.files import atomic
from bdjax.files.printable import printable
from bdjax.report.page.triggers import png
from bdjax.report.purified.words import Record
from bdjax.runs.purified import INVERSION, PurifiedFolder

_GRAY = 128


def of(record: Record, folder: PurifiedFolder) -> dict[str, bytes]:
    """Return PNG files by caption, for the classes whose triggers were smallest; none where they were not looked for.

    Raises:
      InputError: the file with them is damaged.
    """
    searched = record["inversion"]
    arrays = None if searched is None else atomic.read_arrays(folder.file(INVERSION))
    if searched is None or arrays is None:
        return {}
    names = record["network"]["class_names"]
    found: dict[str, bytes] = {}
    for place, number in enumerate(arrays["classes"].tolist()):
        name = printable(names[number], 40) if number < len(names) else str(number)
        for when in ("before", "after"):
            mask = arrays[f"mask_{when}"][place][..., None] / 255
            pattern = arrays[f"pattern_{when}"][place]
            shown = mask * pattern + (1 - mask) * _GRAY
            one = searched[when]
            size = f"{one['norm'][number]:.1f} pixels" if one["found"][number] else "none found"
            caption = f"{name}, {when}: {size}"
            found[caption] = png(shown.round().astype("uint8"))
    return found
