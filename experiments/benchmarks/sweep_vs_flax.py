r"""Compares this engine with the JAX script one would otherwise write.

  python -m experiments.benchmarks.sweep_vs_flax --dataset=mnist \
    --data_dir=data --out=results

The other script is flax.linen and optax with one jitted program for each
architecture: seeds vmapped, epochs and minibatches scanned, JAX's own choice
of devices. Both train the same networks on the same images by the same recipe
(10 epochs, batch 128, Adam at 1e-3, validation after every epoch),
alternately, each in a process of its own.

`cold` and `warm` are seconds from process start to process end, without and
with the programs an earlier run compiled; `step` is milliseconds per network
and minibatch once everything is compiled, `busy` the same in time of all
processors together. Ratios are medians over the repetitions' own ratios.
Convolutions inside a scan are so slow on CPU that the `cnn` workloads are not
run unless named.
"""

from collections.abc import Callable
import functools
import itertools
import os
import tempfile

from absl import flags

from experiments import common
from experiments.benchmarks import measure
from minarch_jax import config, data

measure.define_flags("dnn", "vit")
flags.adopt_module_key_flags(measure)

MODULES = {"engine": "run_engine", "flax": "run_flax"}


def contestants(
  directory: str, workload: measure.Workload, programs: str
) -> dict[str, Callable[[], measure.Row]]:
  """Lists the runs of a workload; whole runs where it asks for them.

  `programs` is an empty directory for compiled programs.
  """
  job = functools.partial(measure.job, directory, workload)
  fresh = itertools.count()

  def run(name, folder, **facts):
    kept = {"compilation_cache_dir": os.path.join(programs, f"{name}-{folder}")}
    return measure.run(MODULES[name], job(**facts, **kept, config=kept))

  def cold(name):
    return run(name, f"cold-{next(fresh)}", **whole)

  steady = {"epochs": 1, "steady": 1}
  whole = {"epochs": measure.recipe()["num_epochs"], "steady": 0}
  runs = {
    "steady": functools.partial(run, "engine", "steady", **steady),
    "flax": functools.partial(run, "flax", "steady", **steady),
  }
  if workload.end_to_end:
    measure.say("filling the caches of compiled programs")
    for name, prefix in (("engine", ""), ("flax", "flax ")):
      run(name, "warm", **whole)
      runs[f"{prefix}cold"] = functools.partial(cold, name)
      runs[f"{prefix}warm"] = functools.partial(run, name, "warm", **whole)
  return runs


def stage(settings: config.Config) -> None:
  found = data.describe(settings.dataset, settings.data_dir or None)
  rows = []
  chosen = measure.chosen_workloads(found.input_shape)
  with measure.exported(settings) as directory:
    for name, workload in chosen.items():
      with tempfile.TemporaryDirectory(prefix="minarch-programs-") as programs:
        results = measure.alternate(
          contestants(directory, workload, programs), measure.repetitions()
        )
      facts = {"workload": name, "networks": workload.num_networks}
      compared = measure.compare(workload, results, ("flax",))
      rows += [{**facts, **row} for row in compared]
  measure.finish("Engine against Flax", settings.out, "flax", rows)


if __name__ == "__main__":
  common.run(stage)
