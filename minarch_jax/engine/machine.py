"""Measures the machine at hand once, and learns from the packs it has run.

The costs of families are those of one machine. Another is asked in a few
seconds how long it takes to compile and to run one small step of each family;
afterwards every study tells how long its packs really took. Both are kept in
the user's cache directory for each kind of machine and version of JAX, as
ratios, which forecasts and plans multiply the costs by. Deleting the file loses
nothing but these seconds.
"""

from collections.abc import Callable, Iterable, Mapping
import concurrent.futures
import dataclasses
import os
import platform
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from minarch_jax import models, records, registries
from minarch_jax.architectures import Architecture, Problem, vectors
from minarch_jax.config import Config, ConfigError
from minarch_jax.engine import costs, evaluation, population
from minarch_jax.engine.costs import Machine

PROBLEM = Problem((8, 8, 1), 10)
BATCH = 64
REPEATS, CALLS = 5, 5  # of a step; the fastest repetition counts
# A study is worth as much as the probe when it ran for as long as this.
PROBE_WORTH = 20.0
LEAST_SECONDS = 10.0  # of a family's packs, below which they tell little
FORGET_SECONDS = 2_000.0  # what is older than this counts half


def path() -> str:
  """Names the file of what was measured."""
  return os.path.join(population.cache_directory(), "machine.json")


def name() -> str:
  """Names the kind of machine: what computes, how many of them, and JAX."""
  devices = jax.local_devices()
  kind = devices[0].device_kind
  if population.platform(devices) == "cpu":
    kind = processor()
  return f"{kind} x{len(devices)}, jax {jax.__version__}"


def processor(file: str = "/proc/cpuinfo") -> str:
  """Names the processor and its widest vectors, as far as Linux tells."""
  try:
    with open(file) as lines:
      facts = dict(
        [part.strip() for part in line.split(":", 1)]
        for line in lines
        if ":" in line
      )
  except OSError:
    facts = {}
  vectors = {"avx512f": "AVX-512", "avx2": "AVX2"}
  known = facts.get("flags", "").split()
  widest = next((name for flag, name in vectors.items() if flag in known), "")
  name = facts.get("model name") or platform.machine()
  return f"{name} ({widest})" if widest else name


def here() -> Machine:
  """Describes this machine, measuring it the first time."""
  entries, own = _read(), name()
  if own not in entries:
    entries[own] = {"probe": probe(), "seen": {}}
    _write(entries)
  return _machine(entries[own])


class Seen(NamedTuple):
  """How long something took here, beside the costs of the family.

  Attributes:
    what: RUNNING, COMPILING or COMPRESSING.
    family: whose.
    took: seconds.
    forecast: seconds, as for the reference.
  """

  what: str
  family: str
  took: float
  forecast: float


def learn(seen: Iterable[Seen]) -> None:
  """Remembers what was seen, where it is enough to tell something."""
  sums: dict[str, np.ndarray] = {}
  for what, family, *both in seen:
    key = f"{what} {family}"
    sums[key] = sums.get(key, np.zeros(2)) + both
  sums = {key: own for key, own in sums.items() if own[0] >= LEAST_SECONDS}
  if not sums:
    return
  entries = _read()
  known = entries.setdefault(name(), {"probe": {}, "seen": {}})["seen"]
  for key, own in sums.items():
    before = np.array(known.get(key, (0.0, 0.0)))
    if before[0] > FORGET_SECONDS:
      before /= 2
    known[key] = [round(float(value), 3) for value in before + own]
  _write(entries)


def probe() -> dict[str, float]:
  """Measures compiling and running a step of each family, as ratios.

  Families that compile do so side by side, as in a study.
  """
  asked = {
    name: family.costs.probe
    for name, family in registries.FAMILIES.items()
    if family.costs.probe
  }
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    steps = dict(zip(asked, pool.map(_compiled, asked), strict=True))
  found = {}
  for family, (step, compile_seconds) in steps.items():
    told = asked[family]
    ratio = _fastest(step) / told.step_seconds
    found[f"{costs.RUNNING} {family}"] = round(ratio, 4)
    ratio = compile_seconds / told.compile_seconds
    found[f"{costs.COMPILING} {family}"] = round(ratio, 4)
  return found


def _compiled(family: str) -> tuple[Callable[[], Any], float]:
  """Compiles a step of a family's probe: a call without arguments, seconds."""
  chosen = registries.FAMILIES[family].costs.probe
  assert chosen
  architecture = Architecture.parse(f"{family}:{chosen.body}")
  layout = population.mapping(Config(), family)
  layout = dataclasses.replace(layout, devices=layout.devices[:1])
  model = models.make_model(
    architecture, PROBLEM, convolution=layout.convolution
  )
  # Never found in the cache of programs, which would hide what compiling takes.
  nonce = np.float32(1 + time.time_ns() % 2**20 / 2**40)

  def loss(params, x, y):
    sizes: Any = None  # the model knows its own
    return evaluation.losses(model.apply(params, x, sizes), y)[0].mean() * nonce

  own = vectors.vector_of(architecture, PROBLEM)
  arguments = [
    population.place(value, "shared", layout)
    for value in (
      own.tree(np.full(own.size, 0.1, np.float32)),
      np.ones((BATCH, *PROBLEM.input_shape), np.float32),
      np.zeros(BATCH, np.int32),
    )
  ]
  kinds = ("shared",) * len(arguments)
  step = population.compile(jax.grad(loss), kinds, layout, arguments)
  return lambda: step.call(*arguments), step.compile_seconds


def _fastest(step: Callable[[], Any]) -> float:
  """Measures the seconds of a call."""
  times = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    jax.block_until_ready([step() for _ in range(CALLS)])
    times.append((time.perf_counter() - start) / CALLS)
  return min(times)


def _machine(entry: Mapping[str, Any]) -> Machine:
  """Weighs what was measured against what was seen."""
  told, seen = dict(entry["probe"]), entry["seen"]

  def usual(what):
    known = [told[key] for key in told if key.startswith(f"{what} ")]
    return statistics.geometric_mean(known) if known else 1.0

  factors = {}
  for family in registries.FAMILIES:
    for what in (costs.RUNNING, costs.COMPILING, costs.COMPRESSING):
      key = f"{what} {family}"
      first = told.get(key, usual(what))
      if what == costs.COMPRESSING:  # it runs the same programs
        first = factors[f"{costs.RUNNING} {family}"]
      took, forecast = seen.get(key, (0.0, 0.0))
      weighed = (first * PROBE_WORTH + took) / (PROBE_WORTH + forecast)
      factors[key] = round(weighed, 4)
  backend = population.platform(jax.local_devices())
  return Machine.of(backend, factors)


def _read() -> dict[str, Any]:
  """Reads the entries; what is damaged is measured anew."""
  try:
    found = records.read_json(path())
    for entry in found.values():
      values = [*entry["probe"].values(), *np.ravel([*entry["seen"].values()])]
      if not all(value >= 0 for value in values):
        raise ValueError(values)
  except (ConfigError, OSError, ValueError, TypeError, KeyError):
    return {}
  except AttributeError:  # no table where one should be
    return {}
  return found


def _write(entries: Mapping[str, Any]) -> None:
  """Keeps the entries; where that fails they are measured again."""
  try:
    records.write_json(path(), entries)
  except OSError:
    pass
