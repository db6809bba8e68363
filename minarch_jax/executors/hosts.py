"""Several processes as one program, as on the hosts of a TPU slice.

Packs are independent, so processes exchange nothing while they work: each runs
whole packs on its own devices, and leases in the results directory say who runs
which. JAX is told of all processes because the devices of a slice start
together or not at all, because somebody must notice that one is gone, and to
ask once whether all see the same directory.
"""

from collections.abc import Iterator
import contextlib
import os
import sys
import time
import traceback
from typing import NoReturn
import uuid

import jax
from jax.experimental import multihost_utils
import numpy as np

from minarch_jax.config import ConfigError
from minarch_jax.engine import population
from minarch_jax.flags import Hosts

HEARTBEAT_SECONDS = 20  # without a sign of life, a process is taken for gone
REPORT_SECONDS = 3600  # that others wait for the first to end
SEEN_SECONDS = 10.0  # for a new file to be seen by all hosts


@contextlib.contextmanager
def joined(hosts: Hosts | None, out: str) -> Iterator[None]:
  """Joins the other processes, and leaves them at the end.

  The first one speaks: what the others print goes nowhere. Who ends by an error
  or a signal ends at once, and the others within a minute.

  Args:
    hosts: who they are; None = this process is alone.
    out: the results directory, which all must see.

  Raises:
    ConfigError: nothing says who they are, or one sees another directory.
  """
  if hosts is None:
    yield
    return
  _join(hosts)
  try:
    _check_shared(out)
    if jax.process_index():
      sys.stdout = open(os.devnull, "w")
    yield
  except (ConfigError, OSError) as error:
    _leave_at_once(f"error: {error}")
  except SystemExit as error:
    _leave_at_once(error.code)
  except BaseException:
    traceback.print_exc()
    _leave_at_once(1)
  jax.distributed.shutdown()  # waits for the others


def _join(hosts: Hosts) -> None:
  population.use_cores()
  try:
    jax.distributed.initialize(
      hosts.coordinator or None,
      hosts.num_processes if hosts.coordinator else None,
      hosts.process_id if hosts.coordinator else None,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
      shutdown_timeout_seconds=REPORT_SECONDS,
    )
  except ValueError as error:  # nothing was found
    raise ConfigError(
      f"--distributed: {str(error).rstrip('.')}; start it by Slurm, Open MPI "
      "or on the hosts of a TPU, or say on every host --coordinator=HOST:PORT "
      "--num_processes=N --process_id=I"
    ) from None
  except RuntimeError as error:
    raise ConfigError(f"--distributed: {error}") from None


def _check_shared(out: str) -> None:
  """Raises ConfigError on all hosts unless all see the same directory."""
  os.makedirs(out, exist_ok=True)
  token = multihost_utils.broadcast_one_to_all(
    np.frombuffer(uuid.uuid4().bytes, np.uint8)
  )
  path = os.path.join(out, f".seen-{np.asarray(token).tobytes().hex()}")
  if not jax.process_index():
    open(path, "w").close()
  patience = time.monotonic() + SEEN_SECONDS
  while not (seen := os.path.exists(path)) and time.monotonic() < patience:
    os.listdir(out)  # has NFS look again
    time.sleep(0.1)
  found = np.ravel(multihost_utils.process_allgather(np.array(seen)))
  if not jax.process_index():
    os.remove(path)
  if not found.all():
    blind = ", ".join(map(str, np.flatnonzero(~found)))
    raise ConfigError(
      f"--out={out} is another directory on process {blind} than on process 0; "
      "all hosts must see one (NFS, Filestore, a mounted bucket)"
    )


def _leave_at_once(code: object) -> NoReturn:
  """Ends without waiting for the others, who would wait for this one."""
  if isinstance(code, str):
    print(code, file=sys.stderr)
  sys.stderr.flush()
  sys.stdout.flush()
  os._exit(code if isinstance(code, int) else 1)
