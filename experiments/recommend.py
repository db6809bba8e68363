"""Names the smallest stable configurations that a study supports.

  python -m experiments.recommend --out=results/digits --target_accuracy=0.95
  python -m experiments.recommend --out=results/digits --max_bytes=4096

Reads <out>/records; needs no accelerator and no JAX. Chooses on validation
accuracy; test accuracy is shown beside.
"""

from absl import flags

from experiments import common
from minarch_jax import config
from minarch_jax import flags as config_flags

config_flags.define("out", *config.THRESHOLDS)
flags.DEFINE_string("dataset", "", "Data set ('' = each).")
flags.DEFINE_float("target_accuracy", None, "Accuracy a new seed must reach.")
flags.DEFINE_float(
  "tolerance", None, "Or: distance allowed to the best stable configuration."
)
flags.DEFINE_integer("max_bytes", None, "Largest model in bytes.")
flags.DEFINE_integer("max_params", None, "Most weights that are not zero.")
flags.DEFINE_integer("max_macs", None, "Most multiply-accumulates per image.")
flags.DEFINE_integer("limit", 10, "Rows shown.", lower_bound=1)


def stage(settings: config.Config) -> None:
  from minarch_jax import analysis, records
  from minarch_jax.analysis import recommendation

  given = flags.FLAGS
  found = records.read(settings.out)
  studied = found.networks.filter(arm=records.MAIN)["dataset"].unique().sort()
  for dataset in [settings.dataset] if settings.dataset else studied:
    try:
      frame = analysis.recommend(
        found,
        settings,
        dataset=dataset,
        target_accuracy=given.target_accuracy,
        tolerance=given.tolerance,
        max_bytes=given.max_bytes,
        max_params=given.max_params,
        max_macs=given.max_macs,
        limit=given.limit,
      )
    except ValueError as error:
      raise config.ConfigError(str(error)) from None
    print(recommendation.heading(frame))
    common.show(recommendation.in_words(frame))


if __name__ == "__main__":
  common.run(stage, trains=False)
