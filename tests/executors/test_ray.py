"""A real Ray cluster on this machine: tables of one process, nodes or not."""

import dataclasses
import signal
import threading
import time

import jax
import pytest

import minarch_jax as ma
from minarch_jax import records
from minarch_jax.config import ConfigError
from minarch_jax.executors import ray as rays
from minarch_jax.executors import Task
from tests import tiny_study
from tests.executors import small_study
from tests.executors.small_study import assert_shared, PACKS

ray = pytest.importorskip("ray", reason="Ray is not installed")
cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of Ray


@pytest.fixture(scope="module")
def cluster():
  """Two nodes with room for a worker each, and a head without."""
  found = cluster_utils.Cluster(
    initialize_head=True, head_node_args={"num_cpus": 0}
  )
  cpus = jax.local_device_count()
  found.nodes = [found.add_node(num_cpus=cpus) for _ in range(2)]
  yield found
  rays._crew.cache_clear()
  ray.shutdown()
  found.shutdown()


def on(cluster):
  return {"executor": "ray", "ray_address": cluster.address}


def test_a_killed_node_is_made_up_for(alone, cluster, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path.parent)  # workers stand elsewhere
  parts = tmp_path / "records" / "networks"

  def kill():
    while not (parts.exists() and len(list(parts.iterdir())) >= 1):
      time.sleep(0.01)
    cluster.remove_node(cluster.nodes[0], allow_graceful=False)

  killer = threading.Thread(target=kill, daemon=True)
  killer.start()
  small_study.run(tmp_path.name, **on(cluster))
  killer.join()
  assert_shared(tmp_path, alone)


def test_ctrl_c_dismisses_the_workers_and_the_rest_is_done_later(
  alone, cluster, tmp_path
):
  parts = tmp_path / "records" / "networks"

  def press():
    while not (parts.exists() and list(parts.glob("*.parquet"))):
      time.sleep(0.01)
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

  threading.Thread(target=press, daemon=True).start()
  with pytest.raises(KeyboardInterrupt):
    small_study.run(tmp_path, **on(cluster))
  assert len(records.ids(str(tmp_path), "compression")) < PACKS
  small_study.run(tmp_path, **on(cluster))
  found = tiny_study.packs(tmp_path)
  assert {line["stage"] for line in found} == {"train", "compress"}
  tiny_study.assert_same_tables(
    ma.read_records(str(tmp_path)), ma.read_records(str(alone))
  )


def test_what_no_node_has_is_told(cluster, tmp_path):
  with pytest.raises(ConfigError, match="no node of the Ray cluster has 8 CPU"):
    small_study.run(tmp_path, **on(cluster), worker_gpus=3)


def test_nodes_that_see_another_directory_are_told(
  cluster, tmp_path, monkeypatch
):
  elsewhere = property(lambda task: dataclasses.replace(task, out="elsewhere"))
  monkeypatch.setattr(Task, "anywhere", elsewhere)
  with pytest.raises(ConfigError, match="--out=elsewhere is another directory"):
    small_study.run(tmp_path, **on(cluster))


def test_an_error_of_a_task_is_that_error(cluster, tmp_path):
  (tmp_path / "checkpoints").write_text("no folder")
  with pytest.raises(OSError, match="checkpoints"):
    small_study.run(tmp_path, **on(cluster))
