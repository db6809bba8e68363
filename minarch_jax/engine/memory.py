"""How much memory a pack may use: a share of what its devices have."""

from collections.abc import Iterator
import os
import pathlib

import jax

from minarch_jax.config import Config
from minarch_jax.engine import population

SHARE = 0.5  # predictions are rough, and packs are not all that needs memory
ASSUMED = 16 * 2**30  # bytes of an accelerator that does not say


def limit(config: Config) -> float:
  """Says how many bytes one pack may use, on all devices together.

  Where --memory_limit leaves it open, packs in progress share half of what
  there is; not of what is free: a plan must not depend on the hour.
  """
  if config.memory_limit:
    return config.memory_limit * 2**30
  devices = jax.local_devices()
  if population.platform(devices) == "cpu":
    total = machine()  # which the devices share
  else:
    stats = [device.memory_stats() or {} for device in devices]
    total = sum(each.get("bytes_limit", ASSUMED) for each in stats)
  return SHARE * total / config.packs_at_once


def machine(root: str = "/") -> int:
  """Counts the bytes of this machine, or of the container we are kept in."""
  found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
  for file in _limits(pathlib.Path(root)):
    try:
      found.append(int(file.read_text()))
    except (OSError, ValueError):  # there is none, or it says "max"
      pass
  return min(found)


def _limits(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """Names files that may limit a process, of its control group and those above.

  In /proc/self/cgroup stands "0::/group" for version 2 of control groups, and
  "4:memory:/group" for version 1.
  """
  try:
    lines = (root / "proc/self/cgroup").read_text().splitlines()
  except OSError:
    return
  for line in lines:
    _, controllers, group = line.split(":", 2)
    if not controllers:
      top, name = root / "sys/fs/cgroup", "memory.max"
    elif "memory" in controllers.split(","):
      top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
    else:
      continue
    own = top / group.lstrip("/")
    for folder in (own, *own.parents):
      yield folder / name
      if folder == top:
        break
