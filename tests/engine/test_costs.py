"""What work takes: more of it takes more; a machine multiplies."""

import dataclasses

import pytest

from minarch_jax import registries
from minarch_jax.architectures import Architecture, Problem
from minarch_jax.engine import costs
from minarch_jax.engine.costs import Machine, REFERENCE, Work
from minarch_jax.engine.planning import core_seconds, Pack

DIGITS = Work(Problem((8, 8, 1), 10), 1294, 143, 64, 30)
MNIST = Work(Problem((28, 28, 1), 10), 54_000, 6_000, 128, 10)


@pytest.mark.parametrize("text", ["dnn:30-30", "cnn:8-16", "vit:p4-d8-l2-h2"])
def test_more_work_costs_more(text):
  a = Architecture.parse(text)
  wider = Architecture(a.family, tuple(2 * w for w in a.widths), a.options)
  longer = dataclasses.replace(DIGITS, num_epochs=60)
  base = costs.seconds(a, 2, DIGITS)
  assert base > 0
  assert costs.seconds(wider, 2, DIGITS) > base
  assert base < costs.seconds(a, 3, DIGITS) <= 1.5 * base
  assert costs.seconds(a, 2, longer) == pytest.approx(2 * base)
  held = costs.memory(a, 2, 3, DIGITS, 1)
  assert costs.memory(wider, 2, 3, DIGITS, 1) > held
  assert costs.memory(a, 3, 3, DIGITS, 1) > held
  assert costs.memory(a, 2, 4, DIGITS, 1) > held
  assert costs.memory(a, 2, 3, DIGITS, 2) > held


def test_memory_counts_at_least_parameters_moments_and_data():
  a = Architecture.parse("dnn:1000-1000")
  params = a.num_params(*MNIST.problem)
  images = 4 * 28 * 28 * 60_000
  assert costs.memory(a, 2, 5, MNIST, 1) > 2 * 5 * 12 * params + images


def test_steps_count_full_batches_only():
  assert DIGITS.num_steps == 20 * 30
  assert MNIST.num_steps == 421 * 10


@pytest.mark.parametrize("batch_size", [1, 3, 61, 64, 100, 128])
@pytest.mark.parametrize("text", ["cnn:1", "cnn:32", "cnn:16-32-32"])
def test_microbatches_divide_a_minibatch(text, batch_size):
  size = costs.microbatch(Architecture.parse(text), batch_size, MNIST.problem)
  assert batch_size % size == 0 and size >= min(4, batch_size)


def test_wider_networks_take_fewer_images_at_a_time():
  sizes = [
    costs.microbatch(Architecture.parse(text), 128, MNIST.problem)
    for text in ("cnn:1", "cnn:8", "cnn:16", "cnn:32", "cnn:16-32-32")
  ]
  assert sizes == sorted(sizes, reverse=True) and sizes[0] > 32 > sizes[-1]


def test_a_machine_multiplies_what_its_family_costs():
  a = Architecture.parse("cnn:8")
  machine = Machine.of("cpu", {"run cnn": 3.0, "compile cnn": 5.0})
  assert costs.seconds(a, 2, DIGITS, machine) == pytest.approx(
    3 * costs.seconds(a, 2, DIGITS)
  )
  assert costs.compile_seconds(a, machine) == pytest.approx(
    5 * costs.compile_seconds(a)
  )
  other = Architecture.parse("dnn:8")
  assert costs.seconds(other, 2, DIGITS, machine) == (
    costs.seconds(other, 2, DIGITS)
  )
  assert hash(machine) == hash(Machine.of("cpu", dict(machine.factors)))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("text", ["dnn:8", "cnn:8", "vit:p4-d8-l1-h1"])
def test_spare_slots_cost_only_where_members_run_together(text, backend):
  a, machine = Architecture.parse(text), Machine(backend)
  layouts = registries.FAMILIES[a.family].layouts
  mapped = layouts.get(backend, layouts["other"]).members == "map"
  alone, spare = (
    core_seconds(Pack((a,), (0, 1), a, slots), DIGITS, machine)
    for slots in (1, 4)
  )
  assert (spare == alone) == mapped
  assert alone == 2 * costs.seconds(a, 1, DIGITS, machine)
  assert REFERENCE.factor("run", a.family) == 1.0
