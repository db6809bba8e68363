"""Planning: every network once, little padding, within memory, repeatable."""

import itertools
import random

import pytest

from minarch_jax import architectures, registries
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.engine import costs, planning
from minarch_jax.engine.costs import Machine, Work
from minarch_jax.engine.planning import Pack

DIGITS = Work(Problem((8, 8, 1), 10), 1294, 143, 64, 30)
MNIST = Work(Problem((28, 28, 1), 10), 54_000, 6_000, 128, 10)
CIFAR = Work(Problem((32, 32, 3), 10), 45_000, 5_000, 128, 10)
WORKS = {"digits": DIGITS, "mnist": MNIST, "cifar": CIFAR}

GRIDS = [
  (grid, family)
  for grid in ("tiny", "small", "square")
  for family in registries.FAMILIES
] + [("paper", "cnn")]
MACHINES = [(1, 3), (2, 5), (8, 4)]  # devices, seeds
ROOM = 64 * 2.0**30


def grid(name, family, work):
  return architectures.grid(name, family, *work.problem)


def check(packs, members, seeds, work):
  """What every plan must satisfy."""
  planned = [
    (a, seed) for p in packs for a in p.architectures for seed in p.seeds
  ]
  assert len(planned) == len(set(planned))
  assert set(planned) == set(itertools.product(members, seeds))
  for pack in packs:
    assert {a.skeleton for a in pack.members} == {pack.parent.skeleton}
    # The members add nothing to what the parent holds.
    assert architectures.parent([pack.parent, *pack.members]) == pack.parent
    assert len(pack.architectures) <= pack.slots == len(pack.members)
    assert set(pack.members) == set(pack.architectures)
    assert pack.members[: len(pack.architectures)] == pack.architectures
  each = [planning.core_seconds(p, work) for p in packs]
  assert each == sorted(each, reverse=True)


def groups(packs):
  """Packs by the program they run, those of one seed range each."""
  found = {}
  for pack in packs:
    found.setdefault((pack.program, pack.seeds), []).append(pack)
  return list(found.values())


def cost(packs, work, machine=costs.REFERENCE, devices=1):
  """What a plan is chosen by, added up in other words."""
  programs = {pack.program: pack for pack in packs}.values()
  compiling = sum(costs.compile_seconds(p.parent, machine) for p in programs)
  run = sum(
    costs.seconds(p.parent, p.slots, work, machine) * len(p.seeds)
    for p in packs
  )
  return compiling + planning.REUSE * run * 2 / devices


def apart(members, seeds):
  """Every network in a program of its own."""
  return [Pack((a,), tuple(seeds), a, 1) for a in members]


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("name, family", GRIDS)
def test_every_network_is_planned_once(name, family, work):
  members = grid(name, family, work)
  for devices, num_seeds in MACHINES:
    packs = planning.plan(
      members, range(num_seeds), work, devices=devices, memory_limit=ROOM
    )
    check(packs, members, range(num_seeds), work)
    assert len(packs) <= len(members)


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS)
@pytest.mark.parametrize("name, family", GRIDS)
def test_a_plan_costs_no_more_than_programs_of_their_own(name, family, work):
  members = grid(name, family, work)
  for devices, num_seeds in MACHINES:
    seeds = range(num_seeds)
    packs = planning.plan(
      members, seeds, work, devices=devices, memory_limit=ROOM
    )
    alone = cost(apart(members, seeds), work, devices=devices)
    assert cost(packs, work, devices=devices) <= 1.001 * alone


def test_padding_follows_what_compiling_and_running_cost():
  members = grid("ladder", "vit", DIGITS)

  def plan(**factors):
    machine = Machine.of("cpu", {f"{k} vit": v for k, v in factors.items()})
    packs = planning.plan(members, range(5), DIGITS, machine=machine, devices=2)
    held = sum(p.slots * p.parent.num_params(*DIGITS.problem) for p in packs)
    return len(packs), held

  programs, held = zip(
    plan(run=1e-3), plan(), plan(run=1e3), plan(compile=1e3), strict=True
  )
  asked = sum(a.num_params(*DIGITS.problem) for a in members)
  assert programs[0] < programs[1] < programs[2] == len(members)
  assert held[0] > held[1] > held[2] == asked
  assert programs[3] == programs[0] == len({a.skeleton for a in members})


def test_families_share_one_plan():
  members = [a for f in registries.FAMILIES for a in grid("tiny", f, DIGITS)]
  random.Random(0).shuffle(members)
  packs = planning.plan(members, (7, 3), DIGITS)
  check(packs, members, (7, 3), DIGITS)
  assert all(pack.seeds == (7, 3) for pack in packs)


def test_plans_repeat():
  members = grid("small", "vit", DIGITS)
  first = planning.plan(members, range(3), DIGITS, devices=2)
  assert planning.plan(members, range(3), DIGITS, devices=2) == first


def test_nothing_to_plan():
  assert planning.plan([], range(3), DIGITS) == []


def test_cheap_networks_are_packed_and_one_program_serves_equal_packs():
  members = [Architecture("dnn", (width,)) for width in range(1, 101)]
  packs = planning.plan(members, range(2), DIGITS)
  check(packs, members, range(2), DIGITS)
  assert len({pack.program for pack in packs}) < 20
  assert max(len(pack.architectures) for pack in packs) > 4
  assert max(p.slots for p in packs) <= planning.MAX_MEMBERS


