"""Networks as pure functions of parameters and true sizes."""

from minarch_jax.models.networks import make_model as make_model
from minarch_jax.models.networks import on_unit_rows as on_unit_rows
from minarch_jax.models.parameters import coordinates as coordinates
from minarch_jax.models.parameters import flatten as flatten
from minarch_jax.models.parameters import initial as initial
from minarch_jax.models.parameters import pad as pad
from minarch_jax.models.parameters import shapes as shapes
from minarch_jax.models.parameters import unit_rows as unit_rows
from minarch_jax.models.parameters import unpad as unpad
from minarch_jax.models.parameters import width_masks as width_masks
