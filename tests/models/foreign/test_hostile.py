"""Five hundred damaged and hostile files: each is refused in one line or read right, and nothing happens beside."""

from __future__ import annotations

import io
import json
import struct
import sys
import tracemalloc
import zipfile

import foreign_files as made
import jax
import numpy as np
import pytest

from bdjax import models
from bdjax.checks import InputError
from bdjax.models.foreign import _pickled, _stand_ins, _wrappers, keys, reading
from bdjax.models.foreign.reading import read
from bdjax.models.foreign.writing import write_safetensors, write_torch

HARM = (
    "posix.system",
    "nt.system",
    "os.system",
    "os.popen",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.exec",
    "__builtin__.getattr",
    "runpy._run_code",
    "importlib.import_module",
    "webbrowser.open",
    "shutil.rmtree",
    "pickle.loads",
    "torch.load",
    "torch.hub.load",
    "numpy.load",
    "bdjax.models.load",
    "some.where.Net",
)
WATCHED = ("os.", "subprocess.", "socket.", "pickle.", "shutil.")
FOREIGN = ("nt", "runpy", "some", "torch", "webbrowser")  # what only a hostile file would import
MOST_MEMORY = 16 * 2**20
STACK = 2000  # in place of what a file may have, which takes seconds to reach
_seen: list[str] = []
_watching = False


def watch(event, arguments):
    if not _watching:
        return
    if event == "open":
        harmful = arguments[1] not in (None, "r", "rb")
    elif event == "compile":  # checks of annotations compile, too
        harmful = "executed" in str(arguments[0])
    elif event == "import":
        harmful = arguments[0].partition(".")[0] in FOREIGN
    else:
        harmful = event.startswith(WATCHED)
    if harmful:
        _seen.append(f"{event} {arguments!r:.200}")


@pytest.fixture(autouse=True)
def small_stack(monkeypatch):
    monkeypatch.setattr("bdjax.models.foreign._pickled._MOST_ON_THE_STACK", STACK)


@pytest.fixture(scope="module")
def network(spec):
    model = models.create("small_cnn", spec, width=2)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32) + 0.5, shapes)
    return model, keys.state_dict(model, variables)


@pytest.fixture(scope="module")
def right(network, tmp_path_factory):
    """Return the same weights in each format."""
    folder = tmp_path_factory.mktemp("right")
    state = network[1]
    write_torch(folder / "zip", state)
    write_safetensors(folder / "safe", state)
    floats = {name: array for name, array in state.items() if array.dtype == np.float32}
    (folder / "legacy").write_bytes(made.legacy_of(floats))
    return [(folder / name).read_bytes() for name in ("zip", "safe", "legacy")]


def cut(contents, rng):
    for content in contents:
        for end in rng.integers(1, len(content), 35):
            yield content[:end]


def flipped(contents, rng):
    for content in contents:
        # Half of the bits are in what describes the numbers, at either end of the file
        edges = [*range(400), *range(len(content) - 400, len(content))]
        for number in range(60):
            changed = bytearray(content)
            for _ in range(1 + number % 3):
                at = rng.choice(edges) if number % 2 else rng.integers(len(content))
                changed[at] ^= 1 << int(rng.integers(8))
            yield bytes(changed)


def calling():
    for name in HARM:
        for way in made.WAYS:
            yield made.one(made.calls(name, way))
        yield made.legacy_head(b"\x80\x02" + made.calls(name, "reduce") + b".")


def changed(state, rng):
    """Yield right files of wrong weights."""
    for value in (np.nan, np.inf, -np.inf):
        for name in ("conv1.weight", "bn2.running_mean", "linear.bias"):
            array = state[name].copy()
            array.flat[int(rng.integers(array.size))] = value
            yield {**state, name: array}
    for kind in (np.int8, np.int32, np.uint8, bool):
        yield {name: array.astype(kind) for name, array in state.items()}
    yield {f"key{number}": np.zeros(1, np.float32) for number in range(500)}
    yield {f"../../{name}": array for name, array in state.items()}
    yield {name + "\n\x1b[2J": array for name, array in state.items()}
    yield {name: array[..., None] for name, array in state.items() if array.ndim != 1}
    yield {name: -array for name, array in state.items()}
    for name in list(state)[:6]:
        yield {other: array for other, array in state.items() if other != name}


