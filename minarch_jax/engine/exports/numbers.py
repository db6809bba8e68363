"""Safetensors: the numbers of a network, as `ma.save_model` stores them."""

from minarch_jax.engine.exports.networks import Network
from minarch_jax.quantization.networks import files


def content(network: Network) -> bytes:
  """Returns a file of the network's numbers, with its name as the note."""
  return b"".join(files.content(network.params, network.name))
