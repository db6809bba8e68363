"""Programs: declared once, compiled once for everything they depend on."""

from unittest import mock

import pytest

from minarch_jax.engine import packs, population
from minarch_jax.engine import session as sessions
from tests.engine.small_packs import CONFIG, dataset, pack_of


def test_a_program_that_did_not_compile_is_compiled_when_asked_again():
  opened = sessions.open_session(CONFIG, dataset())
  placed = sessions.place(opened, pack_of("dnn"))
  with (
    mock.patch.object(population, "compile", side_effect=OSError("disk")),
    pytest.raises(OSError, match="disk"),
  ):
    packs.initial(placed)
  assert not opened.programs
  assert packs.initial(placed)["output"]["kernel"].any()
