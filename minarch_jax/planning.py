"""Plans packs: which networks share a parent and a compiled program.

A pure function of the architectures, the seeds, the work and the machine's
description; no JAX. Networks with one skeleton may share a parent. Merging two
groups saves a compilation and costs padded work, so groups merge while that
lowers the predicted time and padding stays below `MAX_PADDING`.
"""

from collections.abc import Sequence
import dataclasses
import math

from minarch_jax import architectures
from minarch_jax.architectures import Architecture, Shape

MAX_PADDING = 2.0
MAX_MEMBERS = 32  # more gain nothing: the first product is wide enough by then
CACHE_BYTES = 48e6  # optimizer traffic of one seed's members stays near cache

# Rough single-device costs; ratios decide the plan, absolutes only the
# forecast, and neither can change a result.
COMPILE_SECONDS = {"dnn": 2.0, "cnn": 4.0, "vit": 6.0}
STEP_SECONDS = {"dnn": 15e-6, "cnn": 60e-6, "vit": 150e-6}  # per hidden layer
FLOPS = {"dnn": 40e9, "cnn": 25e9, "vit": 30e9}
BYTES_PER_SECOND = 8e9


@dataclasses.dataclass(frozen=True)
class Work:
  """What every network of the sweep goes through."""

  input_shape: Shape
  num_classes: int
  num_train: int
  num_eval: int
  batch_size: int
  num_epochs: int

  @property
  def num_steps(self) -> int:
    return self.num_train // self.batch_size * self.num_epochs


@dataclasses.dataclass(frozen=True)
class Pack:
  """Networks that train in one compiled program.

  `slots` is the program's number of members; slots beyond the architectures
  repeat the last one and are discarded.
  """

  architectures: tuple[Architecture, ...]
  seeds: tuple[int, ...]
  parent: Architecture
  slots: int

  @property
  def program(self) -> tuple:
    """Packs with equal values run the same compiled program."""
    return (self.parent, self.slots, len(self.seeds))

  @property
  def members(self) -> tuple[Architecture, ...]:
    """The architecture of every slot."""
    extra = self.slots - len(self.architectures)
    return self.architectures + self.architectures[-1:] * extra


def padding(pack: Pack, work: Work) -> float:
  """Returns parameters held by the program per parameter asked for."""
  shape = (work.input_shape, work.num_classes)
  held = pack.slots * pack.parent.num_params(*shape)
  return held / sum(a.num_params(*shape) for a in pack.architectures)


def seconds(parent: Architecture, slots: int, work: Work) -> float:
  """Predicts the training time of one seed of a pack on one device."""
  shape = (work.input_shape, work.num_classes)
  # Forward, gradient of weights, gradient of inputs: two flops per MAC each.
  images = work.batch_size + work.num_eval / 3 / max(
    1, work.num_train // work.batch_size
  )
  flops = 6 * parent.macs(*shape) * images
  traffic = 28 * parent.num_params(*shape)  # Adam reads 4, writes 3 floats
  per_member = flops / FLOPS[parent.family] + traffic / BYTES_PER_SECOND
  overhead = STEP_SECONDS[parent.family] * (parent.depth + 1)
  return work.num_steps * (overhead + slots * per_member)


def memory(
  parent: Architecture, slots: int, num_seeds: int, work: Work, devices: int
) -> float:
  """Predicts the bytes a pack needs on all devices, data included."""
  shape = (work.input_shape, work.num_classes)
  spec = parent.spec(*shape)
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
  data = 4 * images * math.prod(work.input_shape) * devices
  return slots * num_seeds * state + activations + data


