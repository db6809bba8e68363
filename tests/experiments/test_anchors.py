"""The anchors' stacks train what they say; each anchor runs (slow)."""

import csv
import os
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from experiments.benchmarks import measure, stacks
import minarch_jax as ma

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def task(synthetic):
  return stacks.make_task("dnn:6-5", synthetic)


def test_a_stack_is_its_networks(task):
  """Three networks on eight devices equal each alone; masks stay zero."""
  start = stacks.initial(task, SEEDS)
  cut = jax.vmap(lambda p: ma.prune(p, 0.5))(start)
  masks = stacks.fill(cut, start)
  assert stacks.sparsity(masks) == pytest.approx(0.5, abs=0.01)
  count = len(task.dataset.train.y)
  order = np.concatenate(list(stacks.orders(SEEDS, 2, count, 32)), axis=1)
  assert order.shape == (3, 2 * (count // 32), 32)
  assert len(np.unique(order[0, : count // 32])) == count // 32 * 32
  train = stacks.make_train(task.apply, optax.scale_by_adam())
  rates = np.full(order.shape[1], 1e-2, np.float32)
  together = train(start, masks, order, rates, *task.dataset.train)
  for i in SEEDS:
    alone = train(
      *jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], (start, masks)),
      *(order[i : i + 1], rates, *task.dataset.train),
    )
    jax.tree.map(
      lambda one, all, i=i: np.testing.assert_allclose(
        one[0], all[i], atol=1e-6
      ),
      *(alone, together),
    )
  for leaf, mask in zip(
    jax.tree.leaves(together), jax.tree.leaves(masks), strict=True
  ):
    assert not np.any(np.asarray(leaf)[~np.asarray(mask)])
  score = stacks.make_score(task.apply)(together, task.dataset.test)
  ours = ma.accuracy(task.architecture, together, task.dataset.test)
  np.testing.assert_allclose(score, ours, rtol=1e-6)
  assert np.mean(score) > np.mean(
    stacks.make_score(task.apply)(start, task.dataset.test)
  )


RUNS = {
  "pruning_anchors": (
    ("--dataset=synthetic:easy", "--num_epochs=1", "--num_seeds=2"),
    ("--rounds=3",),
    ("pruning_anchors_lottery", "pruning_anchors_snip"),
  ),
  "quantization_anchors": (
    ("--parts=table", "--datasets=digits", "--table_steps=2"),
    ("--num_seeds=2",),
    ("quantization_anchors_table",),
  ),
  "pruning_step": (("--quick",), (), ("pruning_step",)),
  "compaction_speed": (("--quick",), (), ("compaction_speed",)),
  "integer_speed": (("--quick",), (), ("integer_speed",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_it_runs(name, tmp_path):
  some, more, tables = RUNS[name]
  done = subprocess.run(
    [
      *(sys.executable, "-m", f"experiments.benchmarks.{name}"),
      *(*some, *more, f"--out={tmp_path}"),
    ],
    capture_output=True,
    text=True,
    cwd=measure.ROOT,
  )
  assert done.returncode == 0, done.stderr
  for table in tables:
    with open(os.path.join(tmp_path, "benchmarks", f"{table}.csv")) as file:
      assert list(csv.DictReader(file))
