"""Trains networks of one's own: any init and loss, many seeds, a sweep."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import functools
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from minarch_jax import records
from minarch_jax.config import Config, ConfigError
from minarch_jax.data import sources
from minarch_jax.engine import memory, own, population, tracing
from minarch_jax.engine import session as sessions
from minarch_jax.engine.examples import Examples
from minarch_jax.engine.own import Recipe
from minarch_jax.engine.programs import Table
from minarch_jax.stages import own_checks, own_sweeps
from minarch_jax.stages.own_sweeps import Sweep
from minarch_jax.stages.progress import Progress, say
from minarch_jax.types import Batch

Row = dict[str, Any]  # the hyper-parameters of a combination
Keep = Callable[[Sweep], None]  # told of the networks after every call


def train_many(
  init: Callable[[jax.Array], Any],
  loss: Callable[[Any, Batch], Any],
  tx: Any,
  data: Any,
  *,
  seeds: Iterable[int] | None = None,
  sweep: Mapping[str, Iterable[Any]] | None = None,
  out: str | None = None,
  start: Sweep | None = None,
  **overrides: Any,
) -> Sweep:
  """Trains any network with many seeds and hyper-parameters in one program.

  >>> init = lambda key: {"w": 0.1 * jax.random.normal(key, (16, 3))}
  >>> def loss(params, batch):
  ...   logits = batch.x.reshape(-1, 16) @ params["w"]
  ...   losses = optax.softmax_cross_entropy_with_integer_labels(
  ...     logits, batch.y
  ...   )
  ...   right = logits.argmax(1) == batch.y
  ...   return losses.mean(), {"accuracy": right.mean()}
  >>> found = ma.train_many(
  ...   init, loss, optax.adam, (batch, batch), seeds=range(3),
  ...   sweep={"learning_rate": [0.01, 0.1]}, num_epochs=2, batch_size=3
  ... )
  >>> found.params["w"].shape  # combinations, seeds, ...
  (2, 3, 16, 3)
  >>> found.curves.columns
  ['seed', 'learning_rate', 'epoch', 'train_loss', 'validation_loss',
   'train_accuracy', 'validation_accuracy']
  >>> len(found.curves)  # combinations x seeds x epochs
  12

  Seed s starts from `init(jax.random.fold_in(jax.random.key(s), 0))` and sees
  the examples in the order in which `ma.train` shows them to seed s; examples
  beyond the last whole batch sit an epoch out. A network's numbers do not
  depend on what else is trained. One that diverges goes on, its curve is NaN.

  On CPU XLA is slow at gradients of convolutions inside a program:
  `registries.CONVOLUTIONS["hybrid"](x, kernel)`, [B, H, W, I] with [h, w, I, O]
  at stride 1, took an eighth of the time of its own.

  Args:
    init: `init(key) -> params`, any tree of real arrays.
    loss: `loss(params, batch) -> loss` or `(loss, {name: metric})`; scalars,
      means over the examples of `batch.x` [B, ...] and `batch.y` [B, ...]. With
      the whole validation split in batches of 128, it is the validation loss.
      One that draws, as for dropout, is `loss(params, batch, key)`: of each
      step of a seed it gets another key, and None where it is validated.
    tx: an optax optimizer, or a function of the swept names that returns one.
      It is traced: values are numbers to compute with, not to decide by.
    data: of `ma.load`, where seed s has the fold s mod F; or a pair of batches
      (training, validation), each (x [N, ...], y [N, ...]).
    seeds: whole numbers; range(5) unless told otherwise, or those of `start`.
    sweep: name -> values, all combined with each other, the last name fastest.
    out: a directory to save in at every return from the devices, some seconds
      apart. The same call goes on from there, after Ctrl-C too, and so does one
      of more epochs.
    start: networks to train on, up to `num_epochs` in all.
    **overrides: fields of Config: num_epochs, batch_size, memory_limit,
      device_map, seed_mapping, member_mapping, compilation_cache_dir.

  Raises:
    ValueError: what cannot be trained, before anything is compiled.
    MemoryError: the device says that it does not fit; lower `memory_limit`.
  """
  population.use_cores()
  config = own_checks.options(overrides)
  population.use_cache(config.compilation_cache_dir)
  rows, numbers = _asked(seeds, sweep, out, start)
  examples = own_checks.examples(data, config.batch_size)
  make_tx, draws = own_checks.make_tx(tx, rows[0]), own_checks.draws(loss)
  recipe = Recipe(init, loss, make_tx, draws)
  hyper = {name: v[0] for name, v in own_checks.stacked(rows[:1]).items()}
  state = own_checks.state_of(recipe, hyper)
  batch = examples.shapes(config.batch_size)
  own_checks.step_of(recipe, state, batch, hyper)
  needed = tracing.needs(recipe.step, state, batch, hyper)
  layout = tracing.mapping(
    needed, **{name: getattr(config, name) for name in tracing.FLAGS}
  )
  groups = _groups(len(rows), needed, layout, len(numbers), config)
  parts = [[rows[i] for i in group] for group in groups]
  begun: list[Sweep | None] = [None] * len(groups)
  keeps: list[Keep | None] = [None] * len(groups)
  if start is not None:
    own_sweeps.check(start, state, "start")
    begun = [own_sweeps.part(start, group) for group in groups]
  if out is not None:
    what = (
      tracing.digest(recipe.start, np.int32(0), hyper),
      tracing.digest(recipe.step, state, batch, hyper),
      sources.digest(
        *map(np.asarray, examples.all), *examples.train, *examples.held
      ),
    )
    ids = [records.content_id([what, part, numbers]) for part in parts]
    begun = [own_sweeps.kept(out, id, state) for id in ids]
    keeps = [functools.partial(own_sweeps.keep, out, id) for id in ids]
  _check_epochs(begun, config.num_epochs, out)
  job = _Job(recipe, config, numbers, examples.placed(layout), layout, Table())
  left = sum(config.num_epochs - _epochs(each) for each in begun)
  with _told(out), _Pace(left) as pace:
    found = [
      _train(job, part, each, keep, pace)
      for part, each, keep in zip(parts, begun, keeps, strict=True)
    ]
  return own_sweeps.part(own_sweeps.join(found), range(len(rows)))


def _asked(
  seeds: Iterable[int] | None,
  sweep: Mapping[str, Iterable[Any]] | None,
  out: str | None,
  start: Sweep | None,
) -> tuple[list[Row], list[int]]:
  """Returns the combinations and the seeds, those of `start` where it is."""
  rows = own_checks.combinations(sweep or {})
  if start is None:
    given = range(Config.num_seeds) if seeds is None else seeds
    return rows, own_checks.seeds(given)
  if out is not None:
    raise ValueError(
      "out goes on from what it holds, start from what is in memory; give one"
    )
  if sweep is not None and rows != start.combinations:
    raise ValueError(
      f"sweep has the combinations {rows}, start has {start.combinations}; "
      "leave sweep out to train these on"
    )
  if seeds is not None and own_checks.seeds(seeds) != start.seeds:
    raise ValueError(
      f"start has the seeds {start.seeds}; leave seeds out to train these on"
    )
  return start.combinations, start.seeds


def _groups(
  count: int,
  needed: tracing.Needs,
  layout: population.Mapping,
  num_seeds: int,
  config: Config,
) -> list[list[int]]:
  """Cuts combinations into groups that fit the memory, all of one size.

  So that one program serves them all, the last combination fills up the last
  group.

  Raises:
    ConfigError: not even one combination fits.
  """
  limit = memory.limit(config)
  most = tracing.most_members(needed, layout, num_seeds, limit)
  if not most:
    raise ConfigError(
      f"{num_seeds} seeds of one combination need more than the "
      f"{limit / 2**30:.3g} GiB that they may: {needed.state / 2**20:.3g} MiB "
      f"of state and {needed.work / 2**20:.3g} MiB of work for each network; "
      "lower batch_size, train fewer seeds at a time, or raise memory_limit"
    )
  size = -(-count // -(-count // most))
  return [
    [min(i, count - 1) for i in range(first, first + size)]
    for first in range(0, count, size)
  ]


def _epochs(begun: Sweep | None) -> int:
  return begun.epochs if begun else 0


def _check_epochs(
  begun: Sequence[Sweep | None], num_epochs: int, out: str | None
) -> None:
  """Raises ValueError where nothing is left to train."""
  done = max(map(_epochs, begun))
  if done > num_epochs or (done == num_epochs and out is None):
    raise ValueError(
      f"num_epochs={num_epochs} counts the {done} epochs that "
      f"{'start has' if out is None else f'{out} holds'} already; ask for more"
    )


# --- running -----------------------------------------------------------------


class _Job(NamedTuple):
  """What all groups of combinations share."""

  recipe: Recipe
  config: Config
  seeds: list[int]
  examples: Examples
  layout: population.Mapping
  programs: Table


@contextlib.contextmanager
def _told(out: str | None) -> Iterator[None]:
  """Says what to do where a run ends early."""
  try:
    yield
  except KeyboardInterrupt:
    if out is not None:
      say(f"stopped; {out} holds what is finished, the same call goes on")
    raise
  except jax.errors.JaxRuntimeError as error:
    if not sessions.is_full(error):
      raise
    raise MemoryError(
      "the networks do not fit the memory of the device; lower memory_limit, "
      "so that fewer combinations train at a time, or batch_size"
    ) from error


class _Pace:
  """Shows how far a run is, and says how many epochs fit a call.

  Nobody knows how long a step of somebody's network takes: the first call is
  of one epoch and tells, too much as yet, since it compiles.
  """

  def __init__(self, epochs: int):
    self._left, self._seconds = epochs, np.inf
    self._shown = contextlib.ExitStack()
    self._progress: Progress | None = None
    self._each = 0.0  # forecast seconds of an epoch

  def __enter__(self) -> "_Pace":
    return self

  def __exit__(self, *unused: Any) -> None:
    self._shown.close()

  def epochs(self, most: int) -> int:
    """Says how many epochs the next call may run."""
    fit = sessions.CALL_SECONDS / self._seconds
    return int(min(max(1, fit), most))

  def done(self, epochs: int, seconds: float) -> None:
    """Counts the epochs of a call, and what it took."""
    self._seconds = seconds / epochs
    self._left -= epochs
    if self._progress is None:
      self._each = self._seconds
      self._progress = self._shown.enter_context(
        Progress("train", self._each * self._left)
      )
    else:
      self._progress.advance(self._each * epochs)


def _train(
  job: _Job,
  rows: list[Row],
  begun: Sweep | None,
  keep: Keep | None,
  pace: _Pace,
) -> Sweep:
  """Trains a group of combinations from where it stands to the last epoch.

  Args:
    begun: how far it has come.
  """
  first, last = _epochs(begun), job.config.num_epochs
  if begun and first == last:
    return begun
  placed = own.place(
    job.recipe,
    own_checks.stacked(rows),
    len(rows),
    job.seeds,
    job.config.batch_size,
    job.examples,
    job.layout,
    job.programs,
  )
  state = own.resume(placed, begun.state) if begun else own.start(placed)
  curves = [begun.curve] if begun else []

  def found():
    curve = jax.tree.map(lambda *c: np.concatenate(c, axis=-1), *curves)
    return Sweep(rows, job.seeds, own.fetch(placed, state), curve)

  while first < last:
    most = min(placed.order_shape[1], last - first)
    epochs = range(first, first + pace.epochs(most))
    begin = time.perf_counter()
    state, curve = own.advance(placed, state, epochs)
    curves.append(curve)
    first = epochs.stop
    pace.done(len(epochs), time.perf_counter() - begin)
    if keep:
      keep(found())
  return found()
