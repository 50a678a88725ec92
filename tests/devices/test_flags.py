"""Options of XLA: all in the tables are known, and what is not known is left out and does not abort the process."""

import pytest

from bdjax.devices import flags
from bdjax.devices.flags import Flag

EVERY = [
    flag for table in (flags.USED, flags.CANDIDATES) for rows in table.values() for flag in rows
]


@pytest.mark.parametrize("flag", EVERY, ids=lambda flag: flag.name)
def test_every_option_of_the_tables_is_known_here_for_whatever_backend(flag):
    assert flags.unknown(flag.options) is None


@pytest.mark.parametrize("backend", flags.CANDIDATES)
def test_candidates_have_names_of_their_own_and_nobody_has_measured_them(backend):
    rows = flags.CANDIDATES[backend]
    assert (
        len({flag.name for flag in rows})
        == len({tuple(flag.options.items()) for flag in rows})
        == len(rows)
    )
    assert all(flag.why and flag.measured is None for flag in rows)


def test_what_is_switched_on_was_measured():
    assert all(flag.measured for rows in flags.USED.values() for flag in rows)


def test_only_the_cpu_has_options_that_are_switched_on():
    (flag,) = flags.USED["cpu"]
    assert flags.used("cpu") == flag.options
    assert flags.used("gpu") == flags.used("tpu") == {}


def test_what_determinism_takes_is_known():
    assert flags.DETERMINISTIC.keys() == {"gpu"}
    assert flags.unknown(flags.DETERMINISTIC["gpu"]) is None


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"xla_of_another_age": True}, "No such compile option: 'xla_of_another_age'"),
        ({"xla_gpu_force_conv_nhwc": "yes"}, "'yes' is not a valid bool value"),
        (
            {"xla_gpu_enable_command_buffer": "FUSION,NONE_OF_IT"},
            "'NONE_OF_IT' is not a valid enum value",
        ),
    ],
)
def test_an_unknown_name_or_value_is_said_in_the_words_of_xla(options, why):
    assert why in (flags.unknown(options) or "")


def test_one_that_is_unknown_or_for_another_version_leaves_the_others_as_they_are(monkeypatch):
    rows = (
        Flag("gone", {"xla_of_another_age": True}, ""),
        Flag("old", {"xla_gpu_autotune_level": 1}, "", before="0.5"),
        Flag("new", {"xla_gpu_autotune_level": 2}, "", since="99"),
        Flag("good", {"xla_gpu_graph_min_graph_size": 3}, ""),
    )
    monkeypatch.setitem(flags.USED, "made up", rows)
    assert flags.used("made up") == {"xla_gpu_graph_min_graph_size": 3}


@pytest.mark.parametrize(
    ("jaxlib", "fits"),
    [("0.10.2", False), ("0.11", True), ("0.11.2", True), ("0.12.0.1", False), ("0.9.9", False)],
)
def test_versions_are_compared_as_numbers(jaxlib, fits):
    assert Flag("", {}, "", since="0.11", before="0.12").fits(jaxlib) is fits
