r"""The whole study with one command: train, prune, quantize, report.

  python -m experiments.study --out=results/digits
  python -m experiments.study --dataset=mnist --data_dir=data --num_seeds=3 \
    --num_epochs=5 --out=results/mnist

The same command again goes on where the last one stopped.
"""

from experiments import common
from minarch_jax import flags

flags.define()
STAGE = common.line()

if __name__ == "__main__":
  common.run(STAGE)
