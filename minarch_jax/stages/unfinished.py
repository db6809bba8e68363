"""Keeps packs in the middle of their training, so that a kill costs minutes.

<out>/checkpoints/unfinished/<id>.<facts>/<epochs> holds the whole state of the
pack that will be part <id>: parameters, moments, curve. `facts` is a hash of
what the last bit depends on besides: versions, devices, layout. It is written
beside the training, under another name until it is complete, and read only
where all of this and a digest agree; training on from it gives the rows of
training straight through. Otherwise the pack starts anew, with a message. It
goes when the tables of the pack are written.
"""

from collections.abc import Callable, Iterator
from concurrent import futures
import contextlib
import dataclasses
import glob
import importlib.metadata
import json
import os
import shutil
import time
from typing import Any

import jax
import numpy as np

import minarch_jax
from minarch_jax import checksums, records
from minarch_jax.config import ConfigError
from minarch_jax.engine import session as sessions
from minarch_jax.engine.evaluation import Score
from minarch_jax.engine.keeping import Keeper, Kept
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Session
from minarch_jax.engine.training import Curve, Step
from minarch_jax.stages import checkpoints
from minarch_jax.stages.progress import say
from minarch_jax.types import TrainState

FOLDER = "unfinished"


@contextlib.contextmanager
def keeping(
  session: Session, out: str, id_of: Callable[[Pack], str]
) -> Iterator[Callable[[Pack], Keeper]]:
  """Yields what makes the keeper of a pack, for one that is to be written.

  Args:
    session: what trains.
    out: the results directory.
    id_of: names the part of a pack.
  """
  opened: list[_Unfinished] = []

  def keeper_of(pack: Pack) -> Keeper:
    facts = {"part": id_of(pack), **_facts(session, pack)}
    minutes = session.config.checkpoint_minutes
    opened.append(_Unfinished(out, facts, 60 * minutes))
    return opened[-1]

  try:
    yield keeper_of
  finally:
    for each in opened:
      each.close()
  for each in opened:  # all is written
    each.remove()


def clear(out: str) -> None:
  """Removes what was kept of packs that are written, and an empty folder."""
  whole, folder = checkpoints.path(out, ""), checkpoints.path(out, FOLDER)
  for each in (whole, folder):  # what was being written, and states
    for path in glob.glob(os.path.join(glob.escape(each), "*.*")):
      if records.exists(out, "networks", os.path.basename(path).split(".")[0]):
        shutil.rmtree(path, ignore_errors=True)  # others may clear, too
  with contextlib.suppress(OSError):  # not there, or not empty
    os.rmdir(folder)


def _facts(session: Session, pack: Pack) -> dict[str, Any]:
  """What the last bit of a pack's rows depends on besides its identity."""
  layout = sessions.layout_of(session, pack)
  full = sessions.padded(pack, layout)
  mapped = {
    field.name: getattr(layout, field.name)
    for field in dataclasses.fields(layout)
    if field.name != "devices"
  }
  packages = ("jax", "jaxlib", "flax", "optax", "numpy")
  versions = {name: importlib.metadata.version(name) for name in packages}
  return {
    "minarch_jax": minarch_jax.__version__,
    **versions,
    "devices": [device.device_kind for device in layout.devices],
    **mapped,
    "parent": str(full.parent),
    "slots": full.slots,
    "places of seeds": len(full.seeds),
    "epochs of a call": sessions.epochs_per_call(full, session),
  }


