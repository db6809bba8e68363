"""Where runs can be watched beside the report: one function for each place.

Each is written offline, into a folder of its own below <out>/logs.
"""

from collections.abc import Mapping, Sequence
import contextlib
import hashlib
import io
import os
import shutil
import tempfile
from typing import Any, NamedTuple

import polars as pl

from minarch_jax import records


class Run(NamedTuple):
  """What is known so far of one network: an architecture and a seed.

  Attributes:
    study: the name of the results directory, which groups its runs.
    name: dataset/architecture/seed and recipe, with / between.
    part: which table the points are of, "curves" or "compression".
    axis: what the steps count.
    config: what the network is.
    points: steps, and what was measured there by name.
  """

  study: str
  name: str
  part: str
  axis: str
  config: Mapping[str, Any]
  points: Sequence[tuple[int, Mapping[str, float]]]

  @property
  def id(self) -> str:
    """Names the run where names have no slashes."""
    text = f"{self.study}/{self.name}/{self.part}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def csv(folder: str, run: Run) -> None:
  """Writes a CSV file for each network and part."""
  rows = [{run.axis: step, **values} for step, values in run.points]
  path = os.path.join(folder, run.study, run.name, f"{run.part}.csv")
  with records.atomic(path) as temporary:
    pl.DataFrame(rows, infer_schema_length=None).write_csv(temporary)


def tensorboard(folder: str, run: Run) -> None:
  """Writes event files that TensorBoard shows: tensorboard --logdir=FOLDER."""
  import tensorboardX  # pyright: ignore

  where = os.path.join(folder, run.study, run.name)
  with tempfile.TemporaryDirectory() as temporary:
    with tensorboardX.SummaryWriter(temporary) as writer:
      for step, values in run.points:
        for name, value in values.items():
          writer.add_scalar(name, value, step)
    (written,) = os.listdir(temporary)
    path = os.path.join(where, f"events.out.tfevents.{run.part}")
    with records.atomic(path) as target:
      shutil.copyfile(os.path.join(temporary, written), target)


def wandb(folder: str, run: Run) -> None:
  """Writes offline runs of Weights & Biases, for `wandb sync`.

  The environment variable WANDB_MODE=online sends them at once.
  """
  import wandb as library  # pyright: ignore

  os.makedirs(folder, exist_ok=True)
  with library.init(
    project="minarch_jax",
    group=run.study,
    name=run.name,
    job_type=run.part,
    id=run.id,
    config=dict(run.config),
    dir=folder,
    mode=_mode(),
    reinit="create_new",
    settings=library.Settings(silent=True, console="off"),
  ) as live:
    live.define_metric("*", step_metric=run.axis)
    for step, values in run.points:
      live.log({run.axis: step, **values})


def _mode() -> Any:
  return os.environ.get("WANDB_MODE", "offline")


def trackio(folder: str, run: Run) -> None:
  """Writes to a local Trackio project: TRACKIO_DIR=FOLDER trackio show.

  The library reads the variable once; where it is set, that is the place.
  """
  os.environ.setdefault("TRACKIO_DIR", os.path.abspath(folder))
  import trackio as library  # pyright: ignore

  with contextlib.redirect_stdout(io.StringIO()):  # a paragraph for each run
    live = library.init(
      project=run.study,
      name=f"{run.name}/{run.part}",
      group=run.name,
      config=dict(run.config),
      embed=False,
      auto_log_gpu=False,
      auto_log_cpu=False,
    )
    for step, values in run.points:
      live.log(dict(values), step=step)
    live.finish()
