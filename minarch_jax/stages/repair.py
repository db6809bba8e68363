"""Sets aside what a results directory holds and nobody can use."""

import os
import sys

from minarch_jax import records
from minarch_jax.config import ConfigError
from minarch_jax.stages import checkpoints

FOLDER = "damaged"


def set_aside(out: str) -> list[str]:
  """Moves damaged files to <out>/damaged, so that stages make them anew.

  Nothing is deleted. With a damaged part or checkpoint goes all that was
  written under its id, since a network that is half there cannot be told from
  a wrong one.

  Returns:
    What was moved, relative to <out>.
  """
  broken = {id for _, id in records.damaged(out)}
  whole = [id for id in records.ids(out, "networks") if id not in broken]
  broken |= {id for id in whole if not _readable(out, id)}
  names = [
    records.part(out, table, id) for table in records.SCHEMAS for id in broken
  ]
  names += [checkpoints.path(out, id) for id in broken]
  study = os.path.join(out, "study.json")
  try:
    records.read_json(study)
  except ConfigError:
    names.append(study)
  return [_move(out, name) for name in sorted(names) if os.path.exists(name)]


def _readable(out: str, id: str) -> bool:
  try:
    checkpoints.load(out, id)
  except (ConfigError, OSError):
    return False
  return True


def _move(out: str, path: str) -> str:
  """Moves a file or folder under <out>/damaged, beside what lies there."""
  name = os.path.relpath(path, out)
  target = os.path.join(out, FOLDER, name)
  os.makedirs(os.path.dirname(target), exist_ok=True)
  taken = 0
  while os.path.exists(free := f"{target}.{taken}" if taken else target):
    taken += 1
  os.replace(path, free)
  print(f"set aside: {name} -> {os.path.relpath(free, out)}", file=sys.stderr)
  return name
