"""Probes packs at initialisation and after the first steps of training.

Cheap measurements of a network that may foretell unstable training; none of
them changes training.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from minarch_jax import models, random, records, types
from minarch_jax.architectures import Architecture, Leaf, Spec
from minarch_jax.engine import evaluation, packs, training
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.programs import Program
from minarch_jax.engine.session import Network, Session
from minarch_jax.engine.training import Optimizer
from minarch_jax.executors import Task
from minarch_jax.executors.tasks import Heard
from minarch_jax.stages import rows as make_rows
from minarch_jax.stages import setup, store, train, working
from minarch_jax.stages.working import Statistics
from minarch_jax.types import Batch, Masks, Model, Params, Sizes

BATCH = 256  # images a probe looks at


def complete(
  session: Session, out: str, networks: pl.DataFrame, steps: int
) -> pl.DataFrame:
  """Probes the recorded architectures that were not probed yet, and keeps it.

  Returns:
    The rows of the table `probes` of exactly those architectures, this recipe
    and these steps.

  Raises:
    ConfigError: `networks` holds none of this training recipe.
  """
  recipe = setup.recipe_id(session)
  names = [str(a) for a in store.trained(session, out, networks)]
  wanted = (
    (pl.col("run_id") == recipe)
    & pl.col("step").is_in([0, steps])
    & pl.col("architecture").is_in(names)
    & pl.col("seed").is_in(list(session.config.seeds))
  )
  held = records.read_table(out, "probes").filter(wanted)
  counts = dict(held["architecture"].value_counts().iter_rows())
  full = 2 * len(session.config.seeds)
  most = session.work.num_steps
  missing = [name for name in names if counts.get(name, 0) < full]
  if missing:
    members = [Architecture.parse(name) for name in missing]
    todo = packs.plan(session, members, list(session.config.seeds))
    facts = setup.Facts.of(session)
    tasks = [
      Task(
        *(
          _probe,
          out,
          records.content_id([recipe, *train.pack_id(pack), steps]),
        ),
        *(("probes",), (pack,), steps),
        seconds=facts.wall(train.seconds_of(facts, pack)) * steps / most,
      )
      for pack in todo
    ]
    working.run(session, "probe", tasks)
  return records.read_table(out, "probes").filter(wanted)


def _probe(session: Session, task: Task, heard: Heard) -> list[Statistics]:
  """Probes a pack and writes its rows."""
  (pack,) = task.packs
  found = probed(session, pack, task.how)
  records.write(task.out, "probes", task.id, found)
  heard(1.0)
  return []


def _make_probes(
  *,
  network: Network,
  optimizer: Optimizer,
) -> Callable:
  """Measures a network before and after its first steps of training."""
  model = network.model
  step = training.make_step(model, training.make_tx(optimizer))
  measure = make_probe(model, network.spec)

  def function(state, masks, seed, order, seen, rates, sizes, data):
    images = evaluation.images(data)
    batch = Batch(*(part[seen] for part in images))

    def one(state, inputs):
      indices, rate = inputs
      chosen = Batch(*(part[indices] for part in images))
      return step(state, chosen, rate, sizes, masks)[0], None

    key = random.key_for(seed, random.Purpose.PROBE)
    before = measure(state.params, batch, sizes, masks, key)
    state, _ = jax.lax.scan(one, state, (order, rates))
    return before, measure(state.params, batch, sizes, masks, key)

  return function


PROBES = Program(
  _make_probes,
  {
    "state": "network",
    "masks": "network",
    "seed": "seed",
    "order": "seed",  # minibatches of the first steps, int32 [S, steps, B]
    "seen": "seed",  # places of the images that are looked at, int32 [S, B]
    "rates": "shared",  # of the first steps
    "sizes": "member",
    "data": "shared",
  },
)


def probed(session: Session, pack: Pack, steps: int) -> pl.DataFrame:
  """Measures every network before and after its first steps of training.

  Args:
    session: the data, and the recipe whose first steps are taken.
    pack: the networks.
    steps: how many, at least 1 and at most one training.

  Returns:
    Rows of the table `probes`, two per network.
  """
  work = session.work
  placed = sessions.place(session, pack)
  seeds, looked_at = placed.pack.seeds, min(BATCH, work.num_train)
  found = placed.run(
    PROBES,
    static={
      "network": placed.network,
      "optimizer": Optimizer.of(session.config),
    },
    hot=True,
    state=packs.start_state(placed, packs.initial(placed)),
    masks=packs.width_masks(placed),
    seed=placed.seeds,
    order=np.stack([_order(session, seed, steps) for seed in seeds]),
    seen=np.stack([session.fold_of(seed).train[:looked_at] for seed in seeds]),
    rates=training.learning_rates(session.config, work.num_steps)[:steps],
    sizes=placed.sizes,
    data=session.data,
  )
  return _rows(session, pack, steps, jax.device_get(found))


def _order(session: Session, seed: int, steps: int) -> np.ndarray:
  """The minibatches of a seed's first steps: int32 [steps, batch]."""
  work, train, epochs = session.work, session.fold_of(seed).train, []
  per_epoch = work.num_train // work.batch_size
  while len(epochs) * per_epoch < steps:
    drawn = training.data_order(seed, len(epochs), len(train), work.batch_size)
    epochs.append(train[drawn[:per_epoch]])
  return np.concatenate(epochs)[:steps]


