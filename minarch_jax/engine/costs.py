"""What work takes: seconds on a machine, and bytes.

Pure functions of shapes, the amount of work and a `Machine`; no JAX. They
decide plans, forecasts and how a program is laid out, and cannot change what a
network learns beyond rounding.
"""

from collections.abc import Mapping
import dataclasses
import math

from minarch_jax.architectures import Architecture, Problem

MICROBATCH_BYTES = 2.6e6  # read and written; the best on cores of 1 MiB L2

RUNNING, COMPILING, COMPRESSING = "run", "compile", "compress"


@dataclasses.dataclass(frozen=True)
class Work:
  """What every network of the sweep goes through.

  Attributes:
    problem: the images and classes.
    num_train, num_eval: images trained on, and validated on after each epoch.
    batch_size: images per step; what is left of an epoch is not trained on.
    num_epochs: of training.
  """

  problem: Problem
  num_train: int
  num_eval: int
  batch_size: int
  num_epochs: int

  @property
  def num_steps(self) -> int:
    return self.num_train // self.batch_size * self.num_epochs

  @property
  def images(self) -> float:
    """Images of a step, validation shared out; it goes forward only."""
    steps = max(1, self.num_train // self.batch_size)
    return self.batch_size + self.num_eval / 3 / steps


@dataclasses.dataclass(frozen=True)
class Machine:
  """How a machine compares with the one that `Family.costs` describe.

  Attributes:
    backend: cpu, gpu or tpu.
    factors: ("run vit", 1.7) says that training ViTs takes 1.7 times as long
      as their costs say; what is not listed takes as long.
    devices: those that packs are planned for; 0 = the ones there are.
  """

  backend: str = "cpu"
  factors: tuple[tuple[str, float], ...] = ()
  devices: int = 0

  def factor(self, what: str, family: str) -> float:
    """How many times as long RUNNING, COMPILING or COMPRESSING takes."""
    return dict(self.factors).get(f"{what} {family}", 1.0)

  @classmethod
  def of(cls, backend: str, factors: Mapping[str, float]) -> "Machine":
    return cls(backend, tuple(sorted(factors.items())))


REFERENCE = Machine()


# --- seconds -----------------------------------------------------------------


def layer_bytes(parent: Architecture, problem: Problem) -> float:
  """Counts what the layers read and write for one image, windows unfolded."""
  spec = parent.spec(problem)
  floats = sum(
    leaf.positions
    * (
      math.prod(spec.sizes[a] for a in leaf.axes[: -leaf.outputs])
      + math.prod(spec.sizes[a] for a in leaf.axes[-leaf.outputs :])
    )
    for leaf in spec.leaves
    if leaf.is_kernel
  )
  return 4.0 * floats


def step_seconds(
  parent: Architecture, slots: int, work: Work, machine: Machine = REFERENCE
) -> float:
  """Predicts a step of the slots of one seed on one device."""
  spec, traits = parent.spec(work.problem), parent.traits
  costs = traits.costs
  # Forward, gradient of weights, gradient of inputs: two flops per MAC each.
  flops = 6 * spec.macs * work.images
  state = 28 * spec.num_params  # Adam reads 4, writes 3 floats
  per_member = (
    flops / costs.flops
    + state / costs.state_bytes_per_second
    + work.images
    * layer_bytes(parent, work.problem)
    / costs.layer_bytes_per_second
  )
  calls = slots if one_by_one(parent, machine) else 1
  overhead = costs.step_seconds * (parent.depth + 1)
  factor = machine.factor(RUNNING, parent.family)
  return factor * (calls * overhead + slots * per_member)


def one_by_one(parent: Architecture, machine: Machine) -> bool:
  """Says whether members run one after another, so that spare slots do not."""
  layouts = parent.traits.layouts
  layout = layouts.get(machine.backend, layouts["other"])
  return layout.members == "map"


def seconds(
  parent: Architecture, slots: int, work: Work, machine: Machine = REFERENCE
) -> float:
  """Predicts the training time of one seed of a pack on one device."""
  return work.num_steps * step_seconds(parent, slots, work, machine)


def compile_seconds(
  parent: Architecture, machine: Machine = REFERENCE
) -> float:
  """Predicts what compiling the program of a pack takes, on a busy machine."""
  own = parent.traits.costs.compile_seconds * (1 + parent.depth / 4)
  return own * machine.factor(COMPILING, parent.family)


# --- bytes -------------------------------------------------------------------


def memory(
  parent: Architecture, slots: int, num_seeds: int, work: Work, devices: int
) -> float:
  """Predicts the bytes a pack needs on all devices, data included."""
  spec = parent.spec(work.problem)
  params = spec.num_params
  state = 4 * 4 * params + params  # parameters, two moments, gradient; mask
  outputs = sum(
    leaf.positions
    * math.prod(spec.sizes[a] for a in leaf.axes[-leaf.outputs :])
    for leaf in spec.leaves
    if leaf.is_kernel
  )
  activations = 4 * 4 * work.batch_size * outputs * slots * devices
  images = work.num_train + work.num_eval
  data = 4 * images * math.prod(work.problem.input_shape) * devices
  return slots * num_seeds * state + activations + data


def microbatch(parent: Architecture, batch_size: int, problem: Problem) -> int:
  """Chooses how many images a core takes through a network at a time.

  What the layers read and write for them should stay in its second-level
  cache; a CNN 16-32-32 on 28x28 images then takes 0.6 of the time.

  Returns:
    The divisor of `batch_size` nearest to that, by ratio; 4 at least.
  """
  wanted = MICROBATCH_BYTES / layer_bytes(parent, problem)
  least = min(4, batch_size)
  divisors = [n for n in range(least, batch_size + 1) if batch_size % n == 0]
  return min(divisors, key=lambda n: abs(math.log(n / wanted)))
