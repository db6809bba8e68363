r"""Measures how much of the paper's DNN sweep is spent compiling.

  python -m experiments.benchmarks.paper_sweep --dataset=mnist \
    --data_dir=data --out=results

Plans all shapes of the grid `monotone`, 1 to 4 hidden layers, as a study would
(10 epochs, batch 128, Adam), and trains a sample of the packs: one program of
each of --sample equal parts of the programs, ordered by predicted time. A
sampled pack compiles with no cache and trains on the share of every split that
makes --steps minibatches; `run` is extrapolated to the whole training of all
packs of its program, `share` is compilation's part. The last row is the sweep:
the sample's mean compilation for every program, and the predicted time of every
pack corrected by the sample's run / predicted.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math
import statistics

from absl import flags

from experiments import common
from experiments.benchmarks import measure
from minarch_jax import architectures, config, data
from minarch_jax.engine import machine as machines
from minarch_jax.engine import memory, packs, planning, population
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack

measure.define_flags()
flags.adopt_module_key_flags(measure)
_SAMPLE = flags.DEFINE_integer("sample", 6, "Programs measured.", lower_bound=1)
_STEPS = flags.DEFINE_integer(
  "steps", 40, "Minibatches that a sampled pack trains.", lower_bound=1
)

NUM_SEEDS = 4
QUICK_SHAPES = 40
SUMS = ("compile (s)", "run (s)", "predicted (s)")


def sampled(programs: Sequence, count: int) -> list:
  """Takes the middle of each of `count` equal parts."""
  count = min(count, len(programs))
  width = len(programs) / count
  return [programs[int((i + 0.5) * width)] for i in range(count)]


def part(dataset, share: float):
  """Takes the leading share of every split."""

  def few(batch):
    count = max(1, round(share * len(batch.y)))
    return batch._replace(x=batch.x[:count], y=batch.y[:count])

  return dataclasses.replace(
    dataset,
    train=few(dataset.train),
    validation=few(dataset.validation),
    test=few(dataset.test),
  )


def row_of(name: str, times: Sequence[float], **counts: int) -> measure.Row:
  """Makes a row of compile, run and predicted seconds."""
  compiling, run, _ = times
  return {
    "parent": name,
    **counts,
    **dict(zip(SUMS, times, strict=True)),
    "share": compiling / (compiling + run),
  }


def stage(settings: config.Config) -> None:
  import jax

  from experiments.benchmarks import run_engine

  chosen = settings.replace(
    **measure.RECIPE, num_seeds=NUM_SEEDS, compilation_cache_dir=""
  )
  population.use_cores()
  devices = jax.local_device_count()
  dataset = data.load(chosen.dataset, chosen.data_dir or None)
  shapes = architectures.grid(
    "monotone", "dnn", dataset.input_shape, dataset.num_classes
  )
  shapes = shapes[: QUICK_SHAPES if flags.FLAGS.quick else None]
  work = sessions.work_of(chosen, dataset)
  machine = machines.here()
  plan = planning.plan(
    shapes,
    chosen.seeds,
    work,
    machine=machine,
    devices=devices,
    at_once=1,
    memory_limit=memory.limit(chosen),
  )
  programs: dict[tuple, list[Pack]] = {}
  for pack in plan:
    programs.setdefault(pack.program, []).append(pack)

  def predicted(pack) -> float:
    return planning.core_seconds(pack, work, machine) / devices

  groups = sorted(programs.values(), key=lambda each: predicted(each[0]))
  steps = 2 if flags.FLAGS.quick else _STEPS.value
  sessions.COLD = math.inf  # a sample compiles as its whole training would
  brief = sessions.open_session(
    chosen.replace(num_epochs=1),
    part(dataset, steps * chosen.batch_size / len(dataset.train.y)),
  )

  def rows() -> Iterator[measure.Row]:
    for packs_of in sampled(groups, 2 if flags.FLAGS.quick else _SAMPLE.value):
      pack = packs_of[0]
      measure.say(f"{pack.parent}: {len(pack.architectures)} members")
      compiling = packs.train(brief, pack).compile_seconds
      epoch = statistics.median(
        run_engine.steady(brief, pack)[0] for _ in range(measure.repetitions())
      )
      run = epoch * work.num_steps / steps * len(packs_of)
      yield row_of(
        str(pack.parent),
        (compiling, run, predicted(pack) * len(packs_of)),
        members=sum(len(each.architectures) for each in packs_of),
        packs=len(packs_of),
      )

  found = list(rows())
  total = {name: sum(row[name] for row in found) for name in SUMS}
  whole = sum(map(predicted, plan))
  run = whole * total["run (s)"] / total["predicted (s)"]
  compiling = total["compile (s)"] / len(found) * len(groups)
  found.append(
    row_of(
      f"all: {len(groups)} programs",
      (compiling, run, whole),
      members=len(shapes),
      packs=len(plan),
    )
  )
  title = f"Compilation in the paper's DNN sweep, {NUM_SEEDS} seeds"
  measure.finish(title, settings.out, "paper_sweep", found)


if __name__ == "__main__":
  common.run(stage)
