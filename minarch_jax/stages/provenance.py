"""What a results directory was made with: study.json."""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
from typing import Any

import jax

import minarch_jax
from minarch_jax import records
from minarch_jax.config import Config
from minarch_jax.engine import memory
from minarch_jax.engine.costs import Machine
from minarch_jax.engine.session import Session
from minarch_jax.executors import leases

STUDY = "study.json"


def describe(
  session: Session,
  statistics: Sequence[Mapping[str, Any]],
  config: Config | None = None,
) -> dict[str, Any]:
  """Says what a results directory was made with, for study.json.

  Args:
    session: what was run.
    statistics: a line per pack.
    config: that of the study; None = the session's own.
  """
  return {
    "config": _choices(config or session.config),
    "versions": {
      name: importlib.metadata.version(name)
      for name in ("jax", "flax", "optax", "numpy", "polars")
    }
    | {
      "minarch_jax": minarch_jax.__version__,
      "python": platform.python_version(),
    },
    "devices": [
      f"{device.platform}:{device.id} {device.device_kind}"
      for device in jax.local_devices()
    ],
    "machine": dataclasses.asdict(session.machine),
    "memory_limit": round(memory.limit(session.config) / 2**30, 2),
    "git_revision": revision(),
    "datasets": _described(session),
    "programs": len(session.programs),
    "packs": list(statistics),
  }


def _choices(config: Config) -> dict[str, Any]:
  found = dataclasses.asdict(config)
  if config.datasets:  # instead of which --dataset is not read
    del found["dataset"]
  return found


def machine(out: str) -> Machine | None:
  """Returns the machine that a results directory was begun for, if any."""
  left = records.read_json(_path(out)).get("machine")
  if not left:
    return None
  found = Machine.of(left["backend"], dict(left["factors"]))
  return dataclasses.replace(found, devices=left.get("devices", 0))


def recipes(out: str) -> dict[str, dict[str, Any]]:
  """Returns what was noted of every training recipe, by its id."""
  return records.read_json(_path(out)).get("recipes", {})


def agreed(
  session: Session, out: str, recipe: str, facts: Mapping[str, Any]
) -> Session:
  """Has a session plan as all that work in a results directory do.

  The first leaves what its plans go by, before any of them is carried out, and
  each what later runs compare theirs with.

  Args:
    session: what is going to run.
    out: the results directory.
    recipe: the id of its training recipe.
    facts: of that recipe.
  """
  mine = dataclasses.replace(session.machine, devices=jax.local_device_count())
  own = _jsonable(dataclasses.asdict(mine))

  def noted(before: dict[str, Any]) -> dict[str, Any]:
    known = {**before.get("recipes", {}), recipe: dict(facts)}
    return {"machine": own, **before, "recipes": known}

  before = records.read_json(_path(out))
  if noted(before) != before:
    with leases.alone(out, STUDY):
      records.write_json(_path(out), noted(records.read_json(_path(out))))
  return dataclasses.replace(session, machine=machine(out) or session.machine)


def _path(out: str) -> str:
  return os.path.join(out, STUDY)


def _described(session: Session) -> dict[str, Any]:
  dataset = session.dataset
  return {
    dataset.name: {
      "fingerprint": dataset.fingerprint,
      "train": len(dataset.train.y),
      "validation": len(dataset.validation.y),
      "folds": dataset.num_folds,
      "test": len(dataset.test.y),
      "test_note": dataset.test_note,
    }
  }


def note_dataset(session: Session, out: str) -> None:
  """Adds the data set of an arm to what study.json tells of."""
  path = _path(out)
  with leases.alone(out, STUDY):
    before = records.read_json(path)
    datasets = {**before.get("datasets", {}), **_described(session)}
    if datasets != before.get("datasets"):
      records.write_json(path, before | {"datasets": datasets})


def write(
  session: Session,
  out: str,
  statistics: Sequence[Mapping[str, Any]],
  config: Config | None = None,
) -> None:
  """Writes study.json, keeping what earlier runs left there; as `describe`."""
  now = describe(session, statistics, config)
  with leases.alone(out, STUDY):
    _add(_path(out), now)


def _add(path: str, now: dict[str, Any]) -> None:
  """Adds a description to what study.json tells of."""
  before, statistics = records.read_json(path), now["packs"]
  now["datasets"] = {**before.get("datasets", {}), **now["datasets"]}
  kept = ("config", "datasets")
  if not statistics and all(
    before.get(name) == _jsonable(now[name]) for name in kept
  ):
    return
  now["machine"] = before.get("machine", now["machine"])
  now["recipes"] = before.get("recipes", {})
  now["packs"] = [*before.get("packs", []), *statistics]
  records.write_json(path, now)


def _jsonable(value: Any) -> Any:
  return json.loads(json.dumps(value, default=list))


def revision() -> str:
  """Returns the commit of the checkout this code stands in, '' without one."""
  folder = os.path.dirname(os.path.abspath(__file__))
  try:
    found = subprocess.run(
      ["git", "-C", folder, "rev-parse", "HEAD"],
      capture_output=True,
      text=True,
      timeout=5,
    )
  except (OSError, subprocess.TimeoutExpired):
    return ""
  return found.stdout.strip()
