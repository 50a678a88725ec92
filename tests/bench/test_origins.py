"""Where operations come from: what a real trace says of a program, and that what is cut short is no endless loop."""

import jax
import jax.numpy as jnp
import pytest

from bdjax.bench import origins, profile

pytestmark = pytest.mark.usefixtures("no_other_programs")


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trace")
    function = jax.jit(tangents_of_products)
    function(jnp.ones((32, 32))).block_until_ready()
    with profile.trace(folder):
        function(jnp.ones((32, 32))).block_until_ready()
    (file,) = folder.glob("plugins/profile/*/*.xplane.pb")
    return file


def tangents_of_products(x):
    return jnp.tan(x @ x)  # this line is asked for below


def test_each_operation_of_a_program_has_its_kind_path_and_line(trace_file):
    (operations,) = (
        found for name, found in origins.read(trace_file).items() if "tangents_of_products" in name
    )
    line = tangents_of_products.__code__.co_firstlineno + 1
    by_path = {origin.path: origin for origin in operations.values()}
    tangent = by_path["jit(tangents_of_products)/tan"]
    assert (
        tangent.line
        == by_path["jit(tangents_of_products)/dot_general"].line
        == f"test_origins.py:{line}"
    )
    assert "dot" in {origin.opcode for origin in operations.values()}


def test_a_file_that_is_cut_short_or_another_is_refused(trace_file, tmp_path):
    content = trace_file.read_bytes()
    other = tmp_path / "other"
    for wrong in (content[:-1], b"\xff" * 20, b"\x0f"):
        other.write_bytes(wrong)
        with pytest.raises(ValueError, match=r"cut short|unknown kind"):
            origins.read(other)
    other.write_bytes(b"")
    assert origins.read(other) == {}


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        ("/home/me/checkout/bdjax/models/_layers.py", "bdjax/models/_layers.py"),
        ("/usr/lib/python3/site-packages/flax/linen/linear.py", "flax/linen/linear.py"),
        ("/home/me/mine.py", "mine.py"),
    ],
)
def test_a_file_is_shown_from_its_package_on(file, shown):
    assert origins._shortened(file) == shown
