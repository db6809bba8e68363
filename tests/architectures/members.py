"""Every architecture of every grid, on images of several shapes."""

from minarch_jax import architectures, registries

SHAPES = [(8, 8, 1), (28, 28, 1), (32, 32, 3)]
GRIDS = [
  (grid, name)
  for grid in registries.grids()
  for name, family in registries.FAMILIES.items()
  if grid in family.grids
]


def every_member(shape):
  for name, family in GRIDS:
    yield from architectures.grid(name, family, shape, 10)
