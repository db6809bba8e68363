r"""Compares this engine with the PyTorch script one would otherwise write.

  python -m experiments.benchmarks.sweep_vs_pytorch --dataset=mnist \
    --data_dir=data --torch_python=torch-env/bin/python --out=results

Trains the same networks on the same images by the same recipe (batch 128,
Adam at 1e-3, validation after every epoch), alternately, each contestant in a
process of its own with the same number of threads:

  engine   packs of many architectures and seeds
  eager    PyTorch, one network after another
  compile  the same, every architecture compiled once by torch.compile
  vmap     PyTorch, the seeds of an architecture stacked by torch.func

`step` is milliseconds per network and minibatch once everything is compiled,
validation included; `busy` the same in time of all processors together, which
other users of the machine disturb less. `cold` and `warm` are seconds from
process start to process end for 10 epochs, without and with the programs an
earlier run compiled; PyTorch runs 1 epoch, the other 9 are extrapolated.
Ratios are medians over the repetitions' own ratios. PyTorch gets the better of
its default threading and OMP_WAIT_POLICY=passive, and the fused Adam.
"""

from collections.abc import Callable
import functools
import itertools
import math
import os
import subprocess
import sys
import tempfile

from absl import flags

from experiments import common
from experiments.benchmarks import measure
from minarch_jax import config, data

measure.define_flags("dnn", "cnn", "cnn1", "vit")
flags.adopt_module_key_flags(measure)
_PYTHON = flags.DEFINE_string(
  "torch_python", sys.executable, "Interpreter of an environment with torch."
)

METHODS = ("eager", "compile", "vmap")
OPENMP = {
  "default": {},
  "passive": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
}
PROBE_SECONDS = 120.0  # beyond it, spinning threads have collapsed
LOSS_TOLERANCE = 1e-4


def check_torch() -> None:
  """Raises ConfigError unless the interpreter has PyTorch."""
  try:
    command = [_PYTHON.value, "-c", "import torch"]
    found = subprocess.run(command, capture_output=True).returncode == 0
  except OSError:
    found = False
  if not found:
    raise config.ConfigError(
      f"--torch_python={_PYTHON.value} has no PyTorch; name the interpreter "
      "of an environment with `pip install torch==2.13.0 numpy`"
    )


def run_torch(job: measure.Job, openmp: str, **options) -> measure.Row:
  return measure.run(
    "run_pytorch",
    job,
    python=os.path.abspath(_PYTHON.value)
    if os.path.dirname(_PYTHON.value)
    else _PYTHON.value,
    environment=OPENMP[openmp],
    **options,
  )


def agree(directory: str, workload: measure.Workload, images: int) -> float:
  """Trains three steps in both from equal values; returns the loss gap.

  Raises:
    RuntimeError: the networks are not the same.
  """
  few = measure.Workload(
    workload.architectures[-1:], 1, 3 * measure.RECIPE["batch_size"] / images
  )
  job = measure.job(directory, few, epochs=1, check=True, config={})
  ours, theirs = measure.run("run_engine", job), run_torch(job, "passive")
  gap = abs(ours["loss"] - theirs["loss"])
  if ours["steps"] != theirs["steps"] or not gap <= LOSS_TOLERANCE:
    raise RuntimeError(
      f"{few.architectures[0]}: mean loss of the first {ours['steps']} steps "
      f"is {ours['loss']} here and {theirs['loss']} in PyTorch"
    )
  return gap


def choose_openmp(directory: str, workload: measure.Workload) -> str:
  """Finds PyTorch's faster threading by a few steps of one network."""
  some = measure.Workload(workload.architectures[-1:], 1, 0.05)
  job = measure.job(directory, some, epochs=2, method="eager")

  def seconds(openmp):
    try:
      return run_torch(job, openmp, timeout=PROBE_SECONDS)["epoch_seconds"]
    except subprocess.TimeoutExpired:
      return math.inf

  return min(OPENMP, key=seconds)


def contestants(
  directory: str, workload: measure.Workload, openmp: str, programs: str
) -> dict[str, Callable[[], measure.Row]]:
  """Lists the runs of a workload; whole runs where it asks for them.

  `programs` is an empty directory for compiled programs.
  """
  job = functools.partial(measure.job, directory, workload)
  fresh = itertools.count()

  def engine(folder, **facts):
    kept = {"compilation_cache_dir": os.path.join(programs, folder)}
    return measure.run("run_engine", job(**facts, config=kept))

  def torch(method):
    return run_torch(job(epochs=1, method=method), openmp)

  runs = {"steady": lambda: engine("steady", epochs=1, steady=1)}
  runs |= {method: functools.partial(torch, method) for method in METHODS}
  if workload.end_to_end:
    whole = {"epochs": measure.recipe()["num_epochs"], "steady": 0}
    measure.say("filling the cache of compiled programs")
    engine("warm", **whole)
    runs["cold"] = lambda: engine(f"cold-{next(fresh)}", **whole)
    runs["warm"] = lambda: engine("warm", **whole)
  return runs


def stage(settings: config.Config) -> None:
  check_torch()
  found = data.describe(settings.dataset, settings.data_dir or None)
  chosen = measure.chosen_workloads(found.input_shape)
  rows = []
  with measure.exported(settings) as directory:
    for name, workload in chosen.items():
      gap = agree(directory, workload, found.num_train)
      measure.say(f"{name}: losses agree to {gap:.1e} after three steps")
      openmp = (
        "passive" if flags.FLAGS.quick else choose_openmp(directory, workload)
      )
      with tempfile.TemporaryDirectory(prefix="minarch-programs-") as programs:
        results = measure.alternate(
          contestants(directory, workload, openmp, programs),
          measure.repetitions(),
        )
      facts = {"workload": name, "networks": workload.num_networks}
      rows += [
        {**facts, **row, "openmp": openmp}
        for row in measure.compare(workload, results, METHODS)
      ]
  measure.finish("Engine against PyTorch", settings.out, "pytorch", rows)


if __name__ == "__main__":
  common.run(stage)
