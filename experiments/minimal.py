r"""Finds the minimal parameters of each family with few trainings.

  python -m experiments.minimal --grid=square --families=dnn --out=results/few
  python -m experiments.minimal --dataset=mnist --data_dir=data \
    --relative_width=0.5 --num_epochs=5 --out=results/mnist

Adds architectures and seeds only where the interval of P_min straddles the
boundary. The same command again goes on where the last one stopped.
"""

from absl import flags

from experiments import common
from minarch_jax import config
from minarch_jax import flags as config_flags

config_flags.define()
flags.DEFINE_float(
  "relative_width",
  0.5,
  "Stop when the interval is narrower than this share of P_min.",
  lower_bound=1e-6,
)
flags.DEFINE_float(
  "max_share", 1 / 3, "Most trainings, as a share of the full grid's."
)


def stage(settings: config.Config) -> None:
  if settings.dry_run:  # the full grid, the most that a search can train
    common.dry_run(settings)
    return
  from minarch_jax import study  # imports JAX
  from minarch_jax.analysis import search
  from minarch_jax.stages import search as searching

  answers = []
  families = settings.on_each(searching.candidates_of)
  for part, own in zip(settings.each(), families, strict=True):
    with study.opened(part, settings) as (session, statistics):
      for family, candidates in own.items():
        name = f"{part.dataset} {family}"
        print(f"\n{name}: {len(candidates)} sizes", flush=True)
        step, lines = searching.run(
          session,
          settings.out,
          candidates,
          relative_width=flags.FLAGS.relative_width,
          max_share=flags.FLAGS.max_share,
        )
        statistics += lines
        answers.append(search.answer(step, name, len(candidates), settings))
  print("\n" + "\n\n".join(answers))


if __name__ == "__main__":
  common.run(stage)
