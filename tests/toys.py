"""What a newcomer would add: one of each kind, by what the README says.

Run as a program it is an experiment with all of them registered:
python -m tests.toys --families=toy --criteria=toy --quantizers=toy ...
"""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from experiments import common
from minarch_jax import flags, registries
from minarch_jax.architectures import families, Problem, specs
from minarch_jax.data import sources
from minarch_jax.models import layers
from minarch_jax.pruning import criteria
from minarch_jax.quantization import formats
from minarch_jax.report import entries

# --- a family: one hidden layer that squares ----------------------------------


class Squares(nn.Module):
  architecture: object
  problem: Problem
  dtype: object = None
  convolution: str = "stock"
  tap: object = layers.no_tap

  @nn.compact
  def __call__(self, x, sizes):
    (width,) = self.architecture.widths
    x = x.reshape(x.shape[0], -1)
    hidden = layers.Kernel((x.shape[-1], width), 1, self.dtype, name="hidden")()
    x = layers.dense(self.tap("hidden/kernel", x), *hidden) ** 2
    output = layers.Kernel(
      (width, self.problem.num_classes), 1, self.dtype, name="output"
    )()
    return layers.dense(self.tap("output/kernel", x), *output)


def describe(widths, options, problem):
  inputs = int(np.prod(problem.input_shape))
  sizes = {"inputs": inputs, "units": widths[0], "classes": problem.num_classes}
  leaves = specs.dense(("hidden",), ("inputs",), ("units",), activated=True)
  leaves += specs.dense(("output",), ("units",), ("classes",))
  return specs.Spec(tuple(leaves), sizes, ("units",))


def infer(shapes, widths, options):
  inputs = shapes["hidden", "kernel"][-2]
  return Problem((inputs, 1, 1), shapes["output", "bias"][-1])


FAMILY = families.Family(
  parse=families.parse_chain("units"),
  format=families.format_chain,
  spec=describe,
  problem=infer,
  grids={"tiny": lambda shape: [((3,), ()), ((8,), ())]},
  module=Squares,
  compact=None,
  costs=families.Costs(1.0, 1e-5, 1e11, 1e10, 1e10),
  layouts={
    "cpu": families.Layout("map", "map"),
    "other": families.Layout("vmap", "vmap"),
  },
)

# --- a criterion, a number format, a data set ---------------------------------

CRITERION = criteria.Criterion(
  lambda context: jax.tree.map(jnp.square, context.params), pool="mean"
)

FORMAT = formats.table(np.array([-1.0, -0.5, 0.0, 0.5, 1.0], np.float32), 3)


def read(name, data_dir):
  rng = np.random.default_rng(0)
  y = np.arange(120, dtype=np.int32) % 3
  x = rng.integers(0, 60, (120, 4, 4, 1)) + 60 * y[:, None, None, None]
  return sources.raw(x.astype(np.uint8), y)


SOURCE = sources.Source(
  lambda name, data_dir: sources.Info((4, 4, 1), 3, 120, 0, "made up"), read
)

# --- a table of the report ----------------------------------------------------

TABLE = entries.Table(
  section="regimes",
  caption="How many networks of each family there are.",
  compute=lambda found: found.records.networks.group_by("family").agg(
    pl.len().alias("networks")
  ),
  columns=(
    entries.Column("family", "family"),
    entries.Column("networks", "networks", "count"),
  ),
)

registries.FAMILIES["toy"] = FAMILY
registries.CRITERIA["toy"] = CRITERION
registries.FORMATS["toy"] = FORMAT
registries.DATASETS["toy"] = SOURCE
registries.TABLES["toy"] = TABLE

if __name__ == "__main__":
  flags.define()
  common.run(common.line())
