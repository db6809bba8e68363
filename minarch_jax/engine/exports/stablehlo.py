"""StableHLO: the program itself, with its weights, for any number of images."""

from collections.abc import Iterator
import contextlib
import importlib.util

import jax
from jax import export

from minarch_jax import leaves
from minarch_jax.engine.exports.networks import Network

PLATFORMS = ("cpu", "cuda", "tpu")
_PLACES = "jax_traceback_in_locations_limit"


def content(network: Network) -> bytes:
  """Returns a serialized `jax.export.Exported` of one argument, the images.

  Quantized weights stand in it as packed codes, which it decodes when run.

  Raises:
    ImportError: flatbuffers is missing.
    ValueError: the network needs to know the number of images.
  """
  if importlib.util.find_spec("flatbuffers") is None:
    raise ImportError(
      "JAX serializes programs with flatbuffers, which is not installed: pip "
      "install 'minarch-jax[export]'"
    )
  (batch,) = export.symbolic_shape("batch")
  packed = jax.tree.map(
    lambda leaf: leaf.pack() if leaves.is_qtensor(leaf) else leaf,
    network.params,
    is_leaf=leaves.is_qtensor,
  )
  program = jax.jit(lambda x: network.run(packed, x))
  try:
    with _without_places():
      exported = export.export(program, platforms=PLATFORMS)(
        network.images(batch)
      )
  except Exception as error:
    raise ValueError(
      f"{network.name} cannot be exported for any number of images ({error}); "
      "make it independent of it"
    ) from error
  return bytes(exported.serialize())


@contextlib.contextmanager
def _without_places() -> Iterator[None]:
  """Leaves out where in the source each operation came from.

  The places name folders of the machine that writes, differ from call to call,
  and are a sixth of a small file.
  """
  before = getattr(jax.config, _PLACES)
  jax.config.update(_PLACES, 0)
  try:
    yield
  finally:
    jax.config.update(_PLACES, before)