def test_chunks_of_one_group_share_the_wide_networks():
  members = [Architecture("dnn", (width,)) for width in range(1, 101)]
  slow = Machine.of("cpu", {"compile dnn": 100.0})
  packs = planning.plan(members, range(2), DIGITS, machine=slow)
  cut = [group for group in groups(packs) if len(group) > 1]
  assert cut  # some group is larger than a pack
  for group in cut:
    sizes = [sorted(a.widths for a in p.architectures) for p in group]
    assert max(map(len, sizes)) - min(map(len, sizes)) <= 1
    # Interleaved by size: the largest of each is larger than the second of any.
    largest = [size[-1] for size in sizes]
    assert min(largest) > max(size[-2] for size in sizes if len(size) > 1)


@pytest.mark.parametrize("work", [DIGITS, MNIST], ids=["digits", "mnist"])
@pytest.mark.parametrize("name", ["paper", "monotone"])
def test_all_dnn_shapes_of_the_paper_compile_for_a_small_share(work, name):
  members = grid(name, "dnn", work)
  packs = planning.plan(members, range(4), work, devices=2)
  check(packs, members, range(4), work)
  programs = {pack.program for pack in packs}
  assert len(programs) < len(members) / 3
  compiling = sum(costs.compile_seconds(parent) for parent, *_ in programs)
  assert compiling < 0.3 * cost(packs, work, devices=2)


# --- memory ------------------------------------------------------------------


@pytest.mark.parametrize("family", registries.FAMILIES)
@pytest.mark.parametrize("devices", [1, 2])
def test_packs_that_do_not_fit_are_split(family, devices):
  members = grid("square", family, DIGITS)
  largest = architectures.parent(members[-1:])
  alone = costs.memory(largest, 1, 1, DIGITS, devices)
  for limit in (alone, 2 * alone, 20 * alone):
    packs = planning.plan(
      members, range(5), DIGITS, devices=devices, memory_limit=limit
    )
    check(packs, members, range(5), DIGITS)
    for p in packs:
      used = costs.memory(p.parent, p.slots, len(p.seeds), DIGITS, devices)
      assert used <= limit


def test_a_network_that_cannot_fit_says_what_it_needs():
  members = grid("tiny", "dnn", MNIST)
  with pytest.raises(ValueError, match="GiB, more than --memory_limit=0.01"):
    planning.plan(members, range(2), MNIST, memory_limit=0.01 * 2**30)


@pytest.mark.parametrize("seeds", [(0,), (4, 1, 2)])
@pytest.mark.parametrize("count, slots", [(1, 1), (1, 3), (2, 2), (5, 7)])
def test_halves_hold_a_pack_once_and_end_with_one_network(count, slots, seeds):
  members = tuple(
    Architecture("dnn", (width,)) for width in range(1, count + 1)
  )
  parent = architectures.parent([*members, Architecture("dnn", (9, 9))])
  todo, found = [Pack(members, seeds, parent, slots)], []
  while todo:
    pack = todo.pop()
    parts = planning.halves(pack)
    for part in parts:
      assert part.parent == parent
      assert len(part.architectures) <= part.slots
      assert part.slots * len(part.seeds) < pack.slots * len(pack.seeds)
    assert len({part.slots for part in parts}) <= 1
    if not parts:
      assert (pack.slots, len(pack.seeds)) == (1, 1)
      found.append((pack.architectures[0], pack.seeds[0]))
    todo += parts
  assert sorted(found) == sorted(itertools.product(members, seeds))


# --- layouts ---


def test_padding_is_one_without_padding():
  a, b = (Architecture("dnn", (width,)) for width in (10, 5))
  shape = ((8, 8, 1), 10)
  alone = Pack((a,), (0,), a, 1)
  assert planning.padding(alone, DIGITS) == 1
  pair = Pack((a, b), (0,), a, 2)
  expected = (
    2 * a.num_params(*shape) / (a.num_params(*shape) + b.num_params(*shape))
  )
  assert planning.padding(pair, DIGITS) == expected
  spare = Pack((a,), (0,), a, 3)
  assert planning.padding(spare, DIGITS) == 3


@pytest.mark.parametrize(
  "slots, seeds, devices, expected",
  [
    (8, 5, 1, "seed"),
    (8, 4, 2, "seed"),
    (8, 5, 2, "member"),
    (7, 5, 2, "member"),
    (5, 7, 2, "seed"),
    (1, 5, 2, "seed"),
    (16, 30, 8, "member"),
    (3, 8, 8, "seed"),
  ],
)
def test_the_axis_that_wastes_less_is_split(slots, seeds, devices, expected):
  assert planning.split_axis(slots, seeds, devices) == expected


def test_one_network_splits_its_minibatch_where_that_divides():
  split = planning.split_axis
  assert split(1, 1, 8, 64) == "batch"
  assert split(1, 1, 8, 60) == split(1, 1, 8, 0) == split(1, 1, 1, 64) == "seed"
  assert "batch" not in (split(2, 1, 8, 64), split(1, 2, 8, 64))
