"""Forecasts: what will run, for how long, and what was seen afterwards."""

import dataclasses
import re
import types

import jax
import pytest

from minarch_jax import records, study
from minarch_jax.config import Config
from minarch_jax.engine import costs, machine, population
from minarch_jax.engine.costs import Machine
from minarch_jax.engine.machine import Seen
from minarch_jax.stages import forecast, mixing, provenance
from tests import tiny_study


def test_the_plan_is_described_without_training(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text = forecast.describe(
    Config(dataset="digits", grid="tiny", num_seeds=3, dry_run=True)
  )
  lines = text.splitlines()
  assert lines[0].split() == (
    ["parent", "members", "seeds", "padding", "GiB", "seconds"]
  )
  *table, sweep, arms, cost = lines[1:]
  assert "8 architectures x 3 seeds on digits" in sweep
  assert sum(int(line.split()[1]) for line in table) == 8
  assert "blurred" in arms
  assert re.match(r"about \d+:\d\d in all: training \d", cost)
  assert not list(tmp_path.iterdir())


def test_plans_of_several_data_sets_are_added_up():
  config = Config(
    datasets=("digits", "synthetic:easy", "digits:blurred"),
    families=("dnn",),
    grid="tiny",
    num_seeds=3,
  )
  config = config.replace(design="sweep")
  *parts, last = forecast.describe(config).split("\n\n")
  alone = [forecast.describe(part) for part in config.each()]
  assert parts == alone
  counts = [
    [int(n) for n in re.findall(r"(\d+) (?:packs|programs)", text)]
    for text in (*parts, last)
  ]
  packs, programs = zip(*counts, strict=True)
  assert sum(packs[:3]) == packs[3]
  # Blurred images have the same shapes: their programs are there.
  assert programs[0] + programs[1] == programs[3] and programs[0] == programs[2]
  members = [int(re.findall(r"(\d+) architectures", t)[0]) for t in parts]
  assert last.startswith(
    f"together: {3 * sum(members)} networks on 3 data sets"
  )


def seconds_of(text):
  """The minutes and seconds of each part that a forecast names."""
  *_, line = text.splitlines()
  return {
    name: 60 * int(minutes) + int(seconds)
    for name, minutes, seconds in re.findall(r"(\w+) (\d+):(\d\d)", line)
    if name != "report"  # which families have no part in
  }


def test_a_slower_machine_takes_longer(monkeypatch):
  config = Config(families=("dnn",), num_epochs=500, out="nowhere")
  told = seconds_of(forecast.describe(config))
  assert told.keys() == {"about", "training", "compression", "arms"} | {
    "compilation"
  }
  rest = forecast.REST_SECONDS
  assert sum(told.values()) + rest == pytest.approx(2 * told["about"], abs=5)
  factors = {"run dnn": 10.0, "compress dnn": 10.0, "compile dnn": 10.0}
  slow = Machine.of("cpu", factors)
  monkeypatch.setattr(machine, "here", lambda: slow)
  slower = seconds_of(forecast.describe(config))
  for part in told:
    assert 5 * told[part] < slower[part] < 20 * told[part]


def test_a_directory_keeps_the_machine_that_it_was_begun_for(
  tmp_path, monkeypatch
):
  out = str(tmp_path)
  session = tiny_study.open_session()
  assert provenance.machine(out) is None
  begun = dataclasses.replace(costs.REFERENCE, devices=jax.local_device_count())
  mixing.agreed(session, out)
  assert provenance.machine(out) == begun
  monkeypatch.setattr(machine, "here", lambda: Machine.of("gpu", {"a": 2.0}))
  other = tiny_study.open_session()
  mixing.agreed(other, out)
  assert provenance.machine(out) == begun
  provenance.write(other, out, [{"stage": "train"}])
  assert provenance.machine(out) == begun


def test_packs_and_programs_are_set_beside_their_forecasts(
  tmp_path, monkeypatch
):
  # Programs of an earlier run count as compiled.
  monkeypatch.setattr(population, "_loaded", types.SimpleNamespace(count=0))
  found = []
  monkeypatch.setattr(machine, "learn", found.extend)
  factors = {"run dnn": 4.0, "compress dnn": 2.0, "compile dnn": 8.0}
  monkeypatch.setattr(machine, "here", lambda: Machine.of("cpu", factors))
  config = Config(
    architectures=("dnn:3",),
    num_seeds=2,
    num_epochs=1,
    design="sweep",
    sparsities=(0.0, 0.5),
    compilation_cache_dir="",
    out=str(tmp_path),
  )
  study.run(config)
  lines = records.read_json(str(tmp_path / "study.json"))["packs"]
  trained, compressed = lines
  assert [(each.what, each.family) for each in found] == [
    (costs.RUNNING, "dnn"),
    (costs.COMPRESSING, "dnn"),
    (costs.COMPILING, "dnn"),
  ]
  run, compress, compile = found
  assert run.took == trained["run_seconds"]
  assert 4 * run.forecast == pytest.approx(
    trained["forecast_seconds"], abs=0.01
  )
  assert 2 * compress.forecast == pytest.approx(
    compressed["forecast_seconds"], abs=0.01
  )
  assert 0 < compile.took <= trained["compile_seconds"]
  assert isinstance(compile, Seen)