def archives():
    whole = made.tensor("0", 6, (6,), (1,))
    pickle, data = made.state({"weight": whole}), bytes(24)
    yield made.zipped(pickle, {"a/data/0": data}, compress_type=zipfile.ZIP_DEFLATED)
    yield made.zipped(pickle, {"../../a/data/0": data})
    yield made.zipped(pickle, {"a/data/0": data, "/etc/passwd": b"x", "a/../x": b"y"})
    yield made.zipped(pickle, {"a/data/0": data, "b/data.pkl": pickle})
    yield made.zipped(pickle, {"a/data/0": bytes(20)})
    yield made.zipped(pickle, {"a/data/0": bytes(28)})
    yield made.zipped(pickle, {"a/byteorder": b"big", "a/data/0": data})
    twice = io.BytesIO(made.zipped(pickle, {"a/data/0": data}))
    with zipfile.ZipFile(twice, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a/data.pkl", pickle)
    yield twice.getvalue()
    lying = bytearray(made.zipped(pickle, {"a/data/0": data}))
    at = lying.rindex(b"PK\x01\x02")
    struct.pack_into("<II", lying, at + 20, 2**31, 2**31)  # sizes in the table of contents
    yield bytes(lying)
    for place, value in ((6, 99), (28, 0)):  # the version that it takes to read it; an empty name
        damaged = bytearray(made.zipped(pickle, {"a/data/0": data}))
        damaged[damaged.index(b"PK\x01\x02") + place] = value
        yield bytes(damaged)


def bombs():
    """Yield files that would take much memory, or a deep stack."""
    for size, stride in (
        ((2**40,), (0,)),
        ((2**20, 2**20), (0, 0)),
        ((2**31, 2), (0, 1)),
        ((1,) * 40, (1,) * 40),
        ((2**47,) * 30, (0,) * 30),
    ):
        yield made.one(made.tensor("0", 6, size, stride))
    yield made.one(made.tensor("0", 2**45, (2,), (1,)))
    yield made.one(made.tensor("0", 6, (2,), (2**46,), 2**46))
    many = 2 * STACK
    for pickle in (
        b"}" * many,
        b"(" * many,
        b"](" + b"N" * many + b"e.",
        b"N" + b"\x85" * 20_000 + b".",
        b"}N" + b"\x85" * 20_000 + b"Ns.",
        b"]q\x00h\x00a.",
        b"Kr\xff\xff\xff\x7f.",
        b"]r\xff\xff\xff\xff.",
        b"\x8e" + struct.pack("<Q", 2**60),
        b"\x96" + struct.pack("<Q", 2**40),
        b"\x8d" + struct.pack("<Q", 2**63),
        b"\x95" + struct.pack("<Q", 2**63),
        b"X" + struct.pack("<I", 2**32 - 1),
        b"\x8b" + struct.pack("<i", 2**31 - 1),
        b"]]\x94" * 1000 + b".",
        b"h\x07.",
        b"R.",
        b"tttt.",
        b"\x82\x01.",
    ):
        yield made.zipped(b"\x80\x04" + pickle, {})
        if len(pickle) < STACK:
            yield made.legacy_head(b"\x80\x04" + pickle)
    for header in ("[" * 100_000, '{"a":' * 100_000, '{"a":1e999}', '{"__metadata__":[]}'):
        yield made.safetensors(header, bytes(10))
    yield made.safetensors(json.dumps({"a": {"dtype": "F32", "shape": [2**48], "data_offsets": 3}}))
    for length in (0, 2**31, 2**63, 2**64 - 1):
        yield struct.pack("<Q", length) + b"{}" + bytes(20)


def outcome(path, model):
    """Return the variables of a file, or the line in which it is refused."""
    global _watching
    _watching = True
    try:
        return keys.variables(read(path), model)
    except InputError as error:
        return str(error)
    finally:
        _watching = False


def test_each_is_refused_in_a_line_or_read_right(network, right, tmp_path):
    model, state = network
    wanted = keys.variables(state, model)
    rng = np.random.default_rng(1)
    files = [*cut(right, rng), *flipped(right, rng), *calling(), *archives(), *bombs()]
    for number, arrays in enumerate(changed(state, rng)):
        write = write_safetensors if number % 2 else write_torch
        write(tmp_path / "changed", arrays)
        files.append((tmp_path / "changed").read_bytes())
    many = {f"key{number}": np.zeros(1, np.float32) for number in range(10_000)}
    for arrays in (many, {**state, **many}):
        write_safetensors(tmp_path / "changed", arrays)
        files.append((tmp_path / "changed").read_bytes())
    files += right
    assert len(files) >= 500
    path = tmp_path / "suspect.pt"
    path.write_bytes(right[0])
    outcome(path, model)  # whatever is imported late is imported now
    sys.addaudithook(watch)
    _seen.clear()
    read_right = 0
    for content in files:
        path.write_bytes(content)
        found = outcome(path, model)
        if isinstance(found, str):
            assert str(path) in found
            assert found.isprintable(), found
            assert len(found) < 700
            assert "ype-check" not in found  # of a value in the file that no function expects
        else:
            read_right += 1
            assert at_most_three_differ(found, wanted, checked=content[:2] == b"PK")
    assert _seen[:5] == []
    assert len(right) <= read_right < len(files) // 2
    assert not (tmp_path / "executed").exists()


def at_most_three_differ(found, wanted, *, checked):
    """Whether variables are the right ones, up to three bits where the format has no checksums."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    different = sum(int((np.asarray(a) != np.asarray(b)).sum()) for a, b in pairs)
    return different <= (0 if checked else 3)


def test_none_takes_much_memory(network, tmp_path):
    path = tmp_path / "suspect.pt"
    for content in bombs():
        path.write_bytes(content)
        tracemalloc.start()
        found = outcome(path, network[0])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert isinstance(found, str)
        assert peak < MOST_MEMORY, found


# --- What is short in a file and long to read -------------------------------------------------------------------------


def machine(pickle):
    return _pickled.load(b"\x80\x02" + pickle, _stand_ins.find, lambda saved: saved)[0]


@pytest.mark.parametrize(
    "call",
    [
        b"c_codecs\nencode\n" + made.text("x" * 100) + b"q\x00" + made.text("latin1") + b"\x86R",
        b"ctorch\nSize\n(" + b"K\x01" * 50 + b"t\x85R",
        b"cbuiltins\nlist\n](" + b"N" * 20 + b"e\x85R",
    ],
)
def test_what_calls_are_handed_is_counted(call, monkeypatch):
    machine(call + b".")
    monkeypatch.setattr(_pickled, "_MOST_HANDED", 3000)
    with pytest.raises(_pickled.Refused, match="makes more than that of any network"):
        machine(call * 30 + b".")


def test_a_tensor_is_made_by_a_function_for_tensors():
    wrapped = b"ctorch._tensor\n_rebuild_from_type_v2\n(c_codecs\nencode\nN" + made.text("x")
    with pytest.raises(_pickled.Refused, match=r"a tensor is made by _codecs\.encode"):
        machine(wrapped + b"\x85tR.")


def test_only_texts_are_keys():
    assert machine(b"}(K\x01N" + made.text("a") + b"K\x02" + b"NK\x03u.") == {"a": 2}


def test_a_dictionary_at_many_places_is_looked_at_once(monkeypatch):
    looked = []
    is_array = _wrappers._is_array
    monkeypatch.setattr(_wrappers, "_is_array", lambda value: looked.append(1) or is_array(value))
    value = {"plain": 1}
    for _ in range(4):
        value = dict.fromkeys(_wrappers._HOLDERS, value)
    with pytest.raises(_pickled.Refused, match="holds no arrays"):
        _wrappers.unwrap(value)
    assert len(looked) < 200
    many = [1] * 1000
    beside = _wrappers._plain_entries({str(number): many for number in range(100)})
    assert beside["0"] is beside["99"]


def test_so_many_prefixes_are_taken_off():
    assert _wrappers.prefixes(["module." * 100 + "weight"]) == ("module.",) * 8


@pytest.mark.parametrize("shape", [(1,) * 33, [1], None])
def test_an_array_of_numpys_has_so_many_axes(shape):
    array = _stand_ins.NumpyArray()
    array.set_state((1, shape, _stand_ins._NumpyType(np.dtype("u1")), False, b"x"))
    assert array.array is None


@pytest.mark.parametrize("last", [b"x", bytes(1), b"PK\x05\x06" + bytes(18)])
def test_nothing_stands_after_the_end_of_an_archive(right, tmp_path, last):
    path = tmp_path / "suspect.pt"
    content = right[0][:-2] + struct.pack("<H", len(last)) + last
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"table of contents, at its end|it holds nothing"):
        read(path)


def test_the_longer_record_is_where_it_is_looked_up(right, tmp_path):
    path, content = tmp_path / "suspect.pt", right[0]
    size, start = struct.unpack("<II", content[-10:-2])
    count = struct.unpack("<H", content[-12:-10])[0]
    content, end = content[:-22], content[-22:]
    for said, place in ((size, 0), (2**31, 0), (size, 1)):
        record = struct.pack(
            "<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, *(count,) * 2, said, start
        )
        locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, len(content) + place, 1)
        path.write_bytes(content + record + locator + end)
        if (said, place) == (size, 0):
            assert read(path).format == "PyTorch zip"
        else:
            with pytest.raises(InputError, match="table of contents"):
                read(path)


def test_copies_in_another_byte_order_are_counted(monkeypatch):
    monkeypatch.setattr(_pickled, "MOST_BYTES", 1000)
    array = np.ones(200, ">f4")
    with pytest.raises(_pickled.Refused, match="more numbers than it can hold"):
        reading._check_swapped([array] * 3)
    reading._check_swapped([array, array, array.astype("<f4")])
