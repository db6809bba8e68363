r"""Asks how near forecasts come to what packs, and a whole study, take.

  python -m experiments.benchmarks.forecast
  python -m experiments.benchmarks.forecast --dataset=mnist --data_dir=DIR \
    --study=--num_epochs=3

Runs a study twice in processes of its own, each with an empty results directory
and no compiled programs: the first as on a machine that has only been probed,
the second with what was learned from the first. A row per pack says for how
long it was in progress and how long was foretold; the last rows are the sums of
each stage and the whole from start to end.
"""

from collections.abc import Iterator, Sequence
import os
import re
import subprocess
import sys
import tempfile
import time

from absl import flags

from experiments import common
from experiments.benchmarks import measure
from minarch_jax import config, records

measure.define_flags()
flags.adopt_module_key_flags(measure)
flags.DEFINE_multi_string(
  "study", [], "A flag of the study, as --study=--num_seeds=1; may repeat."
)
QUICK = (
  *("--grid=tiny", "--families=dnn", "--design=sweep"),
  *("--num_seeds=1", "--num_epochs=1"),
)
NAMES = ("probed", "learned")


def told(text: str) -> float:
  """Reads the seconds of all parts from what --dry_run prints."""
  clocks = re.findall(r"about ([\d:]+) in all", text)
  seconds = 0
  for part in clocks[-1].split(":"):
    seconds = 60 * seconds + int(part)
  return float(seconds)


def ran(out: str, cache: str, programs: str, arguments: Sequence[str]) -> str:
  """Runs a study; returns what it prints."""
  command = [sys.executable, "-m", "experiments.study", f"--out={out}"]
  command += [f"--compilation_cache_dir={programs}", *arguments]
  done = subprocess.run(
    command,
    capture_output=True,
    text=True,
    cwd=measure.ROOT,
    env={**os.environ, "XDG_CACHE_HOME": cache},
  )
  if done.returncode:
    raise RuntimeError(f"the study failed:\n{done.stderr[-2000:]}")
  return done.stdout


def row(name: str, took: float, foretold: float, **facts: str) -> measure.Row:
  ratio = took / foretold if foretold else float("nan")
  return {
    **facts,
    "name": name,
    "took (s)": took,
    "foretold (s)": foretold,
    "ratio": ratio,
  }


def rows_of(
  run: str, out: str, took: float, foretold: float
) -> Iterator[measure.Row]:
  """Sets what a study took beside what was foretold."""
  lines = records.read_json(os.path.join(out, "study.json"))["packs"]
  for line in lines:
    facts = {"run": run, "stage": line["stage"], "dataset": line["dataset"]}
    seconds = line["run_seconds"], line["forecast_seconds"]
    yield row(line["parent"], *seconds, **facts)
  for stage in dict.fromkeys(line["stage"] for line in lines):
    own = [line for line in lines if line["stage"] == stage]
    sums = (
      sum(line[f"{kind}_seconds"] for line in own)
      for kind in ("run", "forecast")
    )
    facts = {"run": run, "stage": stage, "dataset": "all"}
    yield row(f"{len(own)} packs", *sums, **facts)
  facts = {"run": run, "stage": "all", "dataset": "all"}
  yield row("from start to end", took, foretold, **facts)


def stage(settings: config.Config) -> None:
  asked = [f"--dataset={settings.dataset}"]
  asked += [f"--data_dir={settings.data_dir}"] * bool(settings.data_dir)
  asked += [*(QUICK if flags.FLAGS.quick else ()), *flags.FLAGS.study]
  rows = []
  with tempfile.TemporaryDirectory(prefix="minarch-forecast-") as directory:
    cache = os.path.join(directory, "cache")
    for run in NAMES:
      out = os.path.join(directory, run)
      measure.say(f"{run}: the plan")
      programs = os.path.join(directory, f"programs-{run}")
      foretold = told(ran(out, cache, programs, [*asked, "--dry_run"]))
      measure.say(f"{run}: the study, about {foretold:.0f} s")
      start = time.perf_counter()
      ran(out, cache, programs, asked)
      rows += rows_of(run, out, time.perf_counter() - start, foretold)
  measure.finish("Forecasts", settings.out, "forecast", rows)


if __name__ == "__main__":
  common.run(stage)