def _rows(
  session: Session, pack: Pack, steps: int, found: "tuple[Probe, Probe]"
) -> pl.DataFrame:
  """Makes two rows per network of a pack; what is not finite becomes null.

  Args:
    found: before and after the steps, of arrays [S, A].
  """
  recipe, frames = setup.recipe_id(session), []
  for i, architecture in enumerate(pack.architectures):
    shared = make_rows.identity(session, recipe, architecture)
    for step, measured in zip((0, steps), found, strict=True):
      values = {
        name: np.asarray(value, np.float64)[: len(pack.seeds), i]
        for name, value in measured._asdict().items()
      }
      frames.append(
        pl.DataFrame({"seed": list(pack.seeds), **values})
        .with_columns(
          pl.when(pl.col(name).is_finite()).then(pl.col(name))
          for name in values
        )
        .with_columns(
          step=pl.lit(step),
          limit=pl.lit(2 / session.config.learning_rate),
          **{name: pl.lit(value) for name, value in shared.items()},
        )
      )
  return pl.concat(frames)


# --- one network -------------------------------------------------------------

ITERATIONS = 20  # of the power iteration: within a few percent on digits


class Probe(NamedTuple):
  """What was measured of one network on one batch; float32 scalars.

  Attributes:
    loss: mean cross-entropy.
    dead: share of the hidden units that are not positive for any image.
    logit_scale: root mean square of the logits about each image's mean.
    gradient_norm: Euclidean norm of the loss's gradient.
    sharpness: curvature of the loss along its steepest direction, see there.
  """

  loss: jax.Array
  dead: jax.Array
  logit_scale: jax.Array
  gradient_norm: jax.Array
  sharpness: jax.Array


ProbeFn = Callable[[Params, Batch, Sizes, Masks, jax.Array], Probe]


def make_probe(
  model: Model, spec: Spec, *, iterations: int = ITERATIONS
) -> ProbeFn:
  """Makes `probe(params, batch, sizes, masks, key) -> Probe` of one network.

  `spec` describes the parent; `sizes` and `masks` (1 = exists) say which part
  of it is the network.
  """

  def probe(
    params: Params, batch: Batch, sizes: Sizes, masks: Masks, key: jax.Array
  ) -> Probe:
    def loss(params):
      logits = model.apply(params, batch.x, sizes)
      return evaluation.losses(logits, batch.y)[0].mean()

    value, gradient = jax.value_and_grad(loss)(params)
    logits, hidden = types.record_inputs(
      lambda params, x, **tap: model.apply(params, x, sizes, **tap),
      params,
      batch.x,
    )
    return Probe(
      value,
      dead_share(hidden, spec, sizes),
      logit_scale(logits),
      norm(_masked(gradient, masks)),
      sharpness(loss, params, masks, key, iterations=iterations),
    )

  return probe


