"""Named grids: the architectures that a study sweeps."""

from collections.abc import Sequence

from minarch_jax import registries
from minarch_jax.architectures.architecture import Architecture
from minarch_jax.architectures.specs import Problem, Shape


def grid(
  name: str, family: str, input_shape: Shape, num_classes: int
) -> list[Architecture]:
  """Lists a named grid's architectures of one family that fit the images.

  Args:
    name: ladder, paper, monotone, square, small or tiny.
    family: dnn, cnn or vit.
    input_shape: (height, width, channels); decides ViT patches and which
      convolution stacks fit.
    num_classes: number of classes.

  Raises:
    ValueError: unknown name or family, with the nearest known one.
  """
  grids = registries.grids()
  if name not in grids:
    raise ValueError(
      f"grid {name!r} is not one of {', '.join(grids)}"
      f"{registries.nearest(name, grids)}"
    )
  traits = registries.find("family", family, registries.FAMILIES)
  problem = Problem(input_shape, num_classes)
  bodies = traits.grids.get(name, lambda problem: [])(problem)
  members = [Architecture(family, *body) for body in bodies]
  return [member for member in members if _fits(member, problem)]


def _fits(architecture: Architecture, problem: Problem) -> bool:
  try:
    architecture.spec(problem)
  except ValueError:
    return False
  return True


def select(
  texts: Sequence[str], name: str, families: Sequence[str], problem: Problem
) -> list[Architecture]:
  """Returns the named architectures, or the grid's when none is named.

  Raises:
    ValueError: a text that does not parse or does not fit the images.
  """
  if texts:
    chosen = [Architecture.parse(text) for text in texts]
    for architecture in chosen:
      architecture.spec(problem)
  else:
    chosen = [a for family in families for a in grid(name, family, *problem)]
  return list(dict.fromkeys(chosen))
