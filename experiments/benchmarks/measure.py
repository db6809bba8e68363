"""What every benchmark shares: the recipe, jobs in processes, tables.

Contestants run in processes of their own, so that start-up, compilation and
threads are what a user meets. A *job* is a dict of plain values; a contestant
reads it, trains, and prints one line of JSON.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import csv
import dataclasses
import datetime
import importlib.metadata
import json
import operator
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags
import numpy as np

from minarch_jax import architectures, config, data
from minarch_jax import flags as config_flags
from minarch_jax.architectures import vit

ROOT = os.path.dirname(
  os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
)

Row = dict[str, Any]
Job = Mapping[str, Any]

# Every contestant trains by this recipe.
RECIPE = {
  "num_epochs": 10,
  "batch_size": 128,
  "optimizer": "adam",
  "learning_rate": 1e-3,
  "schedule": "constant",
}

SQUARE_WIDTHS = (1, 2, 3, 5, 10, 20, 30, 50)


@dataclasses.dataclass(frozen=True)
class Workload:
  """Networks that are trained together, and the share of the data used.

  A steady step costs the same whatever the number of steps, so slow families
  are measured on a share of every split. `end_to_end` asks for whole runs too.
  """

  architectures: tuple[str, ...]
  num_seeds: int
  share: float = 1.0
  end_to_end: bool = False

  @property
  def num_networks(self) -> int:
    return len(self.architectures) * self.num_seeds


def workloads(input_shape: architectures.Shape) -> dict[str, Workload]:
  """Names the populations that the engine is measured on."""
  patch = vit.patch_sizes(input_shape)[-1]
  square = tuple(
    f"dnn:{'-'.join([str(width)] * depth)}"
    for depth in range(1, 5)
    for width in SQUARE_WIDTHS
  )
  single = tuple(f"cnn:{channels}" for channels in range(1, 33))
  return {
    "dnn": Workload(square, 4, end_to_end=True),
    "cnn": Workload(("cnn:16-32-32",), 8, 0.1),
    "cnn1": Workload(single, 4, 0.05),
    "vit": Workload((f"vit:p{patch}-d32-l2-h4",), 8, 0.25),
  }


def define_flags(*workloads: str) -> None:
  """Defines the flags of a benchmark; `workloads` are those it runs."""
  config_flags.define("dataset", "data_dir", "out")
  flags.DEFINE_integer(
    "repetitions", 3, "Repetitions; medians are reported.", lower_bound=1
  )
  flags.DEFINE_boolean(
    "quick",
    False,
    "One workload of few networks and steps: seconds, to see that it runs.",
  )
  if workloads:
    flags.DEFINE_list(
      "workloads",
      list(workloads),
      "Populations measured: dnn (32 square shapes, 4 seeds), cnn (16-32-32, "
      "8 seeds), cnn1 (one convolution of 1-32 channels, 4 seeds), vit (dim "
      "32, depth 2, 8 seeds).",
    )


def recipe() -> dict[str, Any]:
  """The recipe all contestants follow; two epochs when quick."""
  return RECIPE | ({"num_epochs": 2} if flags.FLAGS.quick else {})


def num_cores() -> int:
  """The cores this process may use."""
  return len(os.sched_getaffinity(0))


def repetitions() -> int:
  """How often everything is measured."""
  return 1 if flags.FLAGS.quick else flags.FLAGS.repetitions


def chosen_workloads(input_shape: architectures.Shape) -> dict[str, Workload]:
  """Returns the workloads of the flag, shrunk to seconds when quick.

  Raises:
    ConfigError: a name is unknown.
  """
  known = workloads(input_shape)
  found = {}
  for name in flags.FLAGS.workloads[: 1 if flags.FLAGS.quick else None]:
    config.check_choice("workloads", name, known)
    found[name] = known[name]
    if flags.FLAGS.quick:
      found[name] = dataclasses.replace(
        known[name],
        architectures=known[name].architectures[:2],
        num_seeds=2,
        share=0.1,
        end_to_end=False,
      )
  return found


# --- jobs --------------------------------------------------------------------


@contextlib.contextmanager
def exported(settings: config.Config):
  """Writes a data set's splits as .npy for all contestants; yields the path."""
  dataset = data.load(settings.dataset, settings.data_dir or None)
  with tempfile.TemporaryDirectory(prefix="minarch-benchmark-") as directory:
    for split in ("train", "validation", "test"):
      batch = getattr(dataset, split)
      np.save(os.path.join(directory, f"{split}_x.npy"), batch.x)
      np.save(os.path.join(directory, f"{split}_y.npy"), batch.y)
    yield directory


def job(directory: str, workload: Workload, **facts: Any) -> dict[str, Any]:
  """Describes the training of a workload on exported data."""
  return {
    "data": directory,
    "architectures": list(workload.architectures),
    "shapes": [
      dataclasses.asdict(architectures.Architecture.parse(text))
      for text in workload.architectures
    ],
    "seeds": list(range(workload.num_seeds)),
    "share": workload.share,
    "batch_size": RECIPE["batch_size"],
    "learning_rate": RECIPE["learning_rate"],
    "threads": num_cores(),
    **facts,
  }