def dead_share(
  hidden: Mapping[str, jax.Array], spec: Spec, sizes: Mapping[str, Any]
) -> jax.Array:
  """Gives the share of activated units that are positive for no image.

  Such a ReLU unit passes no gradient: it stays dead until its inputs change
  (Lu et al. 2020, arXiv 1903.06733). Units are hidden units of a dnn, channels
  of a cnn and MLP units of a vit; those outside the member do not count.
  """
  dead, count = jnp.float32(0), jnp.float32(0)
  for axis, layer, name in activated(spec):
    values = hidden[name].reshape(-1, spec.sizes[axis])
    unit = jnp.arange(spec.sizes[axis])
    exists = unit < (sizes or spec.sizes)[axis]
    exists &= layer < (sizes or {}).get("depth", jnp.inf)
    dead += (exists & ~(values > 0).any(axis=0)).sum()
    count += exists.sum()
  return dead / count


def activated(spec: Spec) -> list[tuple[str, int, str]]:
  """Lists (unit axis, layer, name of the tap) of what an activation yields."""
  made: dict[str, Leaf] = {}
  found = []
  for leaf in spec.leaves:
    if not leaf.is_kernel:
      continue
    axis = leaf.axes[-leaf.outputs - 1]
    if axis in made and made[axis].activated:
      found.append((axis, made[axis].layer, leaf.name))
    made |= {name: leaf for name in leaf.axes[-leaf.outputs :]}
  return found


def logit_scale(logits: jax.Array) -> jax.Array:
  """Root mean square of logits [B, C] about each image's mean over classes."""
  centred = logits - logits.mean(axis=-1, keepdims=True)
  return jnp.sqrt((centred**2).mean())


def norm(tree: Any) -> jax.Array:
  """Euclidean norm of all leaves together."""
  return jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)))


def sharpness(
  loss: Callable[[Params], jax.Array],
  params: Params,
  masks: Masks,
  key: jax.Array,
  *,
  iterations: int = ITERATIONS,
) -> jax.Array:
  """Estimates the Hessian's eigenvalue of largest magnitude.

  Power iteration on Hessian-vector products, by forward over reverse
  differentiation (Pearlmutter 1994); the Rayleigh quotient is returned.
  Gradient descent at a rate above 2 / sharpness leaves a quadratic (Cohen et
  al. 2021, arXiv 2103.00065); under Adam the bound is on the preconditioned
  Hessian, and this one is only a measurement.
  """
  gradient = jax.grad(loss)

  def product(vector):
    return _masked(jax.jvp(gradient, (params,), (vector,))[1], masks)

  def unit(tree):
    size = norm(tree)
    scale = jnp.where(size > 0, 1 / jnp.where(size > 0, size, 1), 0)
    return jax.tree.map(lambda leaf: leaf * scale, tree)

  def body(_, carry):
    vector, _ = carry
    after = product(vector)
    pairs = jax.tree.map(jnp.vdot, vector, after)
    return unit(after), jnp.asarray(sum(jax.tree.leaves(pairs)))

  # Drawn by coordinate: a network starts from the same vector in any parent.
  flat = models.flatten(params)
  leaves = [(path, leaf.shape) for path, leaf in flat.items()]
  drawn = random.normals(key, leaves)
  start = traverse_util.unflatten_dict(dict(zip(flat, drawn, strict=True)))
  zero = jnp.zeros((), jnp.result_type(float))
  start = (unit(_masked(start, masks)), zero)
  return jax.lax.fori_loop(0, iterations, body, start)[1]


def _masked(tree: Any, masks: Masks) -> Any:
  return jax.tree.map(lambda leaf, mask: jnp.where(mask, leaf, 0), tree, masks)
