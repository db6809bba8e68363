"""Prunes the networks a sweep has trained, at once and with retraining.

python -m experiments.prune --out=results/digits
"""

from experiments import common
from minarch_jax import flags

flags.define()
STAGE = common.line(train=False, quantize=False)

if __name__ == "__main__":
  common.run(STAGE)
