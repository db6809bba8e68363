"""Network shapes in exact integer arithmetic: parse, print, count, enumerate.

No network is built here and JAX is not imported. One description carries the
whole project: every parameter leaf has *named axes*, and an architecture gives
each name a size. Counts, width masks, padding to a parent, pruning of coupled
units and compaction are all read off that description (`specs.Spec`).
"""

from minarch_jax.architectures.architecture import Architecture as Architecture
from minarch_jax.architectures.architecture import parent as parent
from minarch_jax.architectures.families import Family as Family
from minarch_jax.architectures.grids import grid as grid
from minarch_jax.architectures.grids import select as select
from minarch_jax.architectures.specs import Leaf as Leaf
from minarch_jax.architectures.specs import Problem as Problem
from minarch_jax.architectures.specs import Shape as Shape
from minarch_jax.architectures.specs import Spec as Spec
from minarch_jax.registries import FAMILIES as FAMILIES
