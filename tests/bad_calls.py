"""Calls of the command line that somebody might get wrong, made at random from a seed: words, and the files they name.

Most must be refused; some come out right, as a generator that only makes mistakes would have to know all the rules.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from bdjax import registry
from bdjax.runs import config as configs
from bdjax.runs import schema

CONFIG = "config.yaml"  # where the file of a call is to be written
NETWORK, IMAGES = "network.safetensors", "images.npz"  # that fit each other
COMMANDS = [
    *(
        "run",
        "sweep",
        "show",
        "poison",
        "report",
        "compare",
        "analyze",
        "smoothness",
        "export",
        "bench",
        "demo",
    ),
    *("list", "inspect", "purify"),
]
_WEIGHTS = (30, 16, 8, 8, 6, 6, 7, 5, 5, 6, 4, 3, 3, 14)


class Call(NamedTuple):
    """Words of a command line, and the content of the config that they name, if they name one."""

    words: tuple[str, ...]
    file: bytes | None = None


NUMBERS = [
    *(
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775809",
        "1e308",
        "1e400",
        "1" + "0" * 400,
    ),
    *(
        "nan",
        "-nan",
        "inf",
        "-inf",
        "-0",
        "-0.0",
        "-1",
        "-1e-9",
        "1e-400",
        "0x10",
        "1_000_000_000_000",
        "\uff11\uff12",
    ),
    *(
        "\u0663",
        "5 0",
        "1,5",
        "+-5",
        "5e",
        "true",
        "null",
        "[]",
        "{}",
        "~",
        "--5",
        "1" * 5000,
        "0" * 3001,
        "1e-320",
    ),
]
WORDS = [
    *(
        "",
        " ",
        "\0",
        "a\0b",
        "\x1b[2J",
        "\udcff",
        "\ud800",
        "\u202e",
        "\x9b1m",
        "a\nb",
        "\t",
        "\r",
        "x" * 5000,
    ),
    *("é" * 3000, "a/" * 3000, ".", "/dev/null", "/dev/zero", "/dev/null/x", "/proc/self/mem"),
    *(
        "file.txt",
        "file.txt/below",
        "folder",
        "no/such",
        "loop",
        "loop/x",
        "~nobody",
        "$HOME",
        "*",
        "%s%n",
        "{0}",
    ),
    *(
        "!!python/object:os.system",
        "__init__",
        "_cache",
        "os",
        "auto",
        "paper",
        "none",
        "-",
        "=",
        "a=b",
        "\ufeff",
    ),
    *(
        "runs/../runs/../folder",
        "~",
        "digits/",
        "./digits",
        "digits/../digits",
        "file:///etc/passwd",
        "C:\\x",
    ),
]
OUTSIDE = ["..", "../..", "/", "//"]  # for what is read alone
PATHS = [word for word in WORDS if word not in ("none", "auto", "paper")] + [
    "x.html",
    "x.jsonl",
    "x.png",
    "no/x.html",
]
METHODS = {"model": "bdjax.models", "attack": "bdjax.attacks", "defense": "bdjax.defenses"}
NAMES = {section: registry.names(package) for section, package in METHODS.items()}
LEAVES = sorted(schema.flatten(configs.resolve({}).to_dict()))
FOREIGN = sorted(  # the options of all methods
    f"{section}.{option}"
    for section, package in METHODS.items()
    for name in NAMES[section]
    for option in schema.parameters(package, name)
)
EXECUTION = {
    "--devices": NUMBERS,
    "--checkpoint-seconds": NUMBERS,
    "--changed-data": WORDS,
    "--prepare": WORDS,
    "--unroll": NUMBERS,
    "--out": PATHS,
}
OPTIONS: dict[str, dict[str, list[str]]] = {
    "run": {
        **EXECUTION,
        "--smoothness-every": NUMBERS,
        "--data-on": WORDS,
        "--config": PATHS,
        "--profile": PATHS,
    },
    "sweep": {
        **EXECUTION,
        "--seeds": [*NUMBERS, "1000000"],
        "--form": [*WORDS, "map:0", "map:-1", "map:x", "map:", "map:" + "9" * 40],
        "--at-once": NUMBERS,
        "--batch-devices": NUMBERS,
        "--jobs": NUMBERS,
        "--cluster": WORDS,
        "--config": PATHS,
    },
    "show": {**EXECUTION, "--file": PATHS, "--config": PATHS},
    "poison": {**EXECUTION, "--runs": PATHS, "--config": PATHS},
    "report": {"--format": WORDS, "--figures": PATHS, "--html": PATHS},
    "compare": {"--format": WORDS, "--metric": WORDS},
    "analyze": {
        "--figures": PATHS,
        "--format": WORDS,
        "--data-dir": PATHS,
        "--bins": NUMBERS,
        "--images": NUMBERS,
    },
    "smoothness": {
        **dict.fromkeys(("--images", "--draws", "--chunk"), NUMBERS),
        "--variant": WORDS,
        "--data-dir": PATHS,
    },
    "export": {"--out": PATHS},
    "bench": {
        **dict.fromkeys(
            ("--width", "--batch", "--image-size", "--points", "--devices", "--steps"), NUMBERS
        ),
        **dict.fromkeys(("--rounds", "--minutes"), NUMBERS),
        **dict.fromkeys(("--model", "--dtype", "--only", "--matmul-precision"), WORDS),
        **dict.fromkeys(("--out", "--profile"), PATHS),
    },
    "demo": {**EXECUTION, "--dataset": WORDS, "--seeds": NUMBERS, "--data-dir": PATHS},
    "list": {},
    "inspect": {"--part": WORDS},
    "purify": {
        **dict.fromkeys(("--data", "--data-dir", "--out"), PATHS),
        **dict.fromkeys(("--mean", "--std", "--image-size", "--seed", "--aside"), NUMBERS),
        **dict.fromkeys(("--class-order", "--part", "--defense", "--model"), WORDS),
        **dict.fromkeys(("--checkpoint-seconds", "--defense.rho", "--defense.epochs"), NUMBERS),
        **dict.fromkeys(("--selection.budget", "--attack.alpha", "--defense.x"), NUMBERS),
    },
}


def call(seed: int) -> Call:
    """Return the call of a seed."""
    rng = random.Random(seed)
    command = rng.choices(COMMANDS, _WEIGHTS)[0]
    takes_config = command in ("run", "sweep", "show", "poison")
    words = _start(rng, command)
    if takes_config and rng.random() < 0.5:
        return Call((*words, "--config", CONFIG), bad_file(rng))
    words += rng.choice(_MISTAKES if takes_config else _OTHER_MISTAKES)(rng, command)
    if rng.random() < 0.2:
        words += rng.choice(_OTHER_MISTAKES)(rng, command)
    return Call(tuple(words))


def _start(rng: random.Random, command: str) -> list[str]:
    """Return a call of a command that is right, or nearly."""
    runs = rng.choice(["runs", "runs", "runs/run000", "records.jsonl", *rng.sample(PATHS, 1)])
    name = rng.choice([*NAMES["attack"], *rng.sample(WORDS, 3)])
    return [
        command,
        *{
            "sweep": ["--over", "defense.rho=1,2"] if rng.random() < 0.5 else [],
            "show": [name, "--file", "shown.png"],
            "poison": [name, "--out", "poisoned"],
            "report": [runs],
            "compare": [
                runs,
                "--defenses",
                *rng.choices(["ft", "ft_sam", *rng.sample(WORDS, 2)], k=2),
            ],
            "analyze": [
                rng.choice([*registry.names("bdjax.analysis"), *rng.sample(WORDS, 2)]),
                runs,
                "--quiet",
            ],
            "smoothness": [runs, "--quiet"],
            "export": [runs],
            "list": [rng.choice(["attacks", "defenses", "", "models"]), rng.choice(WORDS)],
            "inspect": [rng.choice([NETWORK, *rng.sample(PATHS, 2)])],
            "purify": [
                rng.choice([NETWORK, NETWORK, *rng.sample(PATHS, 1)]),
                *("--data", rng.choice([IMAGES, IMAGES, *rng.sample(PATHS, 1)])),
                *rng.choice([["--mean", "none", "--anyway", "--quiet"], ["--quiet"]]),
            ],
        }.get(command, []),
    ]


# --- words -----------------------------------------------------------------------------------------------------------


def _value(rng: random.Random, command: str) -> list[str]:
    del command
    return [f"--{rng.choice(LEAVES)}={rng.choice(rng.choice([NUMBERS, WORDS]))}"]


def _two_words(rng: random.Random, command: str) -> list[str]:
    del command
    return [f"--{rng.choice(LEAVES)}", rng.choice(rng.choice([NUMBERS, WORDS]))]


def _foreign(rng: random.Random, command: str) -> list[str]:
    """Return the option of whatever method, with a value that might be one."""
    del command
    return [
        f"--{rng.choice(FOREIGN)}",
        rng.choice(["1", "0.5", "auto", "ft", "none", *rng.sample(NUMBERS, 2)]),
    ]


def _misspelled(rng: random.Random, command: str) -> list[str]:
    del command
    word = list(rng.choice([*LEAVES, *FOREIGN]))
    place = rng.randrange(len(word))
    word[place : place + rng.choice((0, 1))] = rng.choice("qz._-=\u0435A")
    return [f"--{''.join(word)}", "1"]


def _method(rng: random.Random, command: str) -> list[str]:
    del command
    section = rng.choice(list(METHODS))
    other = rng.choice([names for key, names in NAMES.items() if key != section])
    return [
        f"--{section}{rng.choice(['', '.name'])}",
        rng.choice([*rng.sample(WORDS, 2), rng.choice(other)]),
    ]


def _preset(rng: random.Random, command: str) -> list[str]:
    del command
    section = rng.choice(list(METHODS))
    return [
        f"--{section}",
        rng.choice(NAMES[section]),
        f"--{section}.preset",
        rng.choice([*WORDS, "papers", "bd"]),
    ]


def _auto(rng: random.Random, command: str) -> list[str]:
    del command
    return [f"--{rng.choice([*LEAVES, *FOREIGN])}", "auto"]


def _chain(rng: random.Random, command: str) -> list[str]:
    """Return chains within chains, of which an end is missing, is no defense, or has an option of another."""
    del command
    path, words = "defense", []
    for _ in range(rng.choice((0, 1, 2, 100, 1000))):
        words += [f"--{path}.name", "chain"]
        path += rng.choice((".first", ".second"))
    end = rng.choice(["ft", "chain", "none", "", "ft_sam", "fine_pruning"])
    return [*words, f"--{path}", end, *(["--" + path + ".rho", "-1"] if rng.random() < 0.7 else [])]


def _data(rng: random.Random, command: str) -> list[str]:
    del command
    words = ["--data", rng.choice([*PATHS, *OUTSIDE])]
    return (
        words if rng.random() < 0.5 else [*words, "--data.data_dir", rng.choice([*PATHS, *OUTSIDE])]
    )


def _nesting(rng: random.Random, command: str) -> list[str]:
    del command
    leaf = rng.choice([*LEAVES, "data", "attack", "training", "defense.rho"])
    section = leaf.partition(".")[0]
    odd = [
        f"--{leaf}.x",
        f"--{section}..name",
        f"--.{leaf}",
        "--.",
        "--",
        "--=",
        f"--{leaf}.",
        "--" + leaf * 50,
    ]
    twice = [f"--{leaf}", "1", f"--{leaf}.x", "1"]
    return twice if rng.random() < 0.2 else [rng.choice(odd), "1"]


def _option(rng: random.Random, command: str) -> list[str]:
    """Return an option of the command with a bad value, or without one, or the name of none."""
    known = OPTIONS[command] or {"--format": WORDS}
    option = rng.choice(list(known))
    value = rng.choice(known[option])
    forms = (
        [option, value],
        [f"{option}={value}"],
        [option],
        [option, value, option, value],
        [option[:-1], value],
    )
    return rng.choices(forms, (4, 4, 1, 1, 1))[0]


def _stray(rng: random.Random, command: str) -> list[str]:
    del command
    return [
        rng.choice(
            [*WORDS, "-x", "-1", "--x", "--quiet=1", "--show=maybe", "-", "@file.txt", "runs"]
        )
    ]


def _axis(rng: random.Random, command: str) -> list[str]:
    leaf = rng.choice([*LEAVES, *FOREIGN, "seed", "defense", ""])
    values = rng.choice(
        [
            *(
                "",
                ",",
                ",,,",
                "1,1",
                "1,1.0",
                "nan,1",
                "auto",
                "auto,1",
                "x",
                ",".join(rng.sample(NUMBERS, 3)),
            ),
            *(",".join(map(str, range(10**6))), "0," * 10**5, ",".join(rng.sample(WORDS, 3))),
        ]
    )
    words = ["--over", f"{leaf}={values}" if rng.random() < 0.9 else leaf]
    if rng.random() < 0.3:
        words += ["--over", rng.choice([words[1], "seed=1,2", "defense.rho", "=1"])]
    return words if command == "sweep" else _option(rng, command)


def _grid(rng: random.Random, command: str) -> list[str]:
    """Return axes whose product is beyond any sweep."""
    numbers = ",".join(str(number + 1) for number in range(1000))
    leaves = [
        "defense.rho",
        "training.learning_rate",
        "defense.learning_rate",
        "training.weight_decay",
    ]
    words = [
        word
        for leaf in rng.sample(leaves, rng.choice((2, 3, 4)))
        for word in ("--over", f"{leaf}={numbers}")
    ]
    return words if command == "sweep" else _option(rng, command)


Mistake = Callable[[random.Random, str], list[str]]
_OTHER_MISTAKES: list[Mistake] = [_option, _option, _option, _stray]
_MISTAKES: list[Mistake] = [
    *(
        _value,
        _two_words,
        _foreign,
        _misspelled,
        _method,
        _preset,
        _auto,
        _chain,
        _data,
        _nesting,
        _option,
        _stray,
    ),
    *(_axis, _grid),
]


# --- files -----------------------------------------------------------------------------------------------------------

GOOD = "seed: 1\nattack:\n  name: badnets\n  poison_rate: 0.1\ndefense:\n  name: ft_sam\n  rho: 2\nmodel: small_cnn\n"
SCALARS = [
    *(
        ".nan",
        "-.inf",
        "1e999",
        "-0.0",
        "1" + "0" * 400,
        "-1" + "0" * 5000,
        "0o77777777777777777777777",
        "0b2",
        "0xg",
    ),
    *(
        "9223372036854775808",
        "1:30:00",
        "2020-13-45",
        "2001-01-01",
        "2001-01-01 25:00:00",
        "~",
        "yes",
        "''",
        '" "',
    ),
    *(
        '"\\0"',
        '"\\ud800"',
        '"\\x1b[2J"',
        '"\\N"',
        '"\\U00110000"',
        '"\\q"',
        "'",
        '"',
        "[",
        "{",
        "]",
        "}",
        "- ",
        "? ",
    ),
    *(
        "[1, 2]",
        "{a: 1}",
        "[[[[]]]]",
        "!!float x",
        "!!int x",
        "!!int 0x",
        "!!bool maybe",
        "!!null x",
        "!!binary '*'",
    ),
    *(
        "!!binary aGk=",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!pairs [a: 1]",
        "!!timestamp x",
        "!!python/none x",
    ),
    *(
        "!!python/object/apply:os.system ['echo']",
        "!!python/name:os.system ''",
        "!!python/tuple [1]",
        "!own x",
        "! x",
    ),
    *(
        "&a 1",
        "*a",
        "&a [*a]",
        "|",
        ">",
        "|9\n x",
        "%x",
        "@x",
        "`x",
        "#",
        ": :",
        "- - -",
        "<<",
        "=",
        "x" * 4000,
    ),
]
DOCUMENTS = [
    *(
        "",
        "#",
        "1",
        "text",
        "null",
        "[]",
        "- seed: 1",
        "---\n---",
        "seed: 1\n---\nseed: 2",
        "%YAML 9.9\n---\nseed: 1",
    ),
    *(
        "%TAG ! tag:x,\n---\n!x seed: 1",
        "...",
        "? \n: 1",
        "1: 2",
        "null: 1",
        "~: ~",
        "true: 1",
        ".nan: 1",
        "=: 1",
    ),
    *(
        "2020-01-01: 1",
        "[1, 2]: 3",
        "{a: b}: c",
        "? [a]\n: 1",
        "<<: {seed: 1}",
        "<<: 1",
        "<<: [1]",
        "seed: 1\nseed: 2",
    ),
    *(
        "attack: {name: badnets, name: lf}",
        "a: &x {seed: 1}\nb: *x",
        "seed: &x 1",
        "&x seed: 1",
        "*x : 1",
        "\tseed: 1",
    ),
    *(
        "seed:\t1",
        "seed:\n\t- 1",
        " seed: 1\nmodel: x",
        "seed: 1\n  model: x",
        "seed : 1 : 2",
        "seed",
        "{seed: 1",
        "\0",
    ),
    *(
        "\x01: 1",
        "\x85seed: 1",
        "\ufffe: 1",
        "k" * 5000 + ": 1",
        "? |\n  " + "k" * 5000 + "\n: 1",
        "'': 1",
        "' ': 1",
    ),
    *(
        "attack: badnets\nattack.size: 3",
        "attack.size: 3",
        "Seed: 1",
        "data: {name: [digits]}",
        "defense: [ft, ft_sam]",
    ),
    *(
        "defense: {first: ft, second: ft}",
        "defense: {name: chain}",
        "defense: {name: chain, first: chain}",
    ),
    *(
        "defense: {name: ft, rho: 1}",
        "defense: {rho: auto, epochs: auto}",
        "holdout: {share: 0.1, per_class: 3}",
    ),
    *(
        "selection: {budget: 2}",
        "selection: {aside: 1}",
        "training: {schedule: {kind: x}}",
        "training: {schedule: 7}",
    ),
]
_BOMBS = ("[", "{", "{a: ", "[{", "- ", "? ", "!!x ", "&a ", "'", '"', "a:\n", "(", "*a", "<<: {")


def bad_file(rng: random.Random) -> bytes:
    """Return the content of a config that is probably none."""
    return rng.choices(_FILES, (4, 3, 2, 2, 2))[0](rng)


def _odd_value(rng: random.Random) -> bytes:
    text = rng.choice(SCALARS)
    for part in reversed(
        rng.choice([*LEAVES, *FOREIGN, "seed", "attack", "training", "data"]).split(".")
    ):
        text = (
            f"{{{part}: {text}}}"
            if rng.random() < 0.3
            else f"{part}: {text}"
            if "\n" not in text
            else text
        )
        text = text if rng.random() < 0.5 else "\n  ".join(["", *text.split("\n")])
    return text.strip("\n ").encode("utf-8", "surrogatepass")


def _document(rng: random.Random) -> bytes:
    return rng.choice(DOCUMENTS).encode()


def _bomb(rng: random.Random) -> bytes:
    """Return something that is nested, or repeated, without end."""
    count, what = (
        rng.choice((20, 500, 2000, 100_000)),
        rng.choice([*_BOMBS, "chain", "keys", "lines"]),
    )
    if what == "chain":
        return ("defense: " + "{name: chain, first: " * count + "ft" + "}" * count).encode()
    if what == "keys":
        return "".join(f"k{number}: 1\n" for number in range(count)).encode()
    if what == "lines":
        return "".join(" " * number + "a:\n" for number in range(min(count, 700))).encode()
    return (what * count + rng.choice(["", "1", "]" * count, "}" * count])).encode()


def _bytes(rng: random.Random) -> bytes:
    """Return a good file in bytes that are not those of UTF-8, or no text at all."""
    text = GOOD + "data: {name: größer}\n"
    odd = [text.encode("latin-1"), text.encode("utf-16"), text.encode("utf-32"), rng.randbytes(300)]
    return rng.choice(
        [
            *odd,
            b"\xef\xbb\xbf\xef\xbb\xbf" + GOOD.encode(),
            GOOD.encode() + b"\xed\xa0\x80",
            b"\0" * 99,
        ]
    )


def _mutated(rng: random.Random) -> bytes:
    """Return a good file of which some bytes were exchanged, left out or put in."""
    content = bytearray(GOOD.encode())
    for _ in range(rng.randint(3, 8)):
        place = rng.randrange(len(content))
        content[place : place + rng.choice((0, 1, 4))] = rng.choice(
            [b"", b"\t", b"\n", b":", b"x", rng.randbytes(1)]
        )
    return bytes(content)


_FILES: list[Callable[[random.Random], bytes]] = [_odd_value, _document, _bomb, _bytes, _mutated]
