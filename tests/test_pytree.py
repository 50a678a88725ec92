"""Frozen dataclasses that are pytrees."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import bdjax
from bdjax import pytree
from bdjax.parametrizations import Identity, KeptZeros


@pytree.dataclass
class Line:
    """A slope that is a leaf and a kind that is not."""

    slope: float
    kind: str = pytree.static(default="solid")


@pytree.dataclass
class Curve:
    """The same fields."""

    slope: float
    kind: str = pytree.static(default="solid")


def test_static_fields_are_structure_and_all_others_are_leaves():
    leaves, structure = jax.tree.flatten(Line(2.0, "dashed"))
    assert leaves == [2.0]
    assert jax.tree.unflatten(structure, [3.0]) == Line(3.0, "dashed")
    assert jax.tree.structure(Line(2.0)) != structure


def test_paths_name_the_fields():
    [(path, _)] = jax.tree_util.tree_leaves_with_path({"a": Line(2.0)})
    assert jax.tree_util.keystr(path) == "['a'].slope"


def test_instances_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Line(2.0).slope = 3.0  # type: ignore[misc]


@pytest.mark.parametrize(("one", "other"), [(Line(2.0), Curve(2.0)), (Identity(), KeptZeros())])
def test_two_classes_never_have_equal_structures(one, other):
    """What `flax.struct.dataclass` does not give: its structures differ by their hash alone."""
    assert jax.tree.structure(one) != jax.tree.structure(other)
    assert jax.tree.structure((one, 1)) != jax.tree.structure((other, 1))


def test_a_leaf_may_be_traced_and_stacked():
    many = jax.tree.map(lambda *x: jnp.stack(x), Line(1.0), Line(2.0))
    assert jax.vmap(lambda line: line.slope * 2)(many).tolist() == [2.0, 4.0]


def test_nothing_is_registered_in_another_way():
    for file in Path(bdjax.__file__).parent.rglob("*.py"):
        if file.name != "pytree.py":
            text = file.read_text()
            assert not any(name in text for name in ("flax.struct", "register_dataclass")), file
