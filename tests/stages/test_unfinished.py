"""States of unfinished packs: gone on from where whole, or told and left."""

import dataclasses
import functools
import os
import pathlib
import shutil
import threading

import jax
import numpy as np
import pytest

import minarch_jax
import minarch_jax as ma
from minarch_jax import records
from minarch_jax.engine import session as sessions
from minarch_jax.stages import checkpoints, train, unfinished
from minarch_jax.stages.progress import Progress
from tests import tiny_study
from tests.tiny_study import CONFIG, MEMBERS

EPOCHS, PACKS = CONFIG.num_epochs, 2


@pytest.fixture(autouse=True)
def calls_of_an_epoch(monkeypatch):
  monkeypatch.setattr(sessions, "CALL_SECONDS", 0.0)


def opened(minutes=0.0):
  """A session on the tiny study's networks."""
  return tiny_study.open_session(checkpoint_minutes=minutes)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """The tables and parameters of a sweep that nobody disturbs."""
  out = tmp_path_factory.mktemp("straight")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sessions, "CALL_SECONDS", 0.0)
    assert len(train.sweep(opened(), str(out))) == PACKS
  return out


def sweep(out, calls=10**6, minutes=0.0, kill=None):
  """Sweeps; after so many calls told to stop, or killed by an error.

  Returns:
    How many epochs were trained, or were trained before.
  """
  session, heard = opened(minutes), []
  advance = Progress.advance

  def counted(self, amount):
    advance(self, amount)
    heard.append(amount)
    if len(heard) == calls:
      if kill:
        raise kill
      session.stop.set()

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Progress, "advance", counted)
    if calls < PACKS * EPOCHS:
      with pytest.raises(kill or sessions.Stopped):
        train.sweep(session, str(out))
    else:
      train.sweep(session, str(out))
  return len(heard)


def states(out):
  """The states that are kept, by folder."""
  folder = pathlib.Path(out) / "checkpoints" / unfinished.FOLDER
  return sorted(path for path in folder.glob("*/*") if path.name.isdigit())


def assert_finished(out, straight):
  """Bit for bit as undisturbed, with nothing left over."""
  found, expected = (ma.read_records(str(each)) for each in (out, straight))
  tiny_study.assert_same_tables(found, expected)
  ids = {id for id, _ in records.parts(str(straight), "networks")}
  assert {path.name for path in (out / "checkpoints").iterdir()} == ids
  for id in ids:
    jax.tree.map(
      np.testing.assert_array_equal,
      *(checkpoints.load(str(each), id) for each in (out, straight)),
    )


@pytest.mark.parametrize("calls", range(1, PACKS * EPOCHS))
def test_a_sweep_stopped_after_any_call_is_gone_on_with(
  straight, tmp_path, calls, capfd
):
  sweep(tmp_path, calls)
  packs, epochs = divmod(calls, EPOCHS)
  assert len(records.ids(str(tmp_path), "networks")) == packs
  assert [path.name for path in states(tmp_path)][-1:] == (
    [str(epochs)] if epochs else []
  )
  capfd.readouterr()
  # What was finished of the pack in progress is told at once, as one call.
  left = (PACKS - packs) * EPOCHS - max(0, epochs - 1)
  assert sweep(tmp_path) == left
  said = capfd.readouterr().err
  assert (f"going on after {epochs} epochs" in said) == (epochs > 0)
  assert_finished(tmp_path, straight)


def test_a_process_that_dies_loses_what_came_after_the_last_state(
  straight, tmp_path
):
  sweep(tmp_path, 2, kill=tiny_study.Interrupted)
  assert [path.name for path in states(tmp_path)] == ["1"]
  # It died writing, too: such a folder has another name.
  (states(tmp_path)[0].parent / "2.orbax-checkpoint-tmp").mkdir()
  assert sweep(tmp_path) == PACKS * EPOCHS
  assert_finished(tmp_path, straight)


def test_a_stop_keeps_a_state_before_its_time(straight, tmp_path):
  sweep(tmp_path, 2, minutes=1e6)
  assert [path.name for path in states(tmp_path)] == ["2"]
  sweep(tmp_path, minutes=1e6)
  assert_finished(tmp_path, straight)


def test_what_ends_within_the_interval_keeps_nothing(
  straight, tmp_path, monkeypatch
):
  monkeypatch.setattr(
    unfinished._Unfinished, "keep", lambda *unused: pytest.fail("kept")
  )
  sweep(tmp_path, minutes=CONFIG.checkpoint_minutes)
  assert_finished(tmp_path, straight)


