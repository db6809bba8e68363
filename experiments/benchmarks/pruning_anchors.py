r"""Prunes LeNet-300-100 on MNIST beside two published tables.

  python -m experiments.benchmarks.pruning_anchors --data_dir=data --out=results

`lottery` finds tickets by iterative magnitude pruning with rewinding to the
initialisation (Frankle & Carbin 2019, arXiv 1803.03635, section 2): a fifth of
the weights of the hidden layers and a tenth of the output layer's each round.
Beside them train the same masks on other initial weights. `snip` prunes 95 and
98 % once: SNIP and random masks at the initialisation, and the trained network
by magnitude with fine-tuning (Lee et al. 2019, arXiv 1810.02340, table 2).

Differences from the papers, whose figures are beside ours: they train tickets
for 50,000 steps of 60 images and SNIP for 250,000 steps of 100, ours for
--num_epochs of 128 images (tickets) and twice that with a falling rate (SNIP);
they report the lottery at the step of least validation loss, we report the
last step; 6,000 of the 60,000 training images are held out here. Adam with
rate 0.0012 as in the lottery paper; SNIP's used momentum and weight decay.
"""

from collections.abc import Callable, Sequence
import functools
import math
import time
from typing import Any

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from experiments.benchmarks import measure, stacks
from minarch_jax import config, data, pruning
from minarch_jax import flags as config_flags
from minarch_jax.engine import population
from minarch_jax.pruning import schedules

config_flags.define("dataset", "data_dir", "out", "num_epochs", "num_seeds")
flags.FLAGS.set_default("dataset", "mnist")
flags.FLAGS.set_default("num_epochs", 2)
flags.DEFINE_list("parts", ["lottery", "snip"], "Tables: lottery, snip.")
flags.DEFINE_integer("rounds", 18, "Rounds of the lottery.", lower_bound=1)

NETWORK = "dnn:300-100"
RATE, OUTPUT_RATE = 0.2, 0.1  # share pruned each round
LEARNING_RATE, BATCH = 1.2e-3, 128
# Rounds whose remaining weights the lottery paper names, and what it says of
# tickets (test accuracy against the dense network's) and of the controls.
LOTTERY = {
  0: ("dense", "dense"),
  3: ("above dense, learns faster", ""),
  7: ("above dense, learns fastest", "below dense"),
  9: ("above dense by > 0.3 points", "below dense"),
  15: ("as dense", "below dense"),
  18: ("below dense", "below dense"),
}
# SNIP's table 2: test error in percent.
SNIP_DENSE, SNIP_ERRORS = 1.7, {0.95: 1.6, 0.98: 2.4}
SNIP_BATCH = 100  # images SNIP looks at

Train = Callable[[Any, Any, int], Any]


def make_train(
  task: stacks.Task, seeds: Sequence[int], learning_rates: Callable
) -> Train:
  """Makes `train(params, masks, epochs)`; stacks hold all seeds in turn."""
  run = stacks.make_train(task.apply, optax.scale_by_adam())
  images, labels = (jnp.asarray(part) for part in task.dataset.train)

  def train(params, masks, epochs):
    copies = jax.tree.leaves(params)[0].shape[0] // len(seeds)
    parts = stacks.orders(list(seeds) * copies, epochs, len(labels), BATCH)
    order = np.concatenate(list(parts), axis=1)
    rates = learning_rates(order.shape[1]).astype(np.float32)
    return run(params, masks, order, rates, images, labels)

  return train


def cut(params: Any, sparsity: Any, masks: Any) -> Any:
  """Cuts every seed's layers to a round's sparsities by magnitude."""
  rounds = math.log(1 - sparsity) / math.log(1 - RATE)
  output = 1 - (1 - OUTPUT_RATE) ** rounds
  scope = {"hidden_0": sparsity, "hidden_1": sparsity, "output": output}
  if masks is None:
    masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), params)
  prune = functools.partial(pruning.prune, sparsity=sparsity, scope=scope)
  cut_one = jax.vmap(lambda p, m: prune(p, masks=m))
  return stacks.fill(cut_one(params, masks), params)


