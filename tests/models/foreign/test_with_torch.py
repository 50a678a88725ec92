"""What PyTorch writes is read to the bit, and PyTorch takes what is written here."""

from __future__ import annotations

import os

import jax
import numpy as np
import pytest

from bdjax import models
from bdjax.checks import InputError
from bdjax.data.modalities.images import image_spec
from bdjax.models.foreign import keys
from bdjax.models.foreign.reading import read
from bdjax.models.foreign.recognition import recognize
from bdjax.models.foreign.writing import write_backdoorbench, write_safetensors, write_torch

torch = pytest.importorskip("torch")
LEGACY = {"_use_new_zipfile_serialization": False}


@pytest.fixture(scope="module")
def small():
    """Return a small PreAct-ResNet18, random variables of it and its state dict."""
    spec = image_spec("x", (32, 32, 3), 43, (0.5,) * 3, (0.5,) * 3)
    model = models.create("preact_resnet18", spec, width=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.random(leaf.shape, np.float32) + 0.5, shapes)
    return model, variables, keys.state_dict(model, variables)


def plain(value):
    value = value.detach()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_tensors_of_all_kinds_are_read_to_the_bit(tmp_path, options):
    whole = torch.arange(24.0).reshape(4, 6)
    tagged = torch.nn.Parameter(torch.ones(2))
    tagged.tag = "attention"
    tensors = {
        "whole": whole,
        "transposed": whole.T,
        "strided": whole[1:3, ::2],
        "half": whole.half(),
        "bfloat": whole.bfloat16(),
        "double": whole.double(),
        "scalar": torch.tensor(3.0),
        "parameter": torch.nn.Parameter(whole),
        "tagged": tagged,
        "expanded": torch.ones(1).expand(4, 4),
        "empty": torch.zeros(0, 3),
        "whole_numbers": torch.arange(3),
        "truths": torch.tensor([True, False]),
    }
    torch.save(tensors, tmp_path / "a.pt", **options)
    found = read(tmp_path / "a.pt").arrays
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        wanted = plain(tensor)
        np.testing.assert_array_equal(found[name].astype(wanted.dtype), wanted)


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_a_file_of_backdoorbenchs(tmp_path, small, options):
    model, variables, state = small
    weights = {f"module.{name}": torch.from_numpy(array) for name, array in state.items()}
    poisoned = {
        "poison_indicator": np.arange(5) % 2,
        "bd_data_container": {"data_dict": {0: {"path": "0.png", "other_info": [0, 1]}}},
    }
    saved = {
        "model_name": "preactresnet18",
        "num_classes": 43,
        "model": weights,
        "img_size": [32, 32, 3],
        "clean_data": "gtsrb",
        "accuracy": np.float64(0.5),
        "bd_train": poisoned,
        "args": __import__("argparse").Namespace(lr=0.1),
    }
    torch.save(saved, tmp_path / "attack_result.pt", **options)
    found = read(tmp_path / "attack_result.pt")
    assert found.format.startswith("BackdoorBench attack_result")
    assert (found.beside["clean_data"], found.beside["accuracy"]) == ("gtsrb", 0.5)
    known = recognize(found)
    assert (known.name, known.num_classes, known.sure) == ("preact_resnet18", 43, "certain")
    loaded = models.load(tmp_path / "attack_result.pt", model)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_pytorch_takes_what_is_written_here(tmp_path, small):
    _, _, state = small
    write_torch(tmp_path / "a.pt", state)
    write_backdoorbench(tmp_path / "b.pt", state, "preactresnet18", 43, img_size=[32, 32, 3])
    bare = torch.load(tmp_path / "a.pt", weights_only=True)
    wrapped = torch.load(tmp_path / "b.pt", weights_only=True)
    mapped = torch.load(tmp_path / "a.pt", weights_only=True, mmap=True)
    assert wrapped["img_size"] == [32, 32, 3]
    for found in (bare, mapped, wrapped["model"]):
        assert list(found) == list(state)
        assert type(found).__name__ == "OrderedDict"
        for name, array in state.items():
            assert found[name].shape == array.shape
            np.testing.assert_array_equal(found[name].numpy(), array)


def test_safetensors_of_the_library_and_ours_are_the_same(tmp_path, small):
    library = pytest.importorskip("safetensors.numpy")
    _, _, state = small
    write_safetensors(tmp_path / "ours", state, {"format": "pt"})
    library.save_file(state, tmp_path / "theirs", {"format": "pt"})
    ours, theirs = library.load_file(tmp_path / "ours"), read(tmp_path / "theirs")
    assert theirs.beside == {"format": "pt"}
    assert ours.keys() == theirs.arrays.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(ours[name], array)
        np.testing.assert_array_equal(theirs.arrays[name], array)


def test_torchvisions_network_takes_its_weights_back(tmp_path):
    networks = pytest.importorskip("torchvision.models")
    network = networks.resnet18(num_classes=10).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt")
    known = recognize(found)
    assert (known.name, dict(known.options)) == ("resnet18", {"stem": "imagenet"})
    spec = image_spec("x", (40, 40, 3), 10, (0.0,) * 3, (1.0,) * 3)
    model = models.create(known.name, spec, **known.options)
    variables = keys.variables(found, model)
    state = keys.state_dict(model, variables)
    assert list(state) == list(network.state_dict())
    write_torch(tmp_path / "b.pt", state)
    other = networks.resnet18(num_classes=10).eval()
    other.load_state_dict(torch.load(tmp_path / "b.pt", weights_only=True), strict=True)
    image = torch.rand(2, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(other(image), network(image))


@pytest.mark.parametrize("options", [{}, LEGACY], ids=["zip", "legacy"])
def test_a_whole_module_is_refused_with_the_class_and_the_remedy(tmp_path, options):
    torch.save(torch.nn.Linear(2, 3), tmp_path / "a.pt", **options)
    wanted = r"class torch.nn.modules.linear.Linear.*torch.save\(model.state_dict\(\)"
    with pytest.raises(InputError, match=wanted):
        read(tmp_path / "a.pt")


def test_a_file_without_checksums_is_read_and_that_is_said(tmp_path, small):
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.arange(3.0)}, tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(computed)
    found = read(tmp_path / "a.pt")
    assert found.arrays["weight"].tolist() == [0, 1, 2]
    assert [note for note in found.notes if "no checksums" in note]


def test_a_call_of_the_system_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return os.system, ("echo executed > executed",)

    torch.save({"weight": torch.ones(2), "x": Harm()}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"calls posix.system|calls nt.system"):
        read(tmp_path / "a.pt")
    assert not (tmp_path / "executed").exists()
