"""Every format of a figure."""

import itertools

from minarch_jax import config, registries


def test_every_format_is_what_its_name_says(built):
  heads = {"svg": b"<svg", "png": b"\x89PNG", "pdf": b"%PDF"}
  for name, format in itertools.product(registries.FIGURES, config.FORMATS):
    data = (built / "figures" / f"{name}.{format}").read_bytes()
    assert data.startswith(heads[format])
