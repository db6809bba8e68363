"""The machine at hand: measured once, corrected by what was seen."""

import json

import pytest

from minarch_jax import registries
from minarch_jax.engine import costs, machine, population
from minarch_jax.engine.machine import Seen

PROBED = {"run dnn": 2.0, "compile dnn": 3.0, "run cnn": 8.0}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """Keeps nothing of this machine, and measures nothing."""
  monkeypatch.setattr(population, "cache_directory", lambda: str(tmp_path))
  monkeypatch.setattr(machine, "probe", lambda: dict(PROBED))
  return tmp_path / "machine.json"


def test_every_family_with_a_probe_is_measured(monkeypatch):
  monkeypatch.undo()
  found = machine.probe()
  probed = [n for n, f in registries.FAMILIES.items() if f.costs.probe]
  assert probed
  assert found.keys() == {
    f"{what} {name}"
    for what in (costs.RUNNING, costs.COMPILING)
    for name in probed
  }
  assert all(ratio > 0 for ratio in found.values())


def test_a_machine_is_measured_once(cache, monkeypatch):
  first = machine.here()
  assert first.backend == "cpu"
  assert first.factor("run", "dnn") == 2.0
  assert first.factor("compile", "dnn") == 3.0
  # What was not measured is as the others are.
  assert first.factor("run", "vit") == 4.0
  assert first.factor("compile", "vit") == 3.0
  assert first.factor("compress", "cnn") == 8.0
  monkeypatch.setattr(machine, "probe", lambda: 1 / 0)
  assert machine.here() == first
  monkeypatch.setattr(machine, "name", lambda: "another")
  with pytest.raises(ZeroDivisionError):
    machine.here()


def test_what_is_seen_outweighs_the_probe():
  machine.here()
  machine.learn(
    [Seen("run", "dnn", 400.0, 100.0), Seen("run", "cnn", 9.0, 1.0)]
  )
  found = machine.here()
  expected = (2 * machine.PROBE_WORTH + 400) / (machine.PROBE_WORTH + 100)
  assert found.factor("run", "dnn") == pytest.approx(expected, abs=1e-3)
  assert found.factor("run", "cnn") == 8.0  # nine seconds tell little
  assert found.factor("compile", "dnn") == 3.0
  for _ in range(30):
    machine.learn([Seen("run", "dnn", 400.0, 100.0)])
  assert machine.here().factor("run", "dnn") == pytest.approx(4.0, rel=0.05)


def test_what_is_long_ago_is_forgotten():
  machine.here()
  for ratio in (50, 1):
    for _ in range(20):
      machine.learn([Seen("run", "dnn", 1_000.0, 1_000.0 / ratio)])
  assert machine.here().factor("run", "dnn") < 1.2


@pytest.mark.parametrize(
  "content",
  ["", "no JSON", "[]", '{"a": 1}', '{"a": {"probe": {"b": -1}, "seen": {}}}'],
)
def test_what_is_damaged_is_measured_anew(cache, content):
  cache.write_text(content)
  assert machine.here().factor("run", "dnn") == 2.0
  assert machine.name() in json.loads(cache.read_text())


def test_a_cache_that_cannot_be_written_costs_time_only(cache):
  cache.mkdir()
  assert machine.here().factor("run", "dnn") == 2.0
  machine.learn([Seen("run", "dnn", 400.0, 100.0)])


def test_processors_have_names(tmp_path):
  info = tmp_path / "cpuinfo"
  info.write_text("model name\t: A: fast one\nflags : sse avx2 avx512f\n")
  assert machine.processor(str(info)) == "A: fast one (AVX-512)"
  info.write_text("model name\t: another\nflags : sse\n")
  assert machine.processor(str(info)) == "another"
  assert machine.processor(str(tmp_path / "none"))
