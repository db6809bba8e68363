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
from minarch_jax.engine.session import Session


def describe(
  session: Session, statistics: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
  """Says what a results directory was made with, for study.json."""
  dataset = session.dataset
  return {
    "config": dataclasses.asdict(session.config),
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
    "git_revision": revision(),
    "datasets": {
      dataset.name: {
        "fingerprint": dataset.fingerprint,
        "train": len(dataset.train.y),
        "validation": len(dataset.validation.y),
        "test": len(dataset.test.y),
        "test_note": dataset.test_note,
      }
    },
    "programs": len(session.programs),
    "packs": list(statistics),
  }


def write(
  session: Session, out: str, statistics: Sequence[Mapping[str, Any]]
) -> None:
  """Writes study.json, keeping what earlier runs left there."""
  path = os.path.join(out, "study.json")
  before, now = records.read_json(path), describe(session, statistics)
  if not statistics and before.get("config") == _jsonable(now["config"]):
    return
  now["datasets"] = {**before.get("datasets", {}), **now["datasets"]}
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
