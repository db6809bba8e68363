"""Asks whether the first steps of training foretell the regime of a network.

  python -m experiments.probe --out=results/digits

Measures every network at initialisation and after --probe_steps steps: dead
units, scale of the logits, norm of the gradient, sharpness against 2 /
learning rate. Probes the networks that --out records and compares with their
regimes; give the training flags of that study.
"""

from absl import flags

from experiments import common
from minarch_jax import config
from minarch_jax import flags as config_flags

config_flags.define()
flags.DEFINE_integer(
  "probe_steps",
  100,
  "Steps of training before the second probe.",
  lower_bound=1,
  upper_bound=100,
)


def stage(settings: config.Config) -> None:
  if settings.dry_run:
    common.dry_run(settings)
    return
  import polars as pl  # not before flags are checked

  from minarch_jax import analysis, records
  from minarch_jax.stages import probes, setup  # imports JAX

  known = records.read(settings.out)
  settings.on_each(setup.check)
  rows = []
  for part in settings.each():
    session = setup.open_session(part)
    steps = min(flags.FLAGS.probe_steps, session.work.num_steps)
    # What was recorded, not what a grid of that name holds today.
    rows.append(probes.complete(session, settings.out, known.networks, steps))
  found = analysis.probe_predictions(known, pl.concat(rows), settings)
  common.show(found)


if __name__ == "__main__":
  common.run(stage)
