"""Probes packs at initialisation and after the first steps of training."""

from collections.abc import Sequence

import jax
import numpy as np
import polars as pl

from minarch_jax import probes, records
from minarch_jax.architectures import Architecture
from minarch_jax.engine import packs, training
from minarch_jax.engine import session as sessions
from minarch_jax.engine.planning import Pack
from minarch_jax.engine.session import Session
from minarch_jax.stages import rows as make_rows
from minarch_jax.stages import setup, store, train
from minarch_jax.types import Batch

BATCH = 256  # images a probe looks at
KEY = 2  # what a probe uses a seed for, beside training.INIT and PRUNE


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
  missing = [name for name in names if counts.get(name, 0) < full]
  if missing:
    members = [Architecture.parse(name) for name in missing]
    id = records.content_id(
      [recipe, missing, list(session.config.seeds), steps]
    )
    records.write(out, "probes", id, probe(session, members, steps))
  return records.read_table(out, "probes").filter(wanted)


def probe(
  session: Session, members: Sequence[Architecture], steps: int
) -> pl.DataFrame:
  """Measures every network before and after its first steps of training.

  Args:
    session: the data, and the recipe whose first steps are taken.
    members: architectures; the seeds are those of the configuration.
    steps: how many, at least 1 and at most one training.

  Returns:
    Rows of the table `probes`, two per network.
  """
  todo = train.plan(session, members, list(session.config.seeds))
  return pl.concat(
    sessions.together(session, todo, lambda pack: _probed(session, pack, steps))
  )


def _probed(session: Session, pack: Pack, steps: int) -> pl.DataFrame:
  config, work = session.config, session.work
  placed = sessions.place(session, pack)
  state = packs.start_state(placed, packs.initial(placed))
  masks = packs.width_masks(placed)
  rates = training.learning_rates(config, work.num_steps)[:steps]
  images = min(BATCH, work.num_train)

  def make():
    model = placed.model
    step = training.make_step(model, training.make_tx(config))
    measure = probes.make_probe(model, placed.spec)

    def function(state, seed, order, rates, sizes, masks, data):
      train = Batch(
        *(part.reshape(-1, *part.shape[2:]) for part in (data.x, data.y))
      )
      batch = Batch(train.x[:images], train.y[:images])

      def one(state, inputs):
        indices, rate = inputs
        chosen = Batch(train.x[indices], train.y[indices])
        return step(state, chosen, rate, sizes, masks)[0], None

      key = training.key_for(seed, KEY)
      before = measure(state.params, batch, sizes, masks, key)
      state, _ = jax.lax.scan(one, state, (order, rates))
      return before, measure(state.params, batch, sizes, masks, key)

    kinds = ("network", "seed", "seed", "shared", "member", "network", "shared")
    return function, kinds, ()

  seeds = placed.pack.seeds
  order = np.stack([_order(session, seed, steps) for seed in seeds])
  found = placed.run(
    f"probe {steps}",
    make,
    state,
    placed.put(np.array(seeds, np.int32), "seed"),
    placed.put(order, "seed"),
    placed.put(rates, "shared"),
    placed.sizes,
    masks,
    session.data,
    hot=True,
  )
  return _rows(session, pack, steps, jax.device_get(found))


def _order(session: Session, seed: int, steps: int) -> np.ndarray:
  """The minibatches of a seed's first steps: int32 [steps, batch]."""
  work, epochs = session.work, []
  while sum(map(len, epochs)) < steps:
    epochs.append(
      training.data_order(seed, len(epochs), work.num_train, work.batch_size)
    )
  return np.concatenate(epochs)[:steps]


def _rows(session, pack: Pack, steps: int, found) -> pl.DataFrame:
  """Two rows per network of a pack; what is not finite becomes null."""
  recipe, frames = setup.recipe_id(session), []
  for i, architecture in enumerate(pack.architectures):
    who = make_rows.who(session, recipe, architecture)
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
          **{name: pl.lit(value) for name, value in who.items()},
        )
      )
  return pl.concat(frames)
