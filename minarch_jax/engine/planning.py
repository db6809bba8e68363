"""Plans packs: which networks share a parent and a compiled program.

A pure function of the architectures, the seeds, the work and the machine's
description; no JAX. Networks with one skeleton may share a parent. A group
saves compilations and costs padded work: all networks of a skeleton are cut
along widths and depth, as a decision tree cuts, until no cut lowers the
predicted time and padding is below `MAX_PADDING`; then pairs that gain by it
are joined again.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from minarch_jax import architectures
from minarch_jax.architectures import Architecture, Problem

MAX_PADDING = 2.0
MICROBATCH_BYTES = 2.6e6  # read and written; the best on cores of 1 MiB L2
MAX_GROUPS = 50  # of one skeleton, as far as padding allows
MAX_SPREAD = 4  # members of a group that may go to other groups
MAX_MEMBERS = 32  # more gain nothing: the first product is wide enough by then
CACHE_BYTES = 48e6  # optimizer traffic of one seed's members stays near cache

# Rough cost of one of two busy cores (AVX-512, jax 0.12); those of families are
# `Family.costs`, fitted to steps of 30 packs on 8x8 and 28x28 images. They
# decide the plan and the forecast, and cannot change a result.
STATE_BYTES_PER_SECOND = 24e9  # of parameters and moments


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
  held = pack.slots * _num_params(pack.parent, work)
  return held / sum(_num_params(a, work) for a in pack.architectures)


def _num_params(architecture: Architecture, work: Work) -> int:
  return architecture.spec(work.problem).num_params


def _layer_bytes(parent: Architecture, work: Work) -> float:
  """Counts what the layers read and write for one image, windows unfolded."""
  spec = parent.spec(work.problem)
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


def seconds(parent: Architecture, slots: int, work: Work) -> float:
  """Predicts the training time of one seed of a pack on one device."""
  spec, costs = parent.spec(work.problem), parent.traits.costs
  # Forward, gradient of weights, gradient of inputs: two flops per MAC each.
  images = work.batch_size + work.num_eval / 3 / max(
    1, work.num_train // work.batch_size
  )
  flops = 6 * spec.macs * images
  state = 28 * spec.num_params  # Adam reads 4, writes 3 floats
  layers = images * _layer_bytes(parent, work)
  per_member = (
    flops / costs.flops
    + state / STATE_BYTES_PER_SECOND
    + layers / costs.layer_bytes_per_second
  )
  overhead = costs.step_seconds * (parent.depth + 1)
  return work.num_steps * (overhead + slots * per_member)


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


def microbatch(parent: Architecture, batch_size: int, work: Work) -> int:
  """Chooses how many images a core takes through a network at a time.

  What the layers read and write for them should stay in its second-level
  cache; a CNN 16-32-32 on 28x28 images then takes 0.6 of the time.

  Returns:
    The divisor of `batch_size` nearest to that, by ratio; 4 at least.
  """
  wanted = MICROBATCH_BYTES / _layer_bytes(parent, work)
  least = min(4, batch_size)
  divisors = [n for n in range(least, batch_size + 1) if batch_size % n == 0]
  return min(divisors, key=lambda n: abs(math.log(n / wanted)))


def _pad(count: int, devices: int) -> int:
  return -(-count // devices) * devices


def split_axis(
  slots: int, num_seeds: int, devices: int, batch_size: int = 0
) -> str:
  """Chooses the axis split over devices: the one that wastes less.

  A single network has its minibatches split, where they divide.
  """
  if devices == 1:
    return "seed"
  if slots * num_seeds == 1 and batch_size and batch_size % devices == 0:
    return "batch"
  seed_waste = _pad(num_seeds, devices) / num_seeds
  member_waste = _pad(slots, devices) / slots
  return "member" if member_waste < seed_waste else "seed"


def _most_members(num_params: int) -> int:
  """How many members of a parent one pack may hold."""
  return max(1, min(MAX_MEMBERS, int(CACHE_BYTES / (16 * num_params))))


def _slots(num_members: int, most: int) -> tuple[int, int]:
  """Cuts members into equal chunks: how many, and the slots of each."""
  count = -(-num_members // most)
  return count, -(-num_members // count)


class _Groups:
  """Costs of sets of networks of one skeleton, given by their indices."""

  def __init__(self, members, work: Work, num_seeds: int, devices: int):
    self.members, self.work = members, work
    self.per_device = num_seeds / devices
    depth = max(a.depth for a in members)
    self.widths = np.array([a.extended(depth).widths for a in members])
    self.depths = np.array([a.depth for a in members])
    self.lengths = np.array([len(a.widths) for a in members])
    self.params = np.array([self._count(a) for a in members])

  def _count(self, a: Architecture) -> int:
    return _num_params(a, self.work)

  def parent(self, group: np.ndarray) -> Architecture:
    """`architectures.parent`, at once for many groups of few sizes."""
    first = self.members[int(group[0])]
    widths = self.widths[group, : self.lengths[group].max()].max(axis=0)
    return dataclasses.replace(first, widths=tuple(widths.tolist()))

  def padding(self, group: np.ndarray) -> float:
    params = self._count(self.parent(group))
    count, slots = _slots(len(group), _most_members(params))
    return count * slots * params / int(self.params[group].sum())

  def cost(self, group: np.ndarray) -> float:
    """Predicts the seconds of training and compiling a group."""
    parent = self.parent(group)
    run = seconds(parent, len(group), self.work)
    compiling = parent.traits.costs.compile_seconds * (1 + parent.depth / 4)
    return run * self.per_device + compiling

  def cuts(self, group: np.ndarray):
    """Lists the ways to cut a group at a width or at a depth."""
    for column in (*self.widths[group].T, self.depths[group]):
      for value in np.unique(column)[:-1]:
        yield group[column <= value], group[column > value]

  def cut(self, group: np.ndarray) -> list[np.ndarray]:
    """Cuts a group as long as that is needed or pays."""
    ways = [(self.cost(a) + self.cost(b), a, b) for a, b in self.cuts(group)]
    if not ways:
      return [group]
    cost, a, b = min(ways, key=lambda way: way[0])
    if self.padding(group) < MAX_PADDING and self.cost(group) <= cost:
      return [group]
    return self.cut(a) + self.cut(b)

  def join(self, groups: list[np.ndarray]) -> list[np.ndarray]:
    """Joins pairs, best first, while it pays or there are too many groups."""
    found = dict(enumerate(groups))
    costs = {i: self.cost(group) for i, group in found.items()}
    savings: dict[tuple[int, int], float] = {}

    def consider(i, j):
      union = np.concatenate([found[i], found[j]])
      if self.padding(union) < MAX_PADDING:
        savings[i, j] = costs[i] + costs[j] - self.cost(union)

    for i in found:
      for j in range(i):
        consider(i, j)
    while savings:
      i, j = max(savings, key=savings.__getitem__)
      if savings[i, j] <= 0 and len(found) <= MAX_GROUPS:
        break
      new = max(found) + 1
      found[new] = np.concatenate([found.pop(i), found.pop(j)])
      costs[new] = self.cost(found[new])
      savings = {
        pair: value for pair, value in savings.items() if not {i, j} & set(pair)
      }
      for other in list(found)[:-1]:
        consider(new, other)
    return list(found.values())

  def dissolve(self, groups: list[np.ndarray]) -> list[np.ndarray]:
    """Spreads small groups over the others while that is allowed and pays."""
    for i, group in enumerate(groups):
      if len(group) <= MAX_SPREAD:
        found = self._spread(group, groups[:i] + groups[i + 1 :])
        if found:
          return self.dissolve(found)
    return groups

  def _spread(self, group, others) -> list[np.ndarray]:
    """Gives each network to the group it costs least; [] if that is no gain."""
    others, spent = list(others), 0.0
    for member in group:
      ways = []
      for j, other in enumerate(others):
        union = np.append(other, member)
        if self.padding(union) < MAX_PADDING:
          ways.append((self.cost(union) - self.cost(other), j, union))
      if not ways:
        return []
      cost, j, union = min(ways, key=lambda way: way[:2])
      spent, others[j] = spent + cost, union
    return others if spent < self.cost(group) else []


def _grouped(
  members: Sequence[Architecture], work: Work, num_seeds: int, devices: int
) -> list[list[Architecture]]:
  """Groups networks of one skeleton that share a parent."""
  groups = _Groups(members, work, num_seeds, devices)
  found = groups.join(groups.cut(np.arange(len(members))))
  found = groups.dissolve(found)
  return [[members[i] for i in group] for group in found]


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
    for part in _grouped(group, work, len(seeds), devices):
      packs += _chunk(part, tuple(seeds), work, devices, memory_limit)
  return sorted(
    packs, key=lambda p: -seconds(p.parent, p.slots, work) * len(p.seeds)
  )


def _chunk(members, seeds, work, devices, memory_limit) -> list[Pack]:
  """Cuts one group into equal packs that fit the cache and the memory."""
  parent = architectures.parent(members)
  params = _num_params(parent, work)
  most = _most_members(params)

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
  count, slots = _slots(len(members), most)
  # One program serves all chunks, so each gets its share of the wide ones.
  ordered = sorted(members, key=lambda a: (-_num_params(a, work), a.widths))
  return [
    Pack(tuple(ordered[i::count]), seeds[j : j + per_call], parent, slots)
    for i in range(count)
    for j in range(0, len(seeds), per_call)
  ]


def halves(pack: Pack) -> list[Pack]:
  """Cuts a pack's members, or the seeds of a single one, into two packs.

  One network gives up its spare slots; without any, nothing is left to cut.
  """
  members, seeds = pack.architectures, pack.seeds
  if len(members) > 1:
    middle = -(-len(members) // 2)
    parts = (members[:middle], members[middle:])
    return [
      dataclasses.replace(pack, architectures=part, slots=middle)
      for part in parts
    ]
  if len(seeds) > 1:
    middle = -(-len(seeds) // 2)
    return [
      dataclasses.replace(pack, seeds=part, slots=1)
      for part in (seeds[:middle], seeds[middle:])
    ]
  return [dataclasses.replace(pack, slots=1)] if pack.slots > 1 else []