def test_the_state_before_is_there_until_the_next_is_complete(tmp_path):
  sweep(tmp_path, 1)
  sweep(tmp_path, 2)  # one call goes on, one trains
  one, other = states(tmp_path)
  assert (one.name, other.name) == ("1", "2")


# --- what must not become a number -------------------------------------------


def flipped(state, patch):
  """A bit of the largest file."""
  files = [path for path in state.rglob("*") if path.is_file()]
  path = max(files, key=os.path.getsize)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)


def emptied(state, patch):
  shutil.rmtree(state)
  state.mkdir()


def of_another_pack(state, patch):
  """A whole state under the name of this one."""
  session = opened()
  other = train.plan_missing(session, MEMBERS, "nowhere")[-1]
  facts = {"part": "other", **unfinished._facts(session, other)}
  tree = checkpoints.read(str(state))
  tree["facts"] = np.frombuffer(unfinished.json.dumps(facts).encode(), np.uint8)
  shutil.rmtree(state)
  checkpoints.write(str(state), tree)


def of_other_shapes(state, patch):
  tree = checkpoints.read(str(state))
  tree["state"] = {n: leaf[..., :1] for n, leaf in tree["state"].items()}
  shutil.rmtree(state)
  checkpoints.write(str(state), tree)


def of_an_older_version(state, patch):
  patch.setattr(minarch_jax, "__version__", "0.3.0")


WRONG = {
  flipped: "not used, and set aside",
  emptied: "not used, and set aside",
  of_another_pack: "it is of another pack",
  of_other_shapes: "its arrays are not those of the pack",
  of_an_older_version: f"it is of minarch_jax {ma.__version__}; this is",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_state_that_cannot_be_used_is_named_and_the_pack_starts_anew(
  straight, tmp_path, monkeypatch, capfd, wrong
):
  sweep(tmp_path, 2)
  (state,) = states(tmp_path)[-1:]
  for older in states(tmp_path)[:-1]:
    shutil.rmtree(older)
  wrong(state, monkeypatch)
  capfd.readouterr()
  assert sweep(tmp_path) == PACKS * EPOCHS
  said = capfd.readouterr().err
  assert str(state) in said and WRONG[wrong] in said
  assert_finished(tmp_path, straight)


def test_a_damaged_state_leaves_the_one_before(straight, tmp_path, capfd):
  sweep(tmp_path, 2)
  one, other = states(tmp_path)
  emptied(other, None)
  assert sweep(tmp_path) == PACKS * EPOCHS
  said = capfd.readouterr().err
  assert str(other) in said and "going on after 1 epochs" in said
  assert_finished(tmp_path, straight)


def test_where_nothing_can_be_kept_training_goes_on(straight, tmp_path, capfd):
  (tmp_path / "checkpoints").mkdir()
  blocked = tmp_path / "checkpoints" / unfinished.FOLDER
  blocked.write_text("")
  sweep(tmp_path)
  assert "cannot be written" in capfd.readouterr().err
  blocked.unlink()
  assert_finished(tmp_path, straight)


def test_a_state_of_a_pack_that_is_written_is_removed(straight, tmp_path):
  """A process may die after the tables and before that."""
  sweep(tmp_path, 2)
  left = shutil.copytree(states(tmp_path)[-1].parent.parent, tmp_path / "left")
  sweep(tmp_path)
  left.rename(tmp_path / "checkpoints" / unfinished.FOLDER)
  assert states(tmp_path)
  (id, *_) = records.ids(str(tmp_path), "networks")
  (tmp_path / "checkpoints" / f"{id}.1234.orbax-checkpoint-tmp").mkdir()
  sweep(tmp_path, calls=PACKS * EPOCHS)
  assert_finished(tmp_path, straight)


def test_packs_at_once_keep_their_own(straight, tmp_path):
  session = dataclasses.replace(
    tiny_study.open_session(checkpoint_minutes=0.0, packs_at_once=2),
    stop=threading.Event(),
  )
  advance = functools.partial(Progress.advance)
  together = threading.Barrier(2, action=session.stop.set)

  def waiting(self, amount):
    advance(self, amount)
    together.wait(60)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Progress, "advance", waiting)
    with pytest.raises(sessions.Stopped):
      train.sweep(session, str(tmp_path))
  assert [path.name for path in states(tmp_path)] == ["1"] * 2
  sweep(tmp_path)
  assert_finished(tmp_path, straight)
