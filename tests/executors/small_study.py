"""The tiny study in packs of one network each, as one of several processes.

  python -m tests.executors.small_study OUT [HOW [HOST:PORT COUNT NUMBER]]

Where HOW is hang it stops for good in the middle of its first pack, and says
so. With more words it is one of several processes of one program.
"""

import collections
import contextlib
import sys
import time
from unittest import mock

import minarch_jax as ma
from minarch_jax import records
from minarch_jax.engine import costs, machine, packs, planning
from minarch_jax.executors import hosts as several
from tests import tiny_study

CHANGES = {
  "architectures": ("dnn:3", "dnn:4", "dnn:5", "dnn:6"),
  "num_epochs": 1,
  "sparsities": (0.0, 0.5),
  "controls": (),
}
PACKS = len(CHANGES["architectures"])
HANGING = "hanging"


def of_one_network():
  """Plans as many packs as there are networks, all of one program."""
  return mock.patch.object(planning, "MAX_MEMBERS", 1)


def run(out, **changes):
  """Runs the study into a directory; the lines about the packs it ran."""
  with of_one_network():
    return tiny_study.run(out, **CHANGES, **changes)


def assert_shared(out, alone):
  """The tables of one process; every pack in study.json, and once."""
  tiny_study.assert_same_tables(
    ma.read_records(str(out)), ma.read_records(str(alone))
  )
  lines = tiny_study.packs(out)
  assert collections.Counter(line["stage"] for line in lines) == {
    "train": PACKS,
    "compress": PACKS,
  }
  names = {path.name for path in out.iterdir()}
  assert names == {"checkpoints", "records", "study.json"}
  ids = set(records.ids(str(out), "networks"))
  assert {path.name for path in (out / "checkpoints").iterdir()} == ids


def wait_until(condition):
  for _ in range(9000):
    if condition():
      return
    time.sleep(0.1)
  raise AssertionError("nothing happened")


def _hang(*unused, **unused_too):
  print(HANGING, flush=True)
  time.sleep(3600)


def main(out, how="", *hosts):
  with contextlib.ExitStack() as stack:
    here = mock.patch.object(machine, "here", lambda: costs.REFERENCE)
    stack.enter_context(here)
    if how == "hang":
      stack.enter_context(mock.patch.object(packs, "train", _hang))
    if hosts:
      where, count, number = hosts
      found = several.Hosts(where, int(count), int(number))
      quick = {"HEARTBEAT_SECONDS": 4, "SEEN_SECONDS": 1.0}
      stack.enter_context(mock.patch.multiple(several, **quick))
      stack.enter_context(several.joined(found, out))
    run(out)
    print("done", flush=True)


if __name__ == "__main__":
  main(*sys.argv[1:])
