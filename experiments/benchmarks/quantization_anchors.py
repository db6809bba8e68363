r"""Quantizes networks beside a published table, and measures the damage.

  python -m experiments.benchmarks.quantization_anchors --data_dir=data \
    --out=results

`trained` trains three hidden layers of 64 and of 256 with 2-bit weights and
activations, by learned steps (LSQ) and by the clipped straight-through
estimator, beside a float control of equal steps and Brevitas' BNN-PYNQ table.
Differences: Brevitas trains up to 1,000 epochs with batch normalisation,
dropout and a hinge loss, ours --num_epochs with neither; both round the image
to 2 bits too. `damage` rounds trained LeNet-300-100 and a CNN to 8 and 4 bits
per channel. `table` does so from 8 bits to 1 for four sizes of every family on
three data sets, each trained for --table_steps steps only, so these networks
are not at their best; damage is paired by seed. Nothing here is chosen by test
accuracy, which is what is shown.
"""

from collections.abc import Iterator, Sequence
import time

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from experiments.benchmarks import measure, stacks
from minarch_jax import config, data, quantization
from minarch_jax import flags as config_flags
from minarch_jax.engine import population
from minarch_jax.quantization import activations, straight_through
from minarch_jax.quantization.networks import lsq

config_flags.define("data_dir", "out", "num_epochs", "num_seeds")
flags.FLAGS.set_default("num_epochs", 10)
flags.DEFINE_list("parts", ["trained", "damage", "table"], "What to measure.")
flags.DEFINE_list("datasets", ["digits", "mnist", "fashion_mnist"], "Of table.")
flags.DEFINE_integer("table_steps", 840, "Steps of table.", lower_bound=1)

BATCH, LEARNING_RATE = 128, 2e-3
BITS = 2  # of the trained part, weights and activations
# Test accuracy of Brevitas' TFC and SFC with 2-bit weights and activations
# (github.com/Xilinx/brevitas, examples/bnn_pynq).
BREVITAS = {"dnn:64-64-64": 96.60, "dnn:256-256-256": 98.66}
# The largest damage in points that is still as promised, by bits.
PROMISED = {8: 0.1, 4: 1.0}
SIZES = {
  "dnn": ("dnn:5", "dnn:20", "dnn:50-50", "dnn:200-100"),
  "cnn": ("cnn:1", "cnn:4", "cnn:4-8", "cnn:8-16"),
  "vit": (
    *("vit:p{p}-d8-l1-h2", "vit:p{p}-d16-l1-h2"),
    *("vit:p{p}-d16-l2-h4", "vit:p{p}-d32-l2-h4"),
  ),
}
TABLE_SEEDS = 3
WIDTHS = (8, 6, 5, 4, 3, 2, 1)


def falling(steps: int) -> np.ndarray:
  """A rate that falls to zero along a cosine, float32."""
  shape = 1 + np.cos(np.pi * np.arange(steps) / steps)
  return (LEARNING_RATE / 2 * shape).astype(np.float32)


def fit(task: stacks.Task, apply, trained, seeds: Sequence[int], steps: int):
  """Trains a stack for so many steps."""
  count = len(task.dataset.train.y)
  batch = min(BATCH, count)
  epochs = -(-steps // (count // batch))
  order = np.concatenate(
    list(stacks.orders(seeds, epochs, count, batch)), axis=1
  )[:, :steps]
  masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape[:1], bool), trained)
  train = stacks.make_train(apply, optax.scale_by_adam())
  return train(trained, masks, order, falling(steps), *task.dataset.train)


# --- quantization-aware training ---------------------------------------------


def from_zero(dataset):
  """Shifts the images so that their background is 0, as pixels have it."""
  low = dataset.train.x.min()

  def shift(batch):
    return batch._replace(x=batch.x - low)

  return dataset.__class__(
    dataset.name,
    *map(shift, (dataset.train, dataset.validation, dataset.test)),
    dataset.num_classes,
    dataset.fingerprint,
  )


