"""Asks which layers can be pruned, and whether seeds agree on the weights.

  python -m experiments.sensitivity --out=results/digits

Prunes one layer at a time, to each of --sparsities by the first criterion and
granularity, and compares the masks of seeds. Takes the trained networks that
--out holds, of the representative architectures or of those that
--architectures names; give the training flags of that study. Afterwards
`python -m experiments.report` draws both.
"""

from experiments import common
from minarch_jax import config
from minarch_jax import flags as config_flags

config_flags.define()


def stage(settings: config.Config) -> None:
  if settings.dry_run:
    common.dry_run(settings)
    return
  from minarch_jax import analysis, records
  from minarch_jax.analysis.sensitivity import by_sparsity

  known = records.read(settings.out)

  from minarch_jax.stages import sensitivity, setup  # imports JAX

  settings.on_each(setup.check)
  for part in settings.each():
    if settings.datasets:
      print(f"\n{part.dataset}")
    session = setup.open_session(part)
    members = sensitivity.chosen(session, settings.out)
    curves, overlap = sensitivity.complete(session, settings.out, members)
    lost = analysis.layer_sensitivity(known, curves, part)
    common.show(by_sparsity(lost, "lost"))
    shared = analysis.mask_overlap(known, overlap, part)
    whole = shared.filter(layer=records.ALL_LAYERS)
    common.show(by_sparsity(whole, "overlap"))


if __name__ == "__main__":
  common.run(stage)
