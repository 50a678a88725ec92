"""What of plain values is not of a shape."""

from bdjax.files import shapes


def test_shapes_of_plain_values():
    shape = {"names": [str], "data": [(dict, None)], "seconds": {str: float}, "more?": bool}
    fine = {"names": ["a"], "data": [{}, None], "seconds": {"loop": 1}, "whatever": []}
    assert shapes.misfit(fine, shape) is None
    wrong = {
        "names[0] must be a text": {"names": [1]},
        "names must be a list": {"names": {}},
        "data[1] must be a mapping": {"data": [None, 1]},
        "seconds.loop must be a number": {"seconds": {"loop": "1"}},
        "more must be a bool": {"more": 1},
    }
    for words, change in wrong.items():
        assert shapes.misfit({**fine, **change}, shape) == words
