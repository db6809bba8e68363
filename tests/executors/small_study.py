"""The tiny study in packs of one network each, as one of several processes.

  python -m tests.executors.small_study OUT [hang]

One that hangs stops for good in the middle of its first pack, and says so.
"""

import contextlib
import sys
import time
from unittest import mock

from minarch_jax.engine import costs, machine, packs, planning
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


def _hang(*unused, **unused_too):
  print(HANGING, flush=True)
  time.sleep(3600)


def main(out, how=""):
  with contextlib.ExitStack() as stack:
    here = mock.patch.object(machine, "here", lambda: costs.REFERENCE)
    stack.enter_context(here)
    if how == "hang":
      stack.enter_context(mock.patch.object(packs, "train", _hang))
    run(out)


if __name__ == "__main__":
  main(*sys.argv[1:])