def lottery(
  task: stacks.Task, seeds: Sequence[int], epochs: int, *, rounds: int
):
  """Yields a row for each of the lottery paper's levels."""
  train = make_train(task, seeds, lambda n: np.full(n, LEARNING_RATE))
  score = stacks.make_score(task.apply)
  start = stacks.initial(task, seeds)
  other = stacks.initial(task, [1000 + seed for seed in seeds])
  steps = len(task.dataset.train.y) // BATCH
  tickets = schedules.lottery(
    start, cut, train, epochs, rounds=rounds, rate=RATE
  )
  dense = score(tickets[0].params, task.dataset.test)
  for number, said in LOTTERY.items():
    if number > rounds:
      return
    ticket = tickets[number]
    controlled = pruning.apply_masks(other, ticket.masks)
    found = {
      "ticket": score(ticket.params, task.dataset.test),
      "re-initialised": score(
        train(controlled, ticket.masks, epochs), task.dataset.test
      ),
    }
    left = 1 - stacks.sparsity(ticket.masks)
    for (name, accuracies), theirs in zip(found.items(), said, strict=True):
      yield {
        "network": name,
        "weights (%)": 100 * left,
        **facts(accuracies, dense),
        "published": theirs,
        "steps": steps * epochs,
      }


def facts(accuracies: np.ndarray, dense: np.ndarray) -> measure.Row:
  """Test accuracy in percent: mean, spread, distance to dense by seed."""
  difference = 100 * (accuracies - dense)
  return {
    "accuracy (%)": 100 * accuracies.mean(),
    "sd": 100 * accuracies.std(ddof=min(1, len(accuracies) - 1)),
    "above dense": difference.mean(),
  }


def snip(task: stacks.Task, seeds: Sequence[int], epochs: int):
  """Yields a row for each one-shot pruning at SNIP's sparsities."""
  train = make_train(task, seeds, falling)
  score = stacks.make_score(task.apply)
  start = stacks.initial(task, seeds)
  x, y = (part[:SNIP_BATCH] for part in task.dataset.train)

  def loss(params, batch):
    logits = task.apply(params, batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(
      logits, batch[1]
    ).mean()

  def masks_of(params, sparsity, criterion):
    def one(params, seed):
      key = jax.random.key(seed)
      return pruning.prune(
        params, sparsity, criterion, key=key, loss=loss, batch=(x, y)
      )

    return stacks.fill(
      jax.jit(jax.vmap(one))(params, np.asarray(seeds)), params
    )

  whole = cut(start, 0.0, None)
  dense = train(start, whole, epochs)
  longer = score(train(dense, whole, epochs), task.dataset.test)
  reference = score(dense, task.dataset.test)
  steps = epochs * (len(task.dataset.train.y) // BATCH)
  table: dict[str, tuple] = {
    "dense": (reference, 100.0, 100 - SNIP_DENSE, steps)
  }
  table["dense, trained on"] = (longer, 100.0, None, 2 * steps)
  for sparsity, error in SNIP_ERRORS.items():
    for criterion in ("snip", "random", "magnitude"):
      trained = criterion == "magnitude"
      before = dense if trained else start
      masks = masks_of(before, sparsity, criterion)
      after = train(pruning.apply_masks(before, masks), masks, epochs)
      name = "trained, magnitude, fine-tuned" if trained else criterion
      table[f"{name} {sparsity:.0%}"] = (
        score(after, task.dataset.test),
        100 * (1 - sparsity),
        100 - error if criterion == "snip" else None,
        2 * steps if trained else steps,
      )
  for name, (accuracies, left, published, spent) in table.items():
    yield {
      "network": name,
      "weights (%)": left,
      **facts(accuracies, longer if spent > steps else reference),
      "published": published,
      "steps": spent,
    }


def falling(steps: int) -> np.ndarray:
  """A rate that falls to zero along a cosine."""
  return LEARNING_RATE / 2 * (1 + np.cos(np.pi * np.arange(steps) / steps))


def stage(settings: config.Config) -> None:
  parts: dict[str, Callable] = {
    "lottery": lambda *task: lottery(*task, rounds=flags.FLAGS.rounds),
    "snip": lambda task, seeds, epochs: snip(task, seeds, 2 * epochs),
  }
  for part in flags.FLAGS.parts:
    config.check_choice("parts", part, parts)
  population.use_cores()
  population.use_cache("default")
  dataset = data.load(settings.dataset, settings.data_dir or None)
  task = stacks.make_task(NETWORK, dataset)
  for part in flags.FLAGS.parts:
    begun = time.monotonic()
    measure.say(f"{part}: {settings.num_seeds} seeds")
    rows = list(parts[part](task, settings.seeds, settings.num_epochs))
    measure.finish(
      f"{NETWORK} on {settings.dataset}: {part}, test, {settings.num_seeds} "
      "seeds",
      settings.out,
      f"pruning_anchors_{part}",
      rows,
    )
    print(f"  took    {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
  common.run(stage)
