"""What is known of a purified network, and what is not, in sentences: for the terminal, the page and the card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

from bdjax.files.printable import printable
from bdjax.report.statistics import Interval, wilson

Record: TypeAlias = Mapping[str, Any]
_LONGEST = 80  # characters of a name that somebody else gave
_WORST = 0.05  # of the accuracy, whose loss is told as a warning
_HALF = 0.5  # right answers, below which the images may be given in another way than in training
_LAYERS = 3  # that moved most


class Share(NamedTuple):
    """Right answers of so many, with the 95 % interval of their share."""

    right: int
    of: int
    interval: Interval

    @property
    def value(self) -> float:
        """The share."""
        return self.right / self.of

    def __str__(self) -> str:
        """Return the share and its interval."""
        low, high = self.interval
        return f"{percent(self.value)} ({100 * low:.1f}–{100 * high:.1f} %)"


def share(counted: Mapping[str, int]) -> Share:
    """Return what a record has of right answers."""
    return Share(counted["right"], counted["of"], wilson(counted["right"], counted["of"]))


def title(record: Record) -> str:
    """Return what the page and the card are of."""
    return f"{name(record)}, purified with {defense(record)}"


def name(record: Record) -> str:
    """Return the name of the file that came in."""
    return printable(record["suspect"]["name"], _LONGEST)


def defense(record: Record) -> str:
    """Return the defense, with the strength that was chosen for it."""
    chosen = record["selection"]
    if chosen is None:
        return record["defense"]["name"]
    return f"{record['defense']['name']} ({chosen['option']} = {chosen['chosen']:g})"


def network(record: Record) -> str:
    """Return which network it is, in a line."""
    found = record["network"]
    height, width, channels = found["shape"]
    form = f"{found['num_classes']} classes, images {height}×{width}×{channels}"
    return f"{found['name']}, {found['parameters']:,} parameters, {form}"


def known(record: Record) -> list[str]:
    """Return what was measured."""
    return [
        _accuracy(record),
        *_strength(record),
        _weights(record),
        *_inversion(record),
    ]


def unknown(record: Record) -> list[str]:
    """Return what nobody can tell from this."""
    said = [
        "Whether there was a backdoor. A network that behaves well on clean images is what an attacker delivers, too.",
        "Whether a backdoor is gone. Nobody here knows the attacker's trigger, so that no attack success rate can be "
        "given, neither before nor after.",
    ]
    if record["inversion"] is None:
        said.append("What trigger inversion would find: it was left out.")
    else:
        said.append(record["inversion"]["limits"])
    kept = record["data"]["kept"]
    said.append(f"How it does on images unlike the {kept} that were kept aside.")
    # Records of earlier versions do not say it
    if record["data"].get("of_training"):
        said.append(
            f"How it does on new images. Those of {printable(record['data']['name'], _LONGEST)} are of its training "
            "split, which the network may have been trained on: both accuracies may be too high."
        )
    return said


def warnings(record: Record) -> list[str]:
    """Return what somebody should look at before the network is used."""
    said = []
    before, after = (share(record["accuracy"][when]) for when in ("before", "after"))
    if before.value - after.value > _WORST + 1e-9:
        lost = 100 * (before.value - after.value)
        remedy = "give a lower strength or learning rate, fewer epochs, or more images"
        chance = ""
        if after.interval[1] >= before.interval[0]:
            chance = " (the 95 % intervals overlap, so it may be less, or nothing)"
        said.append(
            f"The network lost {lost:.1f} points of accuracy on the {before.of} images kept aside{chance}: {remedy}."
        )
    if before.value < _HALF:
        order = ", ".join(printable(name, _LONGEST) for name in record["network"]["class_names"])
        said.append(
            f"The network that came in was right on no more than {before.right} of {before.of} images. Is it no better "
            "than that? If it is, it was given them otherwise than in its training: with another normalization, or "
            f"with classes in another order than {printable(order, 300)} (--class-order)."
        )
    chosen = record["selection"]
    if chosen is not None and not chosen["within_budget"]:
        said.append(
            f"Even the weakest {chosen['option']} that was tried costs more than "
            f"{100 * chosen['budget']:g} points of accuracy; it was taken all the same."
        )
    return said


def percent(value: float) -> str:
    """Write a share as a percentage with one digit."""
    return f"{100 * value:.1f} %"


def most_moved(record: Record) -> list[Mapping[str, Any]]:
    """Return the layers by how far they moved, the farthest first."""
    return sorted(record["weights"]["layers"], key=lambda layer: -layer["relative"])


def _accuracy(record: Record) -> str:
    before, after = (share(record["accuracy"][when]) for when in ("before", "after"))
    changed = record["accuracy"]["changed_answers"]
    return (
        f"Clean accuracy {before} before and {after} after: {before.right} and {after.right} of {before.of} images "
        f"that the defense was not given, with 95 % Wilson intervals. {changed} of these answers changed."
    )


def _strength(record: Record) -> list[str]:
    chosen = record["selection"]
    if chosen is None:
        return []
    tried = ", ".join(_trial(trial) for trial in chosen["trials"])
    of = chosen["trials"][0]["of"]
    before = percent(chosen["right_before"] / of)
    values = ", ".join(f"{value:g}" for value in chosen["values"])
    return [
        f"Strength {chosen['option']} = {chosen['chosen']:g}: of {values}, from the strongest down, the first that "
        f"cost at most {100 * chosen['budget']:g} points on {of} further images, of which each "
        f"is {100 / of:.1f} points ({before} before; tried: {tried})."
    ]


def _trial(trial: Mapping[str, Any]) -> str:
    if trial["right"] is None:
        return f"{trial['value']:g} diverged"
    return f"{trial['value']:g} → {percent(trial['right'] / trial['of'])}"


def _weights(record: Record) -> str:
    layers = [
        f"{printable(layer['name'], _LONGEST)} {percent(layer['relative'])}"
        for layer in most_moved(record)[:_LAYERS]
    ]
    whole = percent(record["weights"]["whole"])
    return f"The weights moved by {whole} of their length (L2), most in {', '.join(layers)}."


def _inversion(record: Record) -> list[str]:
    found = record["inversion"]
    if found is None:
        return []
    said = [
        f"Trigger inversion {when} the defense: {sentence}"
        for when in ("before", "after")
        for sentence in found["words"][when]
    ]
    # Records of earlier versions have none
    carried = [_carried(record, one) for one in found.get("carried", [])]
    if carried:
        said.append(f"The patches found before, put on images again: {'; '.join(carried)}.")
    return said


def _carried(record: Record, one: Mapping[str, Any]) -> str:
    """Say how often a patch that was found in the network that came in works in the purified one."""
    names = record["network"]["class_names"]
    name = names[one["class"]] if one["class"] < len(names) else str(one["class"])
    before, after = (percent(one[when] / one["of"]) for when in ("before", "after"))
    what = f"that of class '{printable(name, _LONGEST)}' sends {before} of {one['of']} there before"
    return f"{what} and {after} after the defense"


def into_pytorch(record: Record) -> str:
    """Return the lines with which the weights get back into the network that they came from."""
    entry, prefix = (record["files"][key] for key in ("entry", "prefix"))
    loaded = 'torch.load("model.pt", weights_only=True)' + (f'["{entry}"]' if entry else "")
    lines = ["import torch", f"state = {loaded}"]
    if prefix:  # of names that stood before the network's own
        without = f'name.removeprefix("{prefix}"): array for name, array in state.items()'
        without += f' if name.startswith("{prefix}")'  # a counter of averaging has none
        lines.append(f"state = {{{without}}}  # as in the file that came in")
    lines.append("model.load_state_dict(state)  # model: your own network, made as before")
    mean, std = (
        ", ".join(f"{value:.4g}" for value in record["normalization"][key])
        for key in ("mean", "std")
    )
    lines += ["model.eval()", f"# images in [0, 1], minus ({mean}), divided by ({std})"]
    return "\n".join([*lines, ""])


def made(record: Record) -> list[tuple[str, str]]:
    """Return how the network was made, as heads and what stands under them."""
    suspect, data, how = record["suspect"], record["data"], record["normalization"]
    numbers = (" ".join(f"{value:.4g}" for value in how[key]) for key in ("mean", "std"))
    chosen = record["selection"]
    values = record["defense"] if chosen is None else _with_choice(record["defense"], chosen)
    options = ", ".join(f"{key} {value}" for key, value in _flat(values).items())
    seconds = ", ".join(f"{key} {value:.1f} s" for key, value in record["seconds"].items())
    versions = ", ".join(f"{key} {value}" for key, value in record["versions"].items())
    parts = f"{data['given']} for the defense, {data['choosing']} to choose its strength"
    notes = [*suspect["notes"], *data["notes"]]
    said = [
        ("file", f"{name(record)}, {printable(suspect['format'], _LONGEST)}"),
        ("SHA-256", suspect["sha256"]),
        ("taken off", ", ".join(printable(word, _LONGEST) for word in suspect["wrappers"])),
        ("network", f"{network(record)}; {printable(record['network']['why'], 300)}"),
        ("classes", printable(", ".join(record["network"]["class_names"]), 1000)),
        ("normalization", "mean {}, std {}; {}".format(*numbers, printable(how["why"], _LONGEST))),
        (
            "images",
            f"{printable(data['name'], _LONGEST)}: {data['count']}, of which {parts}, {data['kept']} aside",
        ),
        ("SHA-256 of the images", data["fingerprint"]),
        ("defense", options),
        ("seed", str(record["identity"]["seed"])),
        ("time", seconds),
        ("versions", versions),
        ("notes", "; ".join(printable(note, 300) for note in notes)),
    ]
    return [(head, words) for head, words in said if words]


def _with_choice(values: Record, chosen: Mapping[str, Any]) -> Record:
    """Return the options of a defense with the strength that was chosen in the place of ``auto``."""
    section, dot, name = chosen["option"].partition(".")
    if not dot:
        return {**values, section: chosen["chosen"]}
    return {**values, section: _with_choice(values[section], {**chosen, "option": name})}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found.update(_flat(value, f"{prefix}{key}."))
        elif value is not None:
            found[prefix + key] = value
    return found
