"""Prepares a TFDS image set for first use and decodes its images.

  python -m experiments.prepare_data --dataset=mnist --data_dir=data

Generating a set needs TensorFlow, once: pip install -e '.[prepare]'. Reading it
afterwards does not.
"""

from experiments import common
from minarch_jax import config
from minarch_jax import flags as config_flags

config_flags.define(
  "dataset", "data_dir", "folds", "validation_fraction", "split_seed"
)


def stage(settings: config.Config) -> None:
  from minarch_jax import data
  from minarch_jax.data import preparation

  try:
    preparation.prepare(settings.dataset, settings.data_dir)
    dataset = data.load_chosen(settings)
  except ValueError as error:
    raise config.ConfigError(str(error)) from None
  height, width, channels = dataset.input_shape
  print(
    f"{dataset.name}: {height}x{width}x{channels}, {dataset.num_classes} "
    f"classes, fingerprint {dataset.fingerprint}"
  )
  for split in ("train", "validation", "test"):
    print(f"{split:>12}: {len(getattr(dataset, split).y):,} images")
  if dataset.num_folds > 1:
    print(
      f"{'':>12}  of seed 0; seed s validates on fold s mod {dataset.num_folds}"
    )
  if dataset.test_note:
    print(f"{'':>12}  test: {dataset.test_note}")


if __name__ == "__main__":
  common.run(stage, trains=False)