class _Unfinished:
  """The keeper of one pack."""

  def __init__(self, out: str, facts: dict[str, Any], seconds: float):
    self._facts, self._apart = facts, seconds
    self._stem = checkpoints.path(out, os.path.join(FOLDER, facts["part"]))
    self._folder = f"{self._stem}.{records.content_id(facts)[:8]}"
    self._last = time.monotonic()
    self._writer = futures.ThreadPoolExecutor(1)  # starts when first used
    self._written: futures.Future | None = None

  def due(self) -> bool:
    return time.monotonic() - self._last >= self._apart

  def keep(self, kept: Kept) -> None:
    self._last = time.monotonic()
    tree = {
      "state": checkpoints.numbered(jax.tree.leaves(kept.state)),
      "curve": checkpoints.numbered(jax.tree.leaves(kept.curve)),
      "seconds": np.array([kept.seconds]),
      "facts": np.frombuffer(json.dumps(self._facts).encode(), np.uint8),
    }
    self._wait()
    with self._saving():
      os.makedirs(self._folder, exist_ok=True)  # or else fails at once
      before = _finished(self._folder)
      if kept.epochs in before:  # it was stopped before it got any further
        return
      target = os.path.join(self._folder, str(kept.epochs))
      self._written = self._writer.submit(checkpoints.write, target, tree)
      for epochs in before[:-1]:  # the last one until this one is complete
        shutil.rmtree(os.path.join(self._folder, str(epochs)))

  def load(self, like: TrainState) -> Kept | None:
    """Returns the last state that can be used, and says which cannot."""
    for path in glob.glob(os.path.join(glob.escape(self._folder), "*-tmp*")):
      shutil.rmtree(path)  # what was being written when a process ended
    for epochs in reversed(_finished(self._folder)):
      target = os.path.join(self._folder, str(epochs))
      try:
        kept = self._restored(target, like)
      except ConfigError as error:
        os.replace(target, f"{target}.damaged")
        say(f"not used, and set aside: {error}")
      else:
        say(f"going on after {epochs} epochs of {self._facts['parent']}")
        return kept
    for folder in glob.glob(f"{glob.escape(self._stem)}.*"):
      if folder != self._folder:
        self._say_difference(folder)

  def _restored(self, target: str, like: TrainState) -> Kept:
    tree = checkpoints.read(target)
    if _facts_in(tree) != self._facts:
      raise checksums.damaged(target, "it is of another pack")
    state, curve = (checkpoints.listed(tree[n]) for n in ("state", "curve"))
    leaves, structure = jax.tree.flatten(like)
    if [(a.shape, a.dtype) for a in state] != [
      (a.shape, a.dtype) for a in leaves
    ]:
      raise checksums.damaged(target, "its arrays are not those of the pack")
    return Kept(
      jax.tree.unflatten(structure, state),
      Curve(Step(*curve[:2]), Score(*curve[2:])),
      float(tree["seconds"][0]),
    )

  def _say_difference(self, folder: str) -> None:
    for epochs in reversed(_finished(folder)):
      with contextlib.suppress(ConfigError):
        found = _facts_in(checkpoints.read(os.path.join(folder, str(epochs))))
        names = [n for n in self._facts if found.get(n) != self._facts[n]]
        was, now = (
          ", ".join(f"{name} {facts.get(name)}" for name in names)
          for facts in (found, self._facts)
        )
        say(f"{folder}/{epochs} is not used: it is of {was}; this is {now}")

  def close(self) -> None:
    """Waits until what is being saved is there."""
    self._wait()
    self._writer.shutdown()

  def _wait(self) -> None:
    written, self._written = self._written, None  # an error is told once
    with self._saving():
      if written:
        written.result()

  def remove(self) -> None:
    for folder in glob.glob(f"{glob.escape(self._stem)}.*"):
      shutil.rmtree(folder, ignore_errors=True)

  @contextlib.contextmanager
  def _saving(self) -> Iterator[None]:
    """Trains on where a state cannot be kept: it only saves time."""
    try:
      yield
    except Exception as error:  # of whichever layer could not write
      say(f"{self._folder} cannot be written ({error}); training goes on")


def _finished(folder: str) -> list[int]:
  """Lists after how many epochs a state was kept, in rising order."""
  names = os.listdir(folder) if os.path.isdir(folder) else []
  return sorted(int(name) for name in names if name.isdigit())


def _facts_in(tree: dict[str, Any]) -> dict[str, Any]:
  return json.loads(tree["facts"].tobytes())
