"""The benchmarks run, teach their flags, and compare equal networks."""

import csv
import json
import math
import os
import statistics
import subprocess
import sys

import pytest

from experiments.benchmarks import measure
from minarch_jax.architectures import Architecture

BINARIES = {
  "sweep_vs_pytorch": "pytorch",
  "sweep_vs_flax": "flax",
  "scaling": "scaling",
  "roofline": "roofline",
  "mapping": "mapping",
  "paper_sweep": "paper_sweep",
  "precision": "precision",
  "forecast": "forecast",
  "transforms": "transforms",
}
# PyTorch lives in an environment of its own; name its interpreter to test it.
TORCH = os.environ.get("MINARCH_TORCH_PYTHON", "")


def start(name, *flags):
  """Starts a benchmark and its contestants as a user does."""
  quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  return subprocess.run(
    [sys.executable, "-m", f"experiments.benchmarks.{name}", *flags],
    capture_output=True,
    text=True,
    cwd=measure.ROOT,
    env={**os.environ, **quick},
  )


@pytest.fixture(scope="module")
def quickly(starter):
  """Runs a benchmark, and its contestants."""

  def run(name, *flags, **more):
    return starter.run(f"experiments.benchmarks.{name}", *flags, **more)

  return run


def read(out, name):
  with open(os.path.join(out, "benchmarks", f"{name}.csv")) as file:
    return list(csv.DictReader(file))


@pytest.mark.parametrize("name", BINARIES)
def test_help_teaches(quickly, name):
  done = quickly(name, "--help")
  assert f"python -m experiments.benchmarks.{name}" in done.stdout
  assert "--[no]quick" in done.stdout and "--out" in done.stdout


COLUMNS = {
  "sweep_vs_flax": "flax/engine",
  "scaling": "step (us)",
  "roofline": "step (us)",
  "paper_sweep": "share",
  "precision": "speed",
  "forecast": "ratio",
  "transforms": "ratio",
}


@pytest.mark.parametrize("name", COLUMNS)
def test_quick_run_writes_its_table(quickly, tmp_path, name):
  # Its own peaks are measured on devices, which cannot be forked afterwards.
  run = start if name == "roofline" else quickly
  done = run(name, "--quick", "--dataset=synthetic:easy", f"--out={tmp_path}")
  assert done.returncode == 0, done.stderr
  rows = read(tmp_path, BINARIES[name])
  assert rows and all(float(row[COLUMNS[name]]) > 0 for row in rows)


def test_mapping_is_measured_and_kept(quickly, tmp_path):
  done = quickly(
    "mapping",
    *("--quick", "--dataset=synthetic:easy", "--write", f"--out={tmp_path}"),
    XDG_CACHE_HOME=str(tmp_path),
  )
  assert done.returncode == 0, done.stderr
  rows = read(tmp_path, "mapping")
  best = min(rows, key=lambda row: float(row["step (us)"]))
  assert float(best["cost"]) == 1.0
  with open(tmp_path / "minarch_jax" / "mapping.json") as file:
    kept = json.load(file)
  assert kept == {
    "dnn/cpu": [best["seed_mapping"], best["member_mapping"], "stock"]
  }


@pytest.mark.skipif(not TORCH, reason="MINARCH_TORCH_PYTHON is not set")
@pytest.mark.parametrize("workload", ["dnn", "cnn", "cnn1", "vit"])
def test_pytorch_trains_the_same_networks(tmp_path, workload):
  done = start(
    "sweep_vs_pytorch",
    *("--quick", f"--workloads={workload}", f"--torch_python={TORCH}"),
    f"--out={tmp_path}",
  )
  assert done.returncode == 0, done.stderr
  assert "losses agree" in done.stderr
  assert [row["workload"] for row in read(tmp_path, "pytorch")] == [
    workload,
    workload,
  ]


def test_a_missing_peer_is_named(quickly, tmp_path):
  done = quickly(
    "sweep_vs_pytorch",
    *("--quick", "--torch_python=no-such-python", f"--out={tmp_path}"),
  )
  assert done.returncode != 0
  assert "--torch_python=no-such-python has no PyTorch" in done.stderr
  assert "Traceback" not in done.stderr


def test_an_unknown_workload_is_named(quickly, tmp_path):
  done = quickly("sweep_vs_flax", "--workloads=dnm", f"--out={tmp_path}")
  assert done.returncode != 0
  assert "--workloads=dnm" in done.stderr
  assert "did you mean 'dnn'?" in done.stderr


def test_workloads_are_those_of_the_issue():
  found = measure.workloads((28, 28, 1))
  assert found["dnn"].num_networks == 32 * 4
  assert found["cnn1"].num_networks == 32 * 4
  assert found["vit"].architectures == ("vit:p7-d32-l2-h4",)
  for workload in found.values():
    for text in workload.architectures:
      assert str(Architecture.parse(text)) == text


def test_comparison_takes_ratios_within_a_repetition():
  """A machine that slows down between repetitions does not move the ratio."""

  def result(seconds, busy):
    return {
      "epochs": 1,
      "network_steps": 10,
      "epoch_seconds": seconds,
      "epoch_busy_seconds": busy,
      "wall_seconds": seconds,
    }

  mood = (1.0, 5.0, 9.0)
  results = {
    "steady": [result(m, 2 * m) for m in mood],
    "peer": [result(3 * m, 4 * m) for m in reversed(mood)],
  }
  step, busy = measure.compare(
    measure.Workload(("dnn:2",), 1), results, ("peer",)
  )
  expected = statistics.median([27.0, 3.0, 3 / 9])
  assert math.isclose(step["peer/engine"], expected)
  assert math.isclose(step["engine"], 500.0)
  assert math.isclose(busy["engine"], 1000.0)


def test_missing_epochs_are_extrapolated(monkeypatch):
  monkeypatch.setattr(measure, "recipe", lambda: measure.RECIPE)
  whole = {
    "epochs": 10,
    "network_steps": 1,
    "epoch_seconds": 1.0,
    "epoch_busy_seconds": 1.0,
    "wall_seconds": 12.0,
  }
  one = {**whole, "epochs": 1, "epoch_seconds": 7.0, "wall_seconds": 9.0}
  results = {"steady": [whole], "cold": [whole], "warm": [whole], "peer": [one]}
  workload = measure.Workload(("dnn:2",), 1, end_to_end=True)
  cold = measure.compare(workload, results, ("peer",))[2]
  assert cold["engine"] == 12.0 and cold["peer"] == 9.0 + 9 * 7.0


def test_alternation_reverses_every_other_round():
  seen = []
  runs = {
    name: lambda n=name: seen.append(n) or {"name": n} for name in ("a", "b")
  }
  results = measure.alternate(runs, 3)
  assert seen == ["a", "b", "b", "a", "a", "b"]
  assert [len(each) for each in results.values()] == [3, 3]


def test_needs_count_what_a_network_must_do():
  from experiments.benchmarks import roofline

  architecture = Architecture.parse("dnn:3")
  flops, size = roofline.needs(architecture, (2, 2, 1), 5, evaluated=0.0)
  batch = measure.RECIPE["batch_size"]
  # First layer: forward and weight gradient; second: input gradient too.
  assert flops == batch * (4 * 4 * 3 + 6 * 3 * 5)
  assert size == 32 * (4 * 3 + 3 + 3 * 5 + 5)
