"""Trains every architecture of a design sweep with every seed.

python -m experiments.sweep --grid=square --families=dnn --out=results/square
"""

from experiments import common
from minarch_jax import flags

flags.define()
STAGE = common.line(prune=False, quantize=False)

if __name__ == "__main__":
  common.run(STAGE)
