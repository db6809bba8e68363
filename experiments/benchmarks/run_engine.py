"""Trains a job's networks with this engine; the benchmarks start it.

Reads a job (see `measure`) from standard input and prints one line of JSON.
"""

import time

START = time.perf_counter()

import dataclasses  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from experiments.benchmarks import measure  # noqa: E402
from minarch_jax import config, study  # noqa: E402
from minarch_jax.architectures import Architecture  # noqa: E402
from minarch_jax.engine import memory, packs, planning, training  # noqa: E402
from minarch_jax.engine import session as sessions  # noqa: E402
from minarch_jax.engine.planning import Pack  # noqa: E402
from minarch_jax.engine.session import Session  # noqa: E402
from minarch_jax.types import Batch, Dataset  # noqa: E402


def load(directory: str, share: float, batch_size: int) -> Dataset:
  """Reads the leading share of every exported split, whole batches at least."""

  def split(name):
    x = np.load(os.path.join(directory, f"{name}_x.npy"), mmap_mode="r")
    y = np.load(os.path.join(directory, f"{name}_y.npy"))
    count = math.ceil(len(y) * share)
    if name == "train":
      count = min(max(count, batch_size), len(y))
    return Batch(np.asarray(x[:count]), y[:count])

  train = split("train")
  return Dataset(
    "exported",
    train,
    split("validation"),
    split("test"),
    int(train.y.max()) + 1,
    fingerprint="benchmark",
  )


def settings(job: measure.Job) -> config.Config:
  """The configuration of a job."""
  return config.Config().replace(
    **measure.RECIPE
    | {"num_epochs": job["epochs"], "num_seeds": len(job["seeds"])}
    | job["config"]
  )


def plan(session: Session, job: measure.Job) -> list[Pack]:
  """Plans a job's networks as a study would.

  The plan is that of the recipe on all of the data, whatever share is used. A
  job with `members` asks for one pack that repeats its only architecture.
  """
  wanted = [Architecture.parse(text) for text in job["architectures"]]
  if "members" in job:
    (parent,) = wanted
    count = job["members"]
    return [Pack((parent,) * count, tuple(job["seeds"]), parent, count)]
  work = dataclasses.replace(
    session.work,
    num_train=round(session.work.num_train / job["share"]),
    num_eval=round(session.work.num_eval / job["share"]),
    num_epochs=measure.RECIPE["num_epochs"],
  )
  return planning.plan(
    wanted,
    job["seeds"],
    work,
    devices=jax.local_device_count(),
    memory_limit=memory.limit(session.config),
  )


def steady(session: Session, pack: Pack) -> tuple[float, float]:
  """Times one epoch of a compiled pack, validation included.

  Returns:
    Seconds of wall time, and of all processors together.
  """
  placed = sessions.place(session, pack)
  masks = packs.width_masks(placed)
  state = packs.start_state(placed, packs.initial(placed))
  jax.block_until_ready((state, masks))
  before = (time.perf_counter(), time.process_time())
  packs.train_epochs(placed, state, masks, packs.rates_of(session))
  after = (time.perf_counter(), time.process_time())
  wall, busy = (
    (end - start) / session.work.num_epochs
    for start, end in zip(before, after, strict=True)
  )
  return wall, busy


def train(job: measure.Job) -> dict[str, Any]:
  """Trains every network of a job; then `steady` times more, timed.

  A pack's first training compiles; the next, in the same process, do not.
  """
  chosen = settings(job)
  if job["steady"]:  # an epoch stands for many, so compile as for those
    sessions.COLD = math.inf
  dataset = load(job["data"], job["share"], job["batch_size"])
  session = sessions.open_session(chosen, dataset)
  planned = plan(session, job)
  startup = time.perf_counter() - START
  compiling = running = epoch = busy = 0.0
  accuracies = []
  for result in study.train_packs(session, planned):
    pack = result.pack
    compiling += result.compile_seconds
    running += result.run_seconds
    hits = result.scores.validation.correct / len(dataset.validation.y)
    accuracies += hits.ravel().tolist()
    if job["steady"]:
      clocks = [steady(session, pack) for _ in range(job["steady"])]
      wall, processors = np.median(clocks, axis=0)
      epoch, busy = epoch + wall, busy + processors
  networks = sum(len(pack.architectures) * len(pack.seeds) for pack in planned)
  steps = session.work.num_train // session.work.batch_size
  return {
    "epochs": job["epochs"],
    "startup_seconds": startup,
    "compile_seconds": compiling,
    "run_seconds": running,
    "programs": len(session.programs),
    "packs": len(planned),
    "devices": jax.local_device_count(),
    "backend": jax.default_backend(),
    "epoch_seconds": epoch if job["steady"] else running / chosen.num_epochs,
    "epoch_busy_seconds": busy,
    "network_steps": networks * steps,
    "accuracy": float(np.mean(accuracies)),
    "accuracies": accuracies,
  }


def check(job: measure.Job) -> dict[str, Any]:
  """Trains one epoch of few steps and leaves what a peer needs to repeat it.

  Writes the initial values (initial.npz, by path) and the minibatches
  (order.npy) into the job's directory; returns the mean loss of the steps.
  """
  dataset = load(job["data"], job["share"], job["batch_size"])
  session = sessions.open_session(settings(job), dataset)
  (pack,) = plan(session, job)
  start = packs.initial(sessions.place(session, pack))
  (params,) = packs.split_members(start, pack, session)
  arrays = {
    "/".join(str(part.key) for part in path): np.asarray(leaf)[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  (seed,), batch = job["seeds"], job["batch_size"]
  order = training.data_order(seed, 0, len(dataset.train.y), batch)
  np.savez(os.path.join(job["data"], "initial.npz"), **arrays)  # pyright: ignore
  np.save(os.path.join(job["data"], "order.npy"), order)
  curve = packs.train(session, pack).curve
  return {"loss": float(curve.train.loss[0, 0, 0]), "steps": len(order)}


if __name__ == "__main__":
  request = json.load(sys.stdin)
  answer = check(request) if request.get("check") else train(request)
  print(json.dumps(answer))
