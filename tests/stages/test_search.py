"""The search for P_min as a user runs it: trains little, goes on, says so."""

import pathlib
import re
import subprocess
import sys

import pytest

from minarch_jax import config, records
from minarch_jax.engine import session as sessions
from minarch_jax.stages import search as searching
from minarch_jax.stages import train

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = config.Config(
  dataset="synthetic:easy",
  architectures=("dnn:1", "dnn:2", "dnn:3", "dnn:5", "dnn:8", "dnn:12"),
  num_seeds=3,
  num_epochs=2,
  num_bootstrap=100,
)


def run(synthetic, out, settings=FLAGS, **changes):
  session = sessions.open_session(settings, synthetic)
  (candidates,) = searching.candidates_of(settings).values()
  lines = []
  options = {"relative_width": 0.2, "max_share": 1.0} | changes
  step, statistics = searching.run(
    session, str(out), candidates, show=lines.append, **options
  )
  return step, statistics, lines


def networks_of(statistics):
  return sum(line["members"] * line["seeds"] for line in statistics)


def test_a_search_trains_what_it_asks_for_and_goes_on(synthetic, tmp_path):
  step, statistics, lines = run(synthetic, tmp_path)
  rows = records.read(str(tmp_path)).networks
  assert step.done and step.trained == len(rows) <= 18
  assert sum(line["members"] * line["seeds"] for line in statistics) == len(
    rows
  )
  counts = [int(line.split()[0]) for line in lines]
  assert counts == sorted(counts) and counts[0] == 0
  assert counts[-1] == len(rows)
  assert all("more" in line for line in lines[:-1])
  again, statistics, lines = run(synthetic, tmp_path)
  assert (again, statistics, len(lines)) == (step, [], 1)


def test_a_search_takes_up_another_studys_networks(synthetic, tmp_path):
  few = FLAGS.replace(num_seeds=1, architectures=("dnn:12",))
  session = sessions.open_session(few, synthetic)
  train.sweep(session, str(tmp_path))
  _, statistics, lines = run(synthetic, tmp_path, max_share=0.3)
  assert lines[0].startswith("   1 trained")
  assert networks_of(statistics) <= 4


def test_a_share_is_never_exceeded(synthetic, tmp_path):
  step, _, _ = run(synthetic, tmp_path, max_share=0.25)
  assert step.trained <= 4 and "exceed 4 trainings" in step.reason


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--relative_width=0", "relative_width"),
    ("--dataset=digts", "did you mean 'digits'"),
    ("--architectures=dnn:0", "dnn:0|'0' is not a positive integer"),
  ],
)
def test_what_cannot_run_is_refused_before_anything(tmp_path, flag, message):
  done = subprocess.run(
    [sys.executable, "-m", "experiments.minimal", f"--out={tmp_path}/x", flag],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode and re.search(message, done.stderr), done.stderr
  assert not (tmp_path / "x").exists()
