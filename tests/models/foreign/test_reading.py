"""Files of weights, made by hand: what they hold, and why others are refused."""

from __future__ import annotations

import json

import foreign_files as made
import numpy as np
import pytest

from bdjax.checks import InputError
from bdjax.models.foreign.reading import read
from bdjax.models.foreign.writing import write_backdoorbench, write_safetensors, write_torch

SIX = np.arange(6, dtype=np.float32)
ARRAYS = {
    "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "bn.running_var": np.float32([1, 2]),
    "bn.num_batches_tracked": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.fixture
def file(tmp_path):
    """Return a function that writes bytes to a file and gives its path."""

    def write(content):
        path = tmp_path / "suspect.pt"
        path.write_bytes(content)
        return path

    return write


def same(found, wanted):
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert not found[name].flags.writeable or found[name].size == 0


@pytest.mark.parametrize("write", [write_torch, write_safetensors])
def test_what_is_written_is_read_to_the_bit_and_in_its_order(tmp_path, write):
    write(tmp_path / "a", ARRAYS)
    found = read(tmp_path / "a")
    same(found.arrays, ARRAYS)
    assert (found.wrappers, found.notes, found.prefix) == ((), (), "")


def test_the_legacy_format_is_read(file):
    floats = {name: array for name, array in ARRAYS.items() if array.dtype == np.float32}
    found = read(file(made.legacy_of(floats)))
    same(found.arrays, floats)
    assert found.format == "PyTorch legacy"


@pytest.mark.parametrize(
    ("size", "stride", "offset", "wanted"),
    [
        ((6,), (1,), 0, [0, 1, 2, 3, 4, 5]),
        ((2, 2), (3, 1), 1, [[1, 2], [4, 5]]),
        ((3, 2), (1, 3), 0, [[0, 3], [1, 4], [2, 5]]),
        ((2, 3), (0, 2), 1, [[1, 3, 5], [1, 3, 5]]),
        ((), (), 4, 4),
        ((0, 5), (1, 1), 6, np.zeros((0, 5))),
    ],
)
def test_views_of_a_storage(file, size, stride, offset, wanted):
    found = read(file(made.one(made.tensor("0", 6, size, stride, offset), SIX.tobytes())))
    np.testing.assert_array_equal(found.arrays["weight"], wanted)


@pytest.mark.parametrize(
    ("kind", "raw", "wanted"),
    [
        ("HalfStorage", b"\x00\x3c\x00\xc0", [1, -2]),
        ("BFloat16Storage", b"\x80\x3f\x00\xc0", [1, -2]),
        ("DoubleStorage", np.float64([1, -2]).tobytes(), [1, -2]),
        ("CharStorage", b"\x01\xfe", [1, -2]),
        ("BoolStorage", b"\x01\x00", [True, False]),
    ],
)
def test_types_of_numbers(file, kind, raw, wanted):
    found = read(file(made.one(made.tensor("0", 2, (2,), (1,), kind=kind), raw)))
    assert found.arrays["weight"].astype(float).tolist() == wanted
    floating = kind in ("HalfStorage", "BFloat16Storage", "DoubleStorage")
    assert ["become float32" in note for note in found.notes] == [True] * floating


def test_what_stands_around_the_weights_is_taken_off_and_told(tmp_path):
    arrays = {f"module.1.{name}": array for name, array in ARRAYS.items()}
    arrays["module.0.mean"] = np.float32([0.5, 0.25, 0.5])
    arrays["module.0.std"] = np.float32([1, 2, 4])
    arrays["n_averaged"] = np.array(3, np.int64)
    write_torch(tmp_path / "a", arrays, {"epoch": 3, "classes": ["cat", "dog"]})
    found = read(tmp_path / "a")
    same(found.arrays, ARRAYS)
    assert found.prefix == "module.1."
    assert found.wrappers[0] == "model"
    normalization = {"mean": (0.5, 0.25, 0.5), "std": (1.0, 2.0, 4.0)}
    assert found.beside == {"epoch": 3, "classes": ("cat", "dog"), **normalization}
    assert set(found.aside) == {"module.0.mean", "module.0.std", "n_averaged"}


def test_backdoorbenchs_form(tmp_path):
    write_backdoorbench(tmp_path / "a", ARRAYS, "vit_b_16", 10, img_size=[32, 32, 3])
    found = read(tmp_path / "a")
    same(found.arrays, ARRAYS)
    assert found.format == "BackdoorBench defense_result (PyTorch zip)"
    beside = {"model_name": "vit_b_16", "num_classes": 10, "img_size": (32, 32, 3)}
    assert found.beside == beside
    assert found.wrappers == ("model", "1.")


def test_a_protocol_that_is_nested_without_end_is_refused_at_once(file):
    nested = b"\x80\x02]" + b"".join(b"q\x00](h\x00h\x00e" for _ in range(40)) + b"."
    with pytest.raises(InputError, match="a PyTorch protocol that is no number; 1001 is read"):
        read(file(made.LEGACY + nested + b"\x80\x02}." * 3))


def test_a_part_is_named_where_there_are_several(file):
    net = made.ORDERED + b"(" + made.text("w") + made.tensor("0", 6, (6,), (1,)) + b"u"
    pickle = b"\x80\x02}(" + made.text("netC") + net + made.text("netG") + net + b"u."
    path = file(made.zipped(pickle, {"a/data/0": SIX.tobytes()}))
    np.testing.assert_array_equal(read(path, "netG").arrays["w"], SIX)
    with pytest.raises(InputError, match="several sets of weights, netC, netG: name the one"):
        read(path)
    with pytest.raises(InputError, match="has no part 'netD'; it has netC, netG"):
        read(path, "netD")


def test_numpys_arrays_and_numbers_in_a_pickle(file):
    kind = b"cnumpy\ndtype\n(" + made.text("f4") + b"\x89\x88tR(K\x03" + made.text("<") + b"NNNtb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    content = b"(K\x01(K\x02K\x03t" + kind + b"\x89C\x18" + SIX.tobytes() + b"tb"
    scalar = b"cnumpy._core.multiarray\nscalar\n(" + kind + b"C\x04" + SIX[3:4].tobytes() + b"tR"
    pickle = made.state({"w": array + content, "epoch": scalar})
    found = read(file(made.zipped(pickle, {})))
    same(found.arrays, {"w": SIX.reshape(2, 3)})
    assert found.beside == {"epoch": 3.0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PK", "is cut off, or no file of weights: it has 2 bytes"),
        (b"hello, this is a text", "is none of the files that are read"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "is an HDF5 file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (b"\x80\x04\x95" + bytes(30), "is a bare pickle"),
        (made.zipped(made.state({}), {}), "holds no arrays"),
        (made.zipped(b"\x80\x02K\x05.", {}), "holds a number, no state dict"),
        (made.zipped(b"\x80\x02", {}), "ends too early"),
        (made.zipped(b"\x80\x02Vold\n.", {}), "has the opcode b'V'"),
        (made.zipped(made.state({}), {"a/constants.pkl": b""}), "is a TorchScript program"),
        (made.zipped(made.state({}), {"a/byteorder": b"big"}), "big-endian"),
        (made.one(made.tensor("1", 6, (6,), (1,))), "it lacks data/1"),
        (made.one(made.tensor("0", 7, (6,), (1,))), "data/0 has 24 bytes, 28 would be right"),
        (made.one(made.tensor("0", 6, (7,), (1,))), r"size \(7,\) reaches beyond its 6 numbers"),
        (made.one(made.tensor("0", 6, (2, 2), (5, 1))), "reaches beyond its 6 numbers"),
        (made.one(made.tensor("0", 6, (2**40,), (0,))), "makes a tensor of size .* of 6 numbers"),
        (made.one(made.tensor("0", 6, (-1,), (1,))), "no list of whole numbers"),
        (made.one(made.tensor("0", 6, (2,), (1, 1))), "1 axes and 2 strides"),
        (
            made.one(made.tensor("0", 3, (3,), (1,), kind="ComplexFloatStorage")),
            "holds numbers of type torch.ComplexFloatStorage",
        ),
        (made.one(made.calls("posix.system", "reduce")), "calls posix.system, which no file"),
        (
            made.one(made.calls("models.resnet.ResNet", "new")),
            r"class models.resnet.ResNet.*torch.save\(model.state_dict\(\)",
        ),
        (made.one(made.calls("torch.hub.load", "reduce")), "holds torch.hub.load, a kind"),
        (made.legacy_of({"x": SIX})[:-1], "is cut off: its numbers end too early"),
        (made.legacy_of({"x": SIX}) + b"\0", "1 bytes follow its last number"),
        (
            b"PK\x03\x04" + b"PK\x05\x06" + bytes(8) + b"\0\0\0\x7f" + bytes(6),
            "its table of contents is larger",
        ),
        (made.safetensors("{}"), "holds no arrays"),
        (made.safetensors("{"), "its header is no JSON"),
        (made.safetensors('{"a":1,"a":2}'), "a name is there twice"),
        (made.safetensors('{"a":{"dtype":"C64","shape":[],"data_offsets":[0,8]}}'), "type C64"),
    ],
)
def test_other_files_are_refused_in_a_line_that_says_why(file, content, message):
    path = file(content)
    with pytest.raises(InputError, match=message) as error:
        read(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_place_that_is_no_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read(tmp_path / "absent.pt")
    with pytest.raises(InputError, match="is a folder"):
        read(tmp_path)


def test_damage_to_a_number_is_seen_where_there_are_checksums(file):
    content = made.one(made.tensor("0", 6, (6,), (1,)), SIX.tobytes())
    at = content.index(SIX.tobytes())
    flipped = content[: at + 7] + bytes([content[at + 7] ^ 1]) + content[at + 8 :]
    with pytest.raises(InputError, match="the checksum of data/0 in it differs"):
        read(file(flipped))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"dtype": "F32", "shape": [2**40], "data_offsets": [0, 24]}, "has 24 bytes"),
        ({"dtype": "F32", "shape": [-6], "data_offsets": [0, 24]}, "no list of whole numbers"),
        ({"dtype": "F32", "shape": [6], "data_offsets": [8, 32]}, "lies beyond its end"),
        ({"dtype": "F32", "shape": [5], "data_offsets": [4, 24]}, "overlap, or leave holes"),
        ({"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}, "4 bytes follow"),
        ({"dtype": "F32", "shape": "6", "data_offsets": [0, 24]}, "no list of whole numbers"),
        (3, "has no description"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(file, entry, message):
    path = file(made.safetensors(json.dumps({"a": entry}), SIX.tobytes()))
    with pytest.raises(InputError, match=message):
        read(path)