def _pad(count: int, devices: int) -> int:
  return -(-count // devices) * devices


def split_axis(slots: int, num_seeds: int, devices: int) -> str:
  """Chooses the axis split over devices: the one that wastes less."""
  if devices == 1:
    return "seed"
  seed_waste = _pad(num_seeds, devices) / num_seeds
  member_waste = _pad(slots, devices) / slots
  return "member" if member_waste < seed_waste else "seed"


def _ladder(width: int) -> int:
  """Rounds up to 1, 2, 3, 4, 6, 8, 12, 16, ...: steps below a half."""
  power = 2 ** (width - 1).bit_length()
  lower = power * 3 // 4
  return lower if 2 < width <= lower else power


def _merge(
  members: Sequence[Architecture], work: Work, num_seeds: int, devices: int
) -> list[list[Architecture]]:
  """Merges similar shapes while the predicted total time falls."""
  shape = (work.input_shape, work.num_classes)
  params = {a: a.num_params(*shape) for a in members}

  def cost(group):
    parent = architectures.parent(group)
    run = seconds(parent, len(group), work) * num_seeds / devices
    return run + COMPILE_SECONDS[parent.family] * (1 + parent.depth / 4)

  def padded(group):
    held = len(group) * architectures.parent(group).num_params(*shape)
    return held / sum(params[a] for a in group)

  buckets: dict[tuple, list[Architecture]] = {}
  for a in members:
    buckets.setdefault(tuple(map(_ladder, a.widths)), []).append(a)
  groups = [[a] for a in members] if len(members) <= 24 else []
  groups = groups or [
    part
    for bucket in buckets.values()
    for part in (
      [bucket] if padded(bucket) < MAX_PADDING else [[a] for a in bucket]
    )
  ]
  costs = [cost(group) for group in groups]
  savings: dict[tuple[int, int], float] = {}

  def saving(i, j):
    union = groups[i] + groups[j]
    if padded(union) >= MAX_PADDING:
      return -math.inf
    return costs[i] + costs[j] - cost(union)

  alive = set(range(len(groups)))
  for i in alive:
    for j in alive:
      if i < j:
        savings[i, j] = saving(i, j)
  while savings:
    (i, j), best = max(savings.items(), key=lambda item: item[1])
    if best <= 0:
      break
    groups.append(groups[i] + groups[j])
    costs.append(cost(groups[-1]))
    alive -= {i, j}
    savings = {
      pair: value
      for pair, value in savings.items()
      if i not in pair and j not in pair
    }
    new = len(groups) - 1
    savings |= {(k, new): saving(k, new) for k in alive}
    alive.add(new)
  return [groups[i] for i in sorted(alive)]


def plan(
  members: Sequence[Architecture],
  seeds: Sequence[int],
  work: Work,
  *,
  devices: int = 1,
  memory_limit: float = 4e9,
) -> list[Pack]:
  """Groups networks into packs, largest predicted time first.

  Args:
    members: architectures, of any families, without repetition.
    seeds: the seeds every one of them is trained with.
    work: the data's shape and the amount of training.
    devices: number of devices the packs are split over.
    memory_limit: bytes one pack may use; larger ones are split.

  Raises:
    ValueError: a single network does not fit the memory limit.
  """
  skeletons: dict[tuple, list[Architecture]] = {}
  for a in members:
    skeletons.setdefault(a.skeleton, []).append(a)
  packs = []
  for group in skeletons.values():
    for part in _merge(group, work, len(seeds), devices):
      packs += _chunk(part, tuple(seeds), work, devices, memory_limit)
  return sorted(
    packs, key=lambda p: -seconds(p.parent, p.slots, work) * len(p.seeds)
  )


def _chunk(members, seeds, work, devices, memory_limit) -> list[Pack]:
  """Cuts one group into equal packs that fit the cache and the memory."""
  parent = architectures.parent(members)
  params = parent.num_params(work.input_shape, work.num_classes)
  most = max(1, min(MAX_MEMBERS, int(CACHE_BYTES / (16 * params))))

  def need(slots, num_seeds):
    return memory(parent, slots, num_seeds, work, devices)

  while most > 1 and need(most, len(seeds)) > memory_limit:
    most = -(-most // 2)
  per_call = len(seeds)
  while per_call > 1 and need(most, per_call) > memory_limit:
    per_call = -(-per_call // 2)
  if need(most, per_call) > memory_limit:
    raise ValueError(
      f"{parent}: one network needs {need(1, 1) / 2**30:.2f} GiB, more than "
      f"--memory_limit={memory_limit / 2**30:.2f}; raise it, lower "
      "--batch_size or use fewer devices"
    )
  count = -(-len(members) // most)
  slots = -(-len(members) // count)
  # Similar networks together: less padding if a chunk's parent were smaller,
  # and one straggling shape does not widen its neighbours' program.
  ordered = sorted(members, key=lambda a: a.widths)
  return [
    Pack(tuple(ordered[i : i + slots]), seeds[j : j + per_call], parent, slots)
    for i in range(0, len(ordered), slots)
    for j in range(0, len(seeds), per_call)
  ]
