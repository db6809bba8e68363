r"""Measures how to lay populations out on a machine, and can keep the answer.

  python -m experiments.benchmarks.mapping --dataset=mnist --data_dir=data \
    --out=results --write

Inside one program, seeds and members are vmapped or mapped one after another,
and convolutions have several formulations; which is fastest depends on the
family and on the machine. Every combination gives the same numbers. Each is
trained in a process of its own; one that takes ten times as long as the
quickest so far is given up. `step` is microseconds per network and minibatch
of 128, everything compiled; `busy` the same in time of all processors
together; `cost` is relative to the best step.

With --write the best combination of every family (by the geometric mean of its
costs) is kept for this kind of device in the user's cache directory.
"""

from collections.abc import Iterator, Sequence
import itertools
import json
import math
import os
import subprocess
from typing import NamedTuple

from absl import flags

from experiments import common
from experiments.benchmarks import measure
from minarch_jax import config, data
from minarch_jax import flags as config_flags
from minarch_jax.architectures import Shape
from minarch_jax.architectures.vit import patch_sizes
from minarch_jax.engine import population

config_flags.define("families")
measure.define_flags()
flags.adopt_module_key_flags(measure)
_WRITE = flags.DEFINE_boolean(
  "write", False, "Keep the best combinations for later runs."
)

BUSY = "epoch_busy_seconds"
PATIENCE = 10.0  # times the fastest process so far


class Population(NamedTuple):
  """A pack that a family is judged by."""

  architecture: str
  members: int
  seeds: int
  share: float


class Layout(NamedTuple):
  """A combination, in the words of the flags that choose it."""

  seed_mapping: str
  member_mapping: str
  convolution: str


def populations(family: str, input_shape: Shape) -> list[Population]:
  """Lists the packs of a family."""
  patch = patch_sizes(input_shape)[-1]
  return {
    "dnn": [
      Population("dnn:5-5", 16, 4, 0.1),
      Population("dnn:50-50", 8, 4, 0.05),
    ],
    "cnn": [
      Population("cnn:8", 4, 4, 0.005),
      Population("cnn:8-16", 4, 4, 0.005),
    ],
    "vit": [
      Population(f"vit:p{patch}-d8-l2-h2", 4, 4, 0.02),
      Population(f"vit:p{patch}-d32-l2-h4", 2, 4, 0.02),
    ],
  }[family]


def layouts(family: str) -> Iterator[Layout]:
  """Lists the combinations, the likely ones first."""
  forms = ("hybrid", "im2col", "stock") if family == "cnn" else ("stock",)
  for form in forms:
    for seeds, members in itertools.product(("map", "vmap"), repeat=2):
      yield Layout(seeds, members, form)


def measured(
  directory: str, population: Population, layout: Layout, timeout: float | None
) -> measure.Row | None:
  """Trains a pack laid out one way; None when it takes too long."""
  text, members, seeds, share = population
  job = measure.job(
    directory,
    measure.Workload((text,), seeds, share),
    epochs=1,
    members=members,
    steady=measure.repetitions(),
    config={"compilation_cache_dir": "", **layout._asdict()},
  )
  try:
    return measure.run("run_engine", job, timeout=timeout)
  except subprocess.TimeoutExpired:
    return None


def measure_population(
  directory: str, population: Population, candidates: Sequence[Layout]
) -> dict[Layout, measure.Row]:
  """Measures the combinations that are not given up."""
  found: dict[Layout, measure.Row] = {}
  for layout in candidates:
    measure.say(f"{population.architecture}: {' '.join(layout)}")
    walls = [result["wall_seconds"] for result in found.values()]
    timeout = PATIENCE * min(walls) if walls else None
    result = measured(directory, population, layout, timeout)
    if result:
      found[layout] = result
  return found


def measure_family(
  directory: str, family: str, input_shape: Shape
) -> tuple[list[measure.Row], str, Layout]:
  """Measures a family; returns rows, the backend and the best combination."""
  rows, backend = [], ""
  costs: dict[Layout, float] = {}
  quick = flags.FLAGS.quick
  candidates = list(layouts(family))[: 2 if quick else None]
  for networks in populations(family, input_shape)[: 1 if quick else None]:
    found = measure_population(directory, networks, candidates)
    best = min(map(measure.per_step, found.values()))
    for layout in candidates:
      result = found.get(layout)
      step = measure.per_step(result) if result else math.inf
      backend = result["backend"] if result else backend
      costs[layout] = costs.get(layout, 1.0) * step / best
      busy = measure.per_step(result, BUSY) if result else math.inf
      facts = {**networks._asdict(), **layout._asdict()}
      figures = {"step (us)": 1e6 * step, "busy (us)": 1e6 * busy}
      rows.append({**facts, **figures, "cost": step / best})
  return rows, backend, min(costs, key=lambda layout: costs[layout])


def keep(choices: dict[str, Sequence[str]]) -> str:
  """Adds choices to the kept ones, in one replacement of the file."""
  path = population.table_path()
  before = {}
  if os.path.exists(path):
    with open(path) as file:
      before = json.load(file)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  with open(f"{path}.new", "w") as file:
    json.dump(before | choices, file, indent=2)
  os.replace(f"{path}.new", path)
  return path


def stage(settings: config.Config) -> None:
  found = data.describe(settings.dataset, settings.data_dir or None)
  families = settings.families[: 1 if flags.FLAGS.quick else None]
  rows, choices = [], {}
  with measure.exported(settings) as directory:
    for family in families:
      more, backend, best = measure_family(directory, family, found.input_shape)
      rows += more
      choices[f"{family}/{backend}"] = best
  measure.finish("Layouts", settings.out, "mapping", rows)
  for key, layout in choices.items():
    print(f"  {key}: seeds {layout[0]}, members {layout[1]}, {layout[2]}")
  if _WRITE.value:
    print(f"  kept in {keep(choices)}")


if __name__ == "__main__":
  common.run(stage)
