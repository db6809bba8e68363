r"""Measures what a network costs when more are trained together.

  python -m experiments.benchmarks.scaling --dataset=mnist --data_dir=data \
    --out=results

Around one pack per family, one thing is changed at a time: the members of the
pack, the seeds, the devices, the width. `step` is microseconds per network and
minibatch of 128, everything compiled, validation included; `busy` the same in
time of all processors together; `cost` is the step relative to the first row
of its axis. Perfect scaling over members and seeds halves the step when their
number doubles while a device is not busy, and then keeps it.
"""

from collections.abc import Iterator
from typing import NamedTuple

from absl import flags

from experiments import common
from experiments.benchmarks import measure
from minarch_jax import config, data
from minarch_jax import flags as config_flags
from minarch_jax.architectures import Shape
from minarch_jax.architectures.vit import patch_sizes

config_flags.define("families")
measure.define_flags()
flags.adopt_module_key_flags(measure)


class Point(NamedTuple):
  """One pack: members and seeds of one architecture on some devices."""

  axis: str
  value: int
  width: int
  members: int
  seeds: int
  devices: int


AXES = {
  "members": (1, 2, 4, 8, 16, 32),
  "seeds": (1, 2, 4, 8, 16),
  "devices": (1, 2, 4, 8),
  "width": (1, 2, 5, 10, 20, 50, 100, 200),
}
WIDTH = {"dnn": 20, "cnn": 4, "vit": 16}
MAX_WIDTH = {"dnn": 200, "cnn": 20, "vit": 50}
SHARE = {"dnn": 0.2, "cnn": 0.02, "vit": 0.04}
MEMBERS, SEEDS = 8, 4


def architecture(family: str, width: int, input_shape: Shape) -> str:
  """Names a network of two layers of one width; a ViT has one head."""
  if family == "vit":
    return f"vit:p{patch_sizes(input_shape)[-1]}-d{width}-l2-h1"
  return f"{family}:{width}-{width}"


def points(family: str, cores: int) -> Iterator[Point]:
  """Lists the packs of a family, axis by axis."""
  axes = {"members": (1, 2)} if flags.FLAGS.quick else AXES
  for axis, values in axes.items():
    limit = {"devices": cores, "width": MAX_WIDTH[family]}.get(axis)
    for value in (v for v in values if not limit or v <= limit):
      base = {
        "width": WIDTH[family],
        "members": MEMBERS,
        "seeds": SEEDS,
        "devices": cores,
      }
      yield Point(axis, value, **(base | {axis: value}))


def measured(
  directory: str, family: str, point: Point, input_shape: Shape
) -> measure.Row:
  """Trains the pack of a point, several times once it is compiled."""
  text = architecture(family, point.width, input_shape)
  workload = measure.Workload((text,), point.seeds, SHARE[family])
  job = measure.job(
    directory,
    workload,
    epochs=1,
    members=point.members,
    steady=measure.repetitions(),
    config={"compilation_cache_dir": ""},
  )
  count = f"--xla_force_host_platform_device_count={point.devices}"
  result = measure.run("run_engine", job, environment={"XLA_FLAGS": count})
  return {
    "family": family,
    "axis": point.axis,
    "value": point.value,
    "architecture": text,
    "members": point.members,
    "seeds": point.seeds,
    "devices": result["devices"],
    "step (us)": 1e6 * measure.per_step(result),
    "busy (us)": 1e6 * measure.per_step(result, "epoch_busy_seconds"),
    "compile (s)": result["compile_seconds"],
  }


def stage(settings: config.Config) -> None:
  found = data.describe(settings.dataset, settings.data_dir or None)
  families = settings.families[: 1 if flags.FLAGS.quick else None]
  rows: list[measure.Row] = []
  with measure.exported(settings) as directory:
    for family in families:
      for point in points(family, measure.num_cores()):
        measure.say(f"{family}: {point.axis} {point.value}")
        row = measured(directory, family, point, found.input_shape)
        first = next(
          (r for r in rows if (r["family"], r["axis"]) == (family, point.axis)),
          row,
        )
        rows.append({**row, "cost": row["step (us)"] / first["step (us)"]})
  measure.finish("Cost of a network", settings.out, "scaling", rows)


if __name__ == "__main__":
  common.run(stage)
