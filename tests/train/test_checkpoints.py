"""Checkpoints: a run that is continued ends bit-identical, and whatever is broken is named, never trained on."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdjax import defenses
from bdjax.checks import InputError
from bdjax.train import checkpoints as module
from bdjax.train import loop
from bdjax.train.checkpoints import Checkpoints

KEY = jax.random.key(0)
EPOCHS = 3


def same(first, second) -> bool:
    leaves = (jax.tree.leaves(tree) for tree in (first, second))
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(*leaves, strict=True))


# --- a run that is continued -----------------------------------------------------------------------------------------


class Ended:
    """A finished run: its result and, from its last checkpoint, its whole state."""

    def __init__(
        self, folder: Path, learner, model, variables, split, stop_after: int | None = None
    ):
        def feed(**options) -> loop.Result:
            checkpoints = Checkpoints(folder, every=0.0)
            try:
                return loop.run(
                    KEY, learner, model, variables, split, checkpoints=checkpoints, **options
                )
            finally:
                checkpoints.close()

        self.fed: list[int] = []
        if stop_after is not None:
            asked = itertools.count(1)
            with pytest.raises(loop.Stopped):
                feed(
                    should_stop=lambda: next(asked) == stop_after,
                    on_epoch=lambda row: self.fed.append(row.epoch),
                )
            assert self.fed[-1] == stop_after
        self.result = feed(on_epoch=lambda row: self.fed.append(row.epoch))
        saved = Checkpoints(folder).restore(learner.init(KEY, model, variables, split))
        assert saved is not None
        self.state = saved.state


@pytest.fixture(scope="module")
def learner():
    """With momentum, decay and augmentation: every part of the state moves."""
    return defenses.create("ft_sam", epochs=EPOCHS, batch_size=32).learner


@pytest.fixture(scope="module")
def whole(tmp_path_factory, learner, model, variables, split) -> Ended:
    return Ended(tmp_path_factory.mktemp("whole"), learner, model, variables, split)


@pytest.mark.parametrize("stop_after", range(1, EPOCHS))
def test_a_run_that_is_continued_ends_bit_identical(
    whole, tmp_path, learner, model, variables, split, stop_after
):
    parts = Ended(tmp_path, learner, model, variables, split, stop_after)
    assert parts.fed == whole.fed == [1, 2, 3]  # no epoch is lost, none is run twice
    assert same(parts.result.variables, whole.result.variables)
    assert same(parts.state, whole.state)  # momentum and step count too

    # The state comes back as it was placed
    assert sum(row.compile_seconds for row in parts.result.history) == 0

    def without_seconds(row):
        return row._replace(seconds=0.0, compile_seconds=0.0)

    assert list(map(without_seconds, parts.result.history)) == list(
        map(without_seconds, whole.result.history)
    )


def test_the_last_checkpoint_is_the_result(whole):
    assert same(whole.state.tuned, whole.result.variables["params"])
    assert whole.state.step == EPOCHS * 2


def test_a_finished_run_is_not_run_again(tmp_path, whole, learner, model, variables, split):
    again = Ended(tmp_path, learner, model, variables, split)
    checkpoints = Checkpoints(tmp_path)
    result = loop.run(
        KEY, learner, model, variables, split, checkpoints=checkpoints, on_epoch=pytest.fail
    )
    checkpoints.close()
    assert same(result.variables, whole.result.variables)
    assert result.history == again.result.history


def test_a_checkpoint_of_more_epochs_than_asked_for_is_refused(
    tmp_path, learner, model, variables, split
):
    Ended(tmp_path, learner, model, variables, split)
    checkpoints = Checkpoints(tmp_path)
    shorter = defenses.create("ft_sam", epochs=EPOCHS - 1, batch_size=32).learner
    with pytest.raises(
        InputError,
        match=f"epochs must be at least 3, which the checkpoint in {tmp_path} has seen; got 2",
    ):
        loop.run(KEY, shorter, model, variables, split, checkpoints=checkpoints)
    checkpoints.close()


# --- files -----------------------------------------------------------------------------------------------------------

STATE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.int32(4), "empty": ()}
HISTORY = [{"epoch": 1, "loss": 0.1 + 0.2}]
REFUSAL = re.compile(
    r"the checkpoint \S+/copy(/1)? cannot be read; delete it to start over \(.*\)\."
)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """A folder with one checkpoint."""
    folder = tmp_path_factory.mktemp("one")
    save(folder, 1, STATE)
    return folder


def save(folder: Path, epoch: int, state) -> None:
    checkpoints = Checkpoints(folder)
    checkpoints.save(epoch, jax.tree.map(jnp.asarray, state), HISTORY, force=True)
    checkpoints.close()


def restore(folder: Path, like=STATE, owner=None):
    checkpoints = Checkpoints(folder, owner=owner)
    try:
        return checkpoints.restore(jax.tree.map(jnp.asarray, like))
    finally:
        checkpoints.close()


def test_what_is_saved_comes_back_bit_for_bit(one):
    saved = restore(one)
    assert same(saved.state, STATE)
    assert jax.tree.structure(saved.state) == jax.tree.structure(STATE)
    assert saved.history == HISTORY


def test_an_empty_folder_has_nothing(tmp_path):
    assert restore(tmp_path / "new") is None


@pytest.mark.parametrize(
    "like",
    [
        {**STATE, "w": np.zeros((3, 2), np.float32)},
        {**STATE, "w": np.zeros((2, 4), np.float32)},
        {**STATE, "w": np.zeros((2, 3), np.float16)},
        {**STATE, "more": np.zeros(1)},
        {"v": STATE["w"], "step": STATE["step"], "empty": ()},
        {"w": STATE["w"], "empty": ()},
    ],
    ids=["turned", "wider", "other type", "more", "other name", "less"],
)
def test_a_checkpoint_of_another_state_is_refused(one, like):
    with pytest.raises(
        InputError, match=f"the checkpoint {one}/1 cannot be read; delete it to start over"
    ):
        restore(one, like)


def damaged(whole: Path, copy: Path) -> Iterator[tuple[Path, Path]]:
    """Make copies with one file missing, emptied or cut in half; give the file's name and the copy."""
    files = [path.relative_to(whole) for path in sorted(whole.rglob("*")) if path.is_file()]
    for file in files:
        # Refused too, but orbax leaves reads behind that complain at exit
        if "array_metadatas" in file.parts:
            continue
        content = (whole / file).read_bytes()
        for rest in (None, b"", content[: len(content) // 2]):
            shutil.copytree(whole, copy)
            (copy / file).unlink() if rest is None else (copy / file).write_bytes(rest)
            yield file, copy
            shutil.rmtree(copy)


# Orbax's, of a closed event loop
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_file_is_refused_or_of_no_account(one, tmp_path):
    refused = {}
    for file, folder in damaged(one, tmp_path / "copy"):
        try:
            saved = restore(folder)
        except InputError as error:
            refused[file] = str(error)
        else:
            assert same(saved.state, STATE), file
            assert saved.history == HISTORY, file
    assert {file.parts[1] for file in refused} >= {"state", "history"}
    for message in refused.values():
        assert REFUSAL.fullmatch(message), message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_bit_that_flips_is_refused_or_of_no_account(one, tmp_path):
    """Weights restored other numbers without a word before checkpoints had a digest."""
    rng = np.random.default_rng(0)
    files = [path.relative_to(one) for path in sorted(one.rglob("*")) if path.is_file()]
    files = [
        file
        for file in files
        if "array_metadatas" not in file.parts and (one / file).stat().st_size
    ]
    messages = []
    for file in rng.choice(files, 60):  # type: ignore[arg-type]
        shutil.copytree(one, tmp_path / "copy")
        content = bytearray((one / file).read_bytes())
        place = rng.integers(8 * len(content))
        content[place // 8] ^= 1 << place % 8
        (tmp_path / "copy" / file).write_bytes(content)
        try:
            saved = restore(tmp_path / "copy")
        except InputError as error:
            messages.append(str(error))
        else:
            assert same(saved.state, STATE), file
            assert saved.history == HISTORY, file
        shutil.rmtree(tmp_path / "copy")
    assert len(messages) > 20
    for message in messages:
        assert REFUSAL.fullmatch(message), message


@pytest.mark.parametrize(
    "word", ['"text"', "[]", "null", "3", "NaN", '{"init_timestamp_nsecs": []}']
)
def test_a_description_that_is_no_description_is_refused_or_of_no_account(one, tmp_path, word):
    """Orbax reads it as soon as the folder is opened."""
    shutil.copytree(one, tmp_path / "copy")
    (tmp_path / "copy" / "1" / "_CHECKPOINT_METADATA").write_text(word)
    try:
        saved = restore(tmp_path / "copy")
    except InputError as error:
        message = str(error)
    else:
        assert same(saved.state, STATE)
        return
    assert REFUSAL.fullmatch(message), message


def test_arrays_that_were_exchanged_are_refused(one, tmp_path):
    shutil.copytree(one, tmp_path / "copy")
    save(tmp_path / "other", 1, {**STATE, "step": np.int32(5)})
    shutil.rmtree(tmp_path / "copy" / "1" / "state")
    shutil.copytree(tmp_path / "other" / "1" / "state", tmp_path / "copy" / "1" / "state")
    with pytest.raises(InputError, match="it is not what was saved: its digest differs"):
        restore(tmp_path / "copy")


def test_a_checkpoint_of_another_owner_or_epoch_is_refused(one, tmp_path):
    with pytest.raises(InputError, match="it belongs to nobody"):
        restore(one, owner={"run": "mine", "stage": 0})
    with Checkpoints(tmp_path / "its", owner={"run": "another", "stage": 0}) as its:
        its.save(1, jax.tree.map(jnp.asarray, STATE), HISTORY, force=True)
    with pytest.raises(InputError, match="it belongs to run another, stage 0"):
        restore(tmp_path / "its", owner={"run": "mine", "stage": 0})
    shutil.copytree(one, tmp_path / "copy")
    (tmp_path / "copy" / "1").rename(tmp_path / "copy" / "2")
    with pytest.raises(InputError, match="its digest differs"):
        restore(tmp_path / "copy")


def test_a_disk_without_room_is_one_line_and_what_was_saved_stays(one, tmp_path, monkeypatch):
    shutil.copytree(one, tmp_path / "copy")
    checkpoints = Checkpoints(tmp_path / "copy")

    def fail(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: Error writing\nand so on [os_error_code='28']")

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(OSError, match="No space left on device") as full:
        checkpoints.save(2, jax.tree.map(jnp.asarray, STATE), HISTORY, force=True)
    assert full.value.filename == str(tmp_path / "copy")
    checkpoints.close()
    assert restore(tmp_path / "copy").history == HISTORY


def test_what_a_killed_save_leaves_is_passed_over(one, tmp_path):
    folder = tmp_path / "killed"
    shutil.copytree(one, folder)
    shutil.copytree(one / "1", folder / "2.orbax-checkpoint-tmp-1")
    assert same(restore(folder).state, STATE)
    save(folder, 2, {**STATE, "step": np.int32(5)})
    assert restore(folder).state["step"] == 5


def test_only_the_newest_is_kept(tmp_path):
    for epoch in (1, 2, 3):
        save(tmp_path, epoch, {**STATE, "step": np.int32(epoch)})
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["3"]
    assert restore(tmp_path).state["step"] == 3


# --- how often -------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when the test says so, but for the seconds that a save takes."""
    now = SimpleNamespace(seconds=100.0, save=0.0)

    class Manager:
        epochs: tuple[int, ...] = ()

        def save(self, epoch, **options):
            self.epochs = (*self.epochs, epoch)
            now.seconds += now.save

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    monkeypatch.setattr(module.ocp, "CheckpointManager", lambda *args, **options: Manager())
    return now


def saved_epochs(
    clock, checkpoints: Checkpoints, epochs: int, *, seconds: float, force: tuple[int, ...] = ()
):
    for epoch in range(1, epochs + 1):
        clock.seconds += seconds
        checkpoints.save(epoch, {}, [], force=epoch in force)
    return checkpoints._manager.epochs


def test_zero_saves_every_epoch_however_long_it_takes(clock, tmp_path):
    clock.save = 5.0
    assert saved_epochs(clock, Checkpoints(tmp_path, every=0.0), 4, seconds=0.01) == (1, 2, 3, 4)


def test_saves_keep_their_distance_and_a_forced_one_is_made_at_once(clock, tmp_path):
    assert saved_epochs(clock, Checkpoints(tmp_path, every=1.0), 9, seconds=0.25, force=(2, 9)) == (
        2,
        6,
        9,
    )


def test_saves_cost_at_most_a_tenth_of_the_time(clock, tmp_path):
    clock.save = 0.5
    assert saved_epochs(clock, Checkpoints(tmp_path, every=1.0), 12, seconds=1.0) == (1, 6, 11)
