"""What clean-label attacks share: they poison images of the target class alone, and how many is said in two ways."""

from __future__ import annotations

from bdjax.attacks import _label_maps
from bdjax.checks import unit_interval
from bdjax.types import Attack, LabelMap, Trigger


def clean_label(
    trigger: Trigger,
    label_map: LabelMap,
    poison_rate: float | None,
    target_class_rate: float,
    test_trigger: Trigger | None = None,
    surrogate: str = "none",
) -> Attack:
    """Return a clean-label attack that poisons r·N images of a split, or a share of those of the target class.

    Args:
      trigger: what the poisoned images show.
      label_map: of which the target class is what it leaves alone.
      poison_rate: r, share of the whole training split, in [0, 1]; all of the target class if that has fewer. If it
        is given, ``target_class_rate`` counts for nothing.
      target_class_rate: share of the target class's images, in [0, 1].
      test_trigger, surrogate: as in `bdjax.types.Attack`.

    Raises:
      InputError: a rate out of range, or a label map under which no image keeps its label.
    """
    _label_maps.check_clean_label(label_map)
    unit_interval(target_class_rate=target_class_rate)
    if poison_rate is not None:
        unit_interval(poison_rate=poison_rate)
    if poison_rate is None:
        rate, rate_of = target_class_rate, "candidates"
    else:
        rate, rate_of = poison_rate, "all"
    return Attack(
        trigger,
        label_map,
        rate,
        clean_label=True,
        test_trigger=test_trigger,
        rate_of=rate_of,
        surrogate=surrogate,
    )
