"""Rounds the weights a sweep has trained to every number of bits.

python -m experiments.quantize --out=results/digits
"""

from experiments import common
from minarch_jax import flags

flags.define()
STAGE = common.line(train=False, prune=False)

if __name__ == "__main__":
  common.run(STAGE)
