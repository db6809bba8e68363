"""Jobs as submitit starts them here; Slurm itself is not at hand."""

import contextlib
import os
import signal
import threading
import time

import numpy as np
import pytest

import minarch_jax as ma
from minarch_jax import study
from minarch_jax.config import ConfigError
from minarch_jax.executors import slurm
from tests import tiny_study
from tests.executors import small_study

pytest.importorskip("submitit", reason="submitit is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  """A small study of images in a file, which jobs can read."""
  draw = np.random.default_rng(0)
  y = np.arange(120) % 3
  x = draw.integers(0, 100, (120, 4, 4)) + 50 * y[:, None, None]
  path = tmp_path_factory.mktemp("images") / "images.npz"
  np.savez(path, x=x.astype(np.uint8), y=y)
  changes = small_study.CHANGES | {"dataset": str(path), "num_epochs": 40}
  return tiny_study.CONFIG.replace(**changes)


@pytest.fixture
def here(monkeypatch):
  monkeypatch.setattr(slurm, "CLUSTER", "local")
  monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.1)


def run(config, out, **changes):
  """Trains; what comes after is shared alike."""
  with small_study.of_one_network():
    config = config.replace(out=str(out), **changes)
    study.run(config, prune=False, quantize=False)


def test_jobs_share_the_packs_and_go_on_when_queued_again(
  config, here, tmp_path, monkeypatch
):
  run(config, tmp_path / "alone")
  out, submit, interrupted = tmp_path / "jobs", slurm._submitted, []

  def watched(session, tasks):
    jobs = submit(session, tasks)
    if not interrupted:
      threading.Thread(target=interrupt, daemon=True).start()
    return jobs

  def interrupt():
    """Tells the first that has a lease, as Slurm does."""
    while not interrupted:
      for path in out.glob("leases/????????????????????"):
        with contextlib.suppress(OSError, IndexError):
          interrupted.append(int(path.read_text().split()[1]))
          os.kill(interrupted[0], signal.SIGUSR2)
      time.sleep(0.01)

  monkeypatch.setattr(slurm, "_submitted", watched)
  run(config, out, executor="slurm", slurm_jobs=2)
  assert interrupted
  tiny_study.assert_same_tables(
    ma.read_records(str(out)), ma.read_records(str(tmp_path / "alone"))
  )
  log = "".join(path.read_text() for path in out.glob("slurm/*.err"))
  assert "this job is preempted" in log


def test_jobs_that_fail_are_told(config, here, tmp_path):
  (tmp_path / "checkpoints").write_text("no folder")
  with pytest.raises(RuntimeError, match="(?s)are left.*checkpoints.*see"):
    run(config, tmp_path, executor="slurm", slurm_jobs=1)


def test_where_there_is_no_slurm_that_is_told(config, tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", "")
  with pytest.raises(ConfigError, match="no sbatch here"):
    run(config, tmp_path, executor="slurm")