def run(
  module: str,
  job: Job,
  *,
  python: str = sys.executable,
  environment: Mapping[str, str] | None = None,
  timeout: float | None = None,
) -> Row:
  """Runs a contestant's job in a new process.

  Args:
    module: a module of this directory that reads a job from its standard
      input.
    job: plain values.
    python: the interpreter; PyTorch may live in another environment.
    environment: variables added to this process's.
    timeout: seconds after which it is ended; None = never.

  Returns:
    What the contestant printed, and `wall_seconds` from its start to its end.

  Raises:
    RuntimeError: it failed; the message ends with what it said.
    subprocess.TimeoutExpired: it took too long.
  """
  start = time.perf_counter()
  done = subprocess.run(
    [python, "-m", f"experiments.benchmarks.{module}"],
    input=json.dumps(job),
    capture_output=True,
    text=True,
    timeout=timeout,
    cwd=ROOT,
    env={**os.environ, **(environment or {})},
  )
  wall = time.perf_counter() - start
  if done.returncode:
    raise RuntimeError(f"{module} failed:\n{done.stderr[-2000:]}")
  return {**json.loads(done.stdout.splitlines()[-1]), "wall_seconds": wall}


def alternate(
  contestants: Mapping[str, Callable[[], Row]], repetitions: int
) -> dict[str, list[Row]]:
  """Runs contestants in turn, every other round in the reverse order.

  A machine's mood then meets all of them alike.
  """
  results: dict[str, list[Row]] = {name: [] for name in contestants}
  for repetition in range(repetitions):
    for name in list(contestants)[:: -1 if repetition % 2 else 1]:
      say(f"repetition {repetition + 1} of {repetitions}: {name}")
      results[name].append(contestants[name]())
  return results


def per_step(result: Row, column: str = "epoch_seconds") -> float:
  """Seconds for each network and minibatch."""
  return result[column] / result["network_steps"]


def compare(
  workload: Workload,
  results: Mapping[str, Sequence[Row]],
  peers: Sequence[str],
) -> list[Row]:
  """Sets the runs of a workload side by side.

  Args:
    workload: what was trained.
    results: repetitions of `steady` and of every peer; with `end_to_end` also
      `cold` and `warm`. Peers that ran fewer epochs than the recipe are
      extrapolated by their epochs' time.
    peers: the other contestants.

  Returns:
    A row per quantity with medians, and medians of the ratios that each
    repetition gave.
  """

  def end(result):
    missing = recipe()["num_epochs"] - result["epochs"]
    return result["wall_seconds"] + missing * result["epoch_seconds"]

  quantities = [
    ("step (ms)", "steady", lambda r: 1e3 * per_step(r)),
    ("busy (ms)", "steady", lambda r: 1e3 * per_step(r, "epoch_busy_seconds")),
  ]
  if workload.end_to_end:
    quantities += [("cold (s)", "cold", end), ("warm (s)", "warm", end)]
  rows = []
  for quantity, ours, value in quantities:
    found = {"engine": [value(result) for result in results[ours]]}
    for peer in peers:
      # A peer may keep programs too; then it has a run of that name.
      runs = results.get(f"{peer} {ours}", results[peer])
      found[peer] = [value(result) for result in runs]
    row = {name: statistics.median(each) for name, each in found.items()}
    for peer in peers:
      ratios = map(operator.truediv, found[peer], found["engine"])
      row[f"{peer}/engine"] = statistics.median(ratios)
    rows.append({"quantity": quantity, **row})
  return rows


def say(text: str) -> None:
  """Reports progress where it does not mix with the table."""
  print(text, file=sys.stderr, flush=True)


# --- tables ------------------------------------------------------------------


def show(title: str, rows: Sequence[Row]) -> None:
  """Prints rows as a table; columns are the keys in order of appearance."""
  import rich.console
  import rich.table

  table = rich.table.Table(title=title, title_justify="left")
  columns = list(dict.fromkeys(key for row in rows for key in row))
  for column in columns:
    numeric = all(not isinstance(row.get(column), str) for row in rows)
    table.add_column(column, justify="right" if numeric else "left")
  for row in rows:
    table.add_row(*(_text(row.get(column)) for column in columns))
  terminal = sys.stdout.isatty()
  rich.console.Console(width=None if terminal else 140).print(table)


def _text(value: Any) -> str:
  if value is None:
    return ""
  return f"{value:.4g}" if isinstance(value, float) else str(value)


def finish(title: str, out: str, name: str, rows: Sequence[Row]) -> None:
  """Prints the table and writes it, with the machine it was measured on."""
  show(title, rows)
  print(f"  {describe_machine()}\n  table   {write(out, name, rows)}")


def describe_machine() -> str:
  """Names what decides the figures, as a row of README.md wants it."""
  from minarch_jax.engine import machine  # imports JAX
  from minarch_jax.stages import provenance

  versions = ", ".join(
    f"{name} {importlib.metadata.version(name)}" for name in ("jax", "flax")
  )
  return (
    f"{datetime.date.today()}, commit {provenance.revision()[:7] or 'unknown'}"
    f", {num_cores()} cores of {machine.processor()}, Python "
    f"{platform.python_version()}, {versions}, load of the last minute "
    f"{os.getloadavg()[0]:.1f}"
  )


def write(out: str, name: str, rows: Sequence[Row]) -> str:
  """Writes rows to <out>/benchmarks/<name>.csv and returns the path."""
  path = os.path.join(out, "benchmarks", f"{name}.csv")
  os.makedirs(os.path.dirname(path), exist_ok=True)
  columns = list(dict.fromkeys(key for row in rows for key in row))
  with open(path, "w", newline="") as file:
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    writer.writerows(rows)
  return path
