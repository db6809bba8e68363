"""Asks whether the first steps of training foretell the regime of a network.

  python -m experiments.probe --out=results/digits

Measures every network at initialisation and after --probe_steps steps: dead
units, scale of the logits, norm of the gradient, sharpness against 2 /
learning rate. Compares with the regimes that --out has recorded; give the
flags of that study.
"""

from absl import flags

from experiments import common
from minarch_jax import config

config.define_flags()
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
  from minarch_jax import analysis, probing, records, study

  known = records.read(settings.out)
  found = study.check(settings)
  members = study.select(settings, found.input_shape, found.num_classes)
  session = study.open_session(settings)
  steps = min(flags.FLAGS.probe_steps, session.work.num_steps)
  names = [str(member) for member in members]
  recipe = study.recipe_id(session)
  id = records.content_id([recipe, names, list(settings.seeds), steps])
  if not records.exists(settings.out, "probes", id):
    rows = probing.probe(session, members, steps)
    records.write(settings.out, "probes", id, rows)
  rows = records.read_table(settings.out, "probes")
  common.show(analysis.probe_predictions(known, rows, settings))


if __name__ == "__main__":
  common.run(stage)
