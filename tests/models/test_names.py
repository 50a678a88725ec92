"""The keys and layouts of a PyTorch state dict."""

from __future__ import annotations

import numpy as np
import pytest

from bdjax.models._names import from_torch, key_of, to_torch


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("conv1/kernel", "conv1.weight"),
        ("layer1/0/bn1/scale", "layer1.0.bn1.weight"),
        ("layer1/0/bn1/bias", "layer1.0.bn1.bias"),
        ("layer1/0/bn1/mean", "layer1.0.bn1.running_mean"),
        ("layer1/0/bn1/var", "layer1.0.bn1.running_var"),
        ("encoder/pos_embedding", "encoder.pos_embedding"),
        ("class_token", "class_token"),
        ("a/self_attention/in_proj/kernel", "a.self_attention.in_proj_weight"),
        ("a/self_attention/in_proj/bias", "a.self_attention.in_proj_bias"),
        ("a/self_attention/out_proj/kernel", "a.self_attention.out_proj.weight"),
    ],
)
def test_keys(path, key):
    assert key_of(tuple(path.split("/"))) == key


@pytest.mark.parametrize(
    ("leaf", "ours", "theirs"),
    [
        ("kernel", (5, 3, 2, 7), (7, 2, 5, 3)),
        ("kernel", (3, 3, 1, 8), (8, 1, 3, 3)),
        ("kernel", (4, 6), (6, 4)),
        ("pos_embedding", (1, 5, 4), (1, 5, 4)),
    ],
)
def test_layouts_there_and_back(leaf, ours, theirs):
    array = np.arange(np.prod(ours)).reshape(ours)
    there = to_torch(array, ("a", leaf))
    assert there.shape == theirs
    np.testing.assert_array_equal(from_torch(there, ("a", leaf)), array)
    if len(ours) == 4:
        assert there[-1, 0, 1, 2] == array[1, 2, 0, -1]