def trained(settings: config.Config) -> Iterator[measure.Row]:
  """Yields a row for each network and way of training."""
  dataset = from_zero(data.load("mnist", settings.data_dir or None))
  seeds = settings.seeds
  steps = settings.num_epochs * (len(dataset.train.y) // BATCH)
  for text, published in BREVITAS.items():
    task = stacks.make_task(text, dataset)
    start = stacks.initial(task, seeds)
    found = {}
    for name, make in WAYS.items():
      measure.say(f"{text}: {name}")
      apply, first = make(task, start)
      last = fit(task, apply, first, seeds, steps)
      found[name] = stacks.make_score(apply)(last, dataset.test)
    for name, accuracies in found.items():
      bits = 32 if name == "float" else BITS
      yield {
        "network": text,
        "training": name,
        "weight bits": bits,
        "activation bits": bits,
        "accuracy (%)": 100 * accuracies.mean(),
        "sd": 100 * accuracies.std(ddof=min(1, len(accuracies) - 1)),
        "below float": 100 * (found["float"] - accuracies).mean(),
        "Brevitas": None if bits == 32 else published,
        "steps": steps,
      }


def as_float(task, start):
  return task.apply, start


def with_learned_steps(task, start):
  """LSQ of weights and activations; steps are trained with the weights."""
  first = jax.tree.map(lambda leaf: leaf[0], start)
  seen = activations.inputs(task.apply, first, task.dataset.train.x[:256])
  _, signed = lsq.init_activation_steps(seen, BITS)

  def pair(params):
    inputs = activations.inputs(task.apply, params, task.dataset.train.x[:256])
    steps = {}
    for name, y in inputs.items():
      high = 2 ** (BITS - signed[name]) - 1
      steps[name] = 2 * jnp.mean(jnp.abs(y)) / high**0.5
    return {
      "params": params,
      "weights": lsq.init_steps(params, BITS),
      "inputs": steps,
    }

  def apply(trained, x):
    rounded = lsq.quantize(trained["params"], trained["weights"], BITS)
    tap = lsq.make_tap(trained["inputs"], signed, BITS)
    return task.apply(rounded, x, tap=tap)

  return apply, jax.jit(jax.vmap(pair))(start)


def straight(task, start):
  """Clipped straight-through: ranges of the batch, ternary weights."""
  tap = straight_through.straight_through_tap(BITS)

  def apply(params, x):
    # Two bits by absolute maximum leave most weights at 0; the scale of
    # ternary weights is their mean magnitude.
    rounded = straight_through.straight_through(params, "ternary")
    return task.apply(rounded, x, tap=tap)

  return apply, start


WAYS = {
  "float": as_float,
  "LSQ": with_learned_steps,
  "straight-through": straight,
}


# --- after training ----------------------------------------------------------


def damages(task: stacks.Task, params, widths: Sequence[int]):
  """Returns float accuracies [S] and damage in points, [S] by width."""
  score = stacks.make_score(task.apply)
  whole = score(params, task.dataset.test)
  found = {}
  for width in widths:
    rounds = jax.vmap(lambda p, w=width: quantization.fake_quantize(p, w))
    found[width] = 100 * (whole - score(rounds(params), task.dataset.test))
  return whole, found


def damage(settings: config.Config) -> Iterator[measure.Row]:
  """Yields a row for each anchor network and width."""
  dataset = data.load("mnist", settings.data_dir or None)
  for text, epochs in (
    ("dnn:300-100", settings.num_epochs),
    ("cnn:16-32-32", max(1, settings.num_epochs // 4)),
  ):
    measure.say(text)
    task = stacks.make_task(text, dataset)
    steps = epochs * (len(dataset.train.y) // BATCH)
    start = stacks.initial(task, settings.seeds)
    params = fit(task, task.apply, start, settings.seeds, steps)
    whole, found = damages(task, params, tuple(PROMISED))
    for width, lost in found.items():
      yield {
        "network": text,
        "bits": width,
        "float (%)": 100 * whole.mean(),
        "damage (points)": lost.mean(),
        "worst seed": lost.max(),
        "at most": PROMISED[width],
        "kept": "yes" if lost.mean() <= PROMISED[width] else "NO",
        "steps": steps,
      }


def table(settings: config.Config) -> Iterator[measure.Row]:
  """Yields a row for each data set and network: damage by bits."""
  seeds = settings.seeds[:TABLE_SEEDS]
  for name in flags.FLAGS.datasets:
    dataset = data.load(name, settings.data_dir or None)
    patch = 7 if dataset.input_shape[0] == 28 else 4
    for texts in SIZES.values():
      for text in (each.format(p=patch) for each in texts):
        measure.say(f"{name}: {text}")
        task = stacks.make_task(text, dataset)
        start = stacks.initial(task, seeds)
        steps = flags.FLAGS.table_steps
        params = fit(task, task.apply, start, seeds, steps)
        whole, found = damages(task, params, WIDTHS)
        yield {
          "data": name,
          "network": text,
          "params": task.spec.num_params,
          "float (%)": 100 * whole.mean(),
          **{f"{w} bits": lost.mean() for w, lost in found.items()},
        }


PARTS = {
  "trained": (trained, "Trained with 2 bits, MNIST"),
  "damage": (damage, "Rounded after training, per channel, MNIST"),
  "table": (table, f"Damage in points by bits, {TABLE_SEEDS} seeds"),
}


def stage(settings: config.Config) -> None:
  for part in flags.FLAGS.parts:
    config.check_choice("parts", part, PARTS)
  population.use_cores()
  population.use_cache("default")
  for part in flags.FLAGS.parts:
    begun = time.monotonic()
    rows, title = PARTS[part]
    found = list(rows(settings))
    name = f"quantization_anchors_{part}"
    measure.finish(title, settings.out, name, found)
    print(f"  took    {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
  common.run(stage)
