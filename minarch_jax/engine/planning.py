"""Plans packs: which networks share a parent and a compiled program.

A pure function of the architectures, the seeds, the work and the machine's
description (`costs`); no JAX. Networks with one skeleton may share a parent. A
group saves compilations and costs padded work, however much pays: all networks
of a skeleton are cut along widths and depth, as a decision tree cuts, until no
cut lowers the predicted time; then pairs that gain by it are joined again.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from minarch_jax import architectures
from minarch_jax.architectures import Architecture
from minarch_jax.engine import costs
from minarch_jax.engine.costs import Machine, REFERENCE, Work

# A study runs a pack's program so many times as long as its training takes:
# the default study compresses and trains its arms for three times as long.
REUSE = 4
MAX_SPREAD = 4  # members of a group that may go to other groups
MAX_MEMBERS = 32  # more gain nothing: the first product is wide enough by then
CACHE_BYTES = 48e6  # optimizer traffic of one seed's members stays near cache


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

  def __init__(self, members, work: Work, machine: Machine, weight: float):
    self.members, self.work, self.machine = members, work, machine
    self.weight = weight  # of a second of running beside one of compiling
    depth = max(a.depth for a in members)
    self.widths = np.array([a.extended(depth).widths for a in members])
    self.depths = np.array([a.depth for a in members])
    self.lengths = np.array([len(a.widths) for a in members])

  def _count(self, a: Architecture) -> int:
    return _num_params(a, self.work)

  def parent(self, group: np.ndarray) -> Architecture:
    """`architectures.parent`, at once for many groups of few sizes."""
    first = self.members[int(group[0])]
    widths = self.widths[group, : self.lengths[group].max()].max(axis=0)
    return dataclasses.replace(first, widths=tuple(widths.tolist()))

  def cost(self, group: np.ndarray) -> float:
    """Predicts the seconds of compiling and running a group."""
    parent = self.parent(group)
    count, slots = _slots(len(group), _most_members(self._count(parent)))
    run = count * costs.seconds(parent, slots, self.work, self.machine)
    return run * self.weight + costs.compile_seconds(parent, self.machine)

  def cuts(self, group: np.ndarray):
    """Lists the ways to cut a group at a width or at a depth."""
    for column in (*self.widths[group].T, self.depths[group]):
      for value in np.unique(column)[:-1]:
        yield group[column <= value], group[column > value]

  def cut(self, group: np.ndarray) -> list[np.ndarray]:
    """Cuts a group as long as that pays."""
    ways = [(self.cost(a) + self.cost(b), a, b) for a, b in self.cuts(group)]
    if not ways:
      return [group]
    cost, a, b = min(ways, key=lambda way: way[0])
    if self.cost(group) <= cost:
      return [group]
    return self.cut(a) + self.cut(b)

  def join(self, groups: list[np.ndarray]) -> list[np.ndarray]:
    """Joins pairs, best first, while it pays."""
    found = dict(enumerate(groups))
    spent = {i: self.cost(group) for i, group in found.items()}
    savings: dict[tuple[int, int], float] = {}

    def consider(i, j):
      union = np.concatenate([found[i], found[j]])
      saved = spent[i] + spent[j] - self.cost(union)
      if saved > 0:
        savings[i, j] = saved

    for i in found:
      for j in range(i):
        consider(i, j)
    while savings:
      i, j = max(savings, key=savings.__getitem__)
      new = max(found) + 1
      found[new] = np.concatenate([found.pop(i), found.pop(j)])
      spent[new] = self.cost(found[new])
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
        ways.append((self.cost(union) - self.cost(other), j, union))
      if not ways:
        return []
      cost, j, union = min(ways, key=lambda way: way[:2])
      spent, others[j] = spent + cost, union
    return others if spent < self.cost(group) else []


def _grouped(
  members: Sequence[Architecture], work: Work, machine: Machine, weight: float
) -> list[list[Architecture]]:
  """Groups networks of one skeleton that share a parent."""
  groups = _Groups(members, work, machine, weight)
  found = groups.join(groups.cut(np.arange(len(members))))
  found = groups.dissolve(found)
  return [[members[i] for i in group] for group in found]


def plan(
  members: Sequence[Architecture],
  seeds: Sequence[int],
  work: Work,
  *,
  machine: Machine = REFERENCE,
  devices: int = 1,
  at_once: int = 2,
  memory_limit: float = 4e9,
) -> list[Pack]:
  """Groups networks into packs, largest predicted time first.

  Args:
    members: architectures, of any families, without repetition.
    seeds: the seeds every one of them is trained with.
    work: the data's shape and the amount of training.
    machine: how fast it is.
    devices: number of devices the packs are split over.
    at_once: how many packs are in progress at a time.
    memory_limit: bytes one pack may use; larger ones are split.

  Raises:
    ValueError: a single network does not fit the memory limit.
  """
  skeletons: dict[tuple, list[Architecture]] = {}
  for a in members:
    skeletons.setdefault(a.skeleton, []).append(a)
  # All devices run a pack at once, and a thread compiles for one of a few.
  weight = REUSE * len(seeds) * at_once / devices
  packs = []
  for group in skeletons.values():
    for part in _grouped(group, work, machine, weight):
      packs += _chunk(part, tuple(seeds), work, devices, memory_limit)
  return sorted(packs, key=lambda p: -core_seconds(p, work, machine))


def core_seconds(pack: Pack, work: Work, machine: Machine = REFERENCE) -> float:
  """Predicts the training time of a pack, if it had one device."""
  alone = costs.one_by_one(pack.parent, machine)
  count = len(pack.architectures) if alone else pack.slots
  return costs.seconds(pack.parent, count, work, machine) * len(pack.seeds)


def _chunk(members, seeds, work, devices, memory_limit) -> list[Pack]:
  """Cuts one group into equal packs that fit the cache and the memory."""
  parent = architectures.parent(members)
  params = _num_params(parent, work)
  most = _most_members(params)

  def need(slots, num_seeds):
    return costs.memory(parent, slots, num_seeds, work, devices)

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
