"""Saves and restores the parameters of packs with orbax.

One checkpoint holds one pack: its stacked parameters at the members' true
shapes. What a checkpoint contains is known from its name alone: the id of the
part file written after it. A digest of the arrays lies among them, and one of
all files beside them: what is damaged is found before orbax parses it, whose
threads would print tracebacks.
"""

from collections.abc import Iterator, Sequence
import contextlib
import errno
import glob
import hashlib
import os
import pathlib
import shutil
import threading
from typing import Any
import uuid

import jax
import numpy as np

from minarch_jax import checksums, records
from minarch_jax.types import Params

_DIGEST, _SEAL = "digest", "sha256"
# Threads that save at the same time lose each other's arrays (orbax 0.12).
_ALONE = threading.Lock()


def path(out: str, id: str) -> str:
  """Names the directory of a pack's checkpoint."""
  return os.path.abspath(os.path.join(out, "checkpoints", id))


def save(out: str, id: str, params: Sequence[Params]) -> None:
  """Saves one tree per architecture (numpy, leading seed axis), atomically.

  Under a name of its own until it is complete: another process may save the
  same. What is there, left by a run that ended before its part file, is
  replaced.
  """
  target = path(out, id)
  own = f"{target}.{uuid.uuid4().hex[:8]}"
  try:
    write(own, numbered(params))
    while not _renamed(own, target):
      with contextlib.suppress(FileNotFoundError):
        os.rename(target, f"{own}.before")
  finally:
    for left in glob.glob(f"{glob.escape(own)}*"):
      shutil.rmtree(left, ignore_errors=True)


def _renamed(own: str, target: str) -> bool:
  """Gives a directory its name, unless another one has it."""
  try:
    os.rename(own, target)
  except OSError as error:
    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
      raise
    return False
  return True


def numbered(trees: Sequence[Params]) -> dict[str, Params]:
  """Names trees by their places, as orbax wants them."""
  return {str(i): tree for i, tree in enumerate(trees)}


def listed(trees: dict[str, Params]) -> list[Params]:
  """Undoes `numbered`."""
  return [trees[str(i)] for i in range(len(trees))]


def write(target: str, tree: dict[str, Params]) -> None:
  """Saves a tree and its digest in a directory that is there once all is."""
  tree = jax.tree.map(np.asarray, tree)
  tree[_DIGEST] = _digest(tree)
  fresh = f"{target}-tmp"
  if os.path.exists(fresh):
    shutil.rmtree(fresh)  # left by a process that ended here
  with _checkpointer() as checkpointer:
    checkpointer.save(fresh, _orbax().args.StandardSave(tree))
  with records.atomic(os.path.join(fresh, _SEAL)) as path:
    pathlib.Path(path).write_text(_seal(fresh))
  os.rename(fresh, target)


def _seal(folder: str) -> str:
  """SHA-256 of the names and contents of all files but the seal."""
  digest, root = hashlib.sha256(), pathlib.Path(folder)
  for file in sorted(root.rglob("*")):
    name = str(file.relative_to(root))
    if file.is_file() and not name.startswith(_SEAL):
      content = hashlib.sha256(file.read_bytes()).hexdigest()
      digest.update(f"{name} {content}\n".encode())
  return digest.hexdigest()


def _is_sealed(folder: str) -> bool:
  """Says whether all files are as written; those of 0.1 have no seal."""
  try:
    seal = pathlib.Path(folder, _SEAL).read_bytes()
  except FileNotFoundError:
    return True
  return seal == _seal(folder).encode()


def _digest(tree: Params) -> np.ndarray:
  """SHA-256 of all names, types, shapes and values, as 32 bytes."""
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} "
    digest.update(name.encode() + leaf.tobytes())
  return np.frombuffer(digest.digest(), np.uint8)


def _orbax() -> Any:
  # Half a second, for which the start of training does not wait.
  import orbax.checkpoint

  return orbax.checkpoint


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
  """Saves and reads one thing at a time, as the only process there is.

  Of several that are one program orbax has the first write what numpy holds,
  and the others wait; here each has packs of its own.
  """
  ocp = _orbax()
  # Synchronous: an asynchronous save to a full disk fails minutes later.
  alone = ocp.options.MultiprocessingOptions(0, active_processes={0})
  handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
  with _ALONE, _as_the_first():
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as found:
      yield found


@contextlib.contextmanager
def _as_the_first() -> Iterator[None]:
  if jax.process_count() == 1:
    yield
    return
  from orbax.checkpoint._src.multihost import multihost

  before = multihost.process_index
  multihost.process_index = lambda: 0
  try:
    yield
  finally:
    multihost.process_index = before


def load(out: str, id: str) -> list[Params]:
  """Restores what `save` saved, as numpy arrays.

  Raises:
    FileNotFoundError: there is no such checkpoint.
    ConfigError: it does not hold what was saved.
  """
  target = path(out, id)
  if not os.path.isdir(target):
    raise FileNotFoundError(
      f"{target} is missing: the tables are there but not the trained "
      "parameters; copy the checkpoints too, or let --repair train them anew"
    )
  return listed(read(target))


def read(target: str) -> dict[str, Params]:
  """Reads the tree of a directory that `write` made, as numpy arrays.

  Raises:
    ConfigError: it does not hold what was saved.
  """
  if not _is_sealed(target):
    raise checksums.damaged(target, "its files are not those it was given")
  try:
    tree = _restored(target)
  except Exception as error:  # of whichever layer stumbled over the bytes
    why = f"orbax cannot read it ({type(error).__name__})"
    raise checksums.damaged(target, why) from error
  digest = tree.pop(_DIGEST, None)
  if digest is None or not np.array_equal(digest, _digest(tree)):
    raise checksums.damaged(target, "its arrays are not those it was given")
  return tree


def _restored(target: str) -> Params:
  with _checkpointer() as checkpointer:
    structure: Any = checkpointer.metadata(target).item_metadata
    abstract = jax.tree.map(
      lambda leaf: np.empty(leaf.shape, leaf.dtype), structure.tree
    )
    tree = checkpointer.restore(
      target, args=_orbax().args.StandardRestore(abstract)
    )
  return jax.tree.map(np.asarray, tree)
