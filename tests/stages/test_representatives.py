"""What is looked at more closely: around the minimal size of each family."""

from minarch_jax.stages import representatives as choices
from tests import tiny_study
from tests.tiny_study import MEMBERS


def test_the_representatives_surround_the_minimal_size(studied):
  session = tiny_study.open_session(finetune="representatives")
  chosen = choices.representatives(session, str(studied), MEMBERS)
  assert set(chosen) <= set(MEMBERS) and len(chosen) == len(set(chosen))
  assert {a.family for a in chosen} == {"dnn", "cnn"}
  assert {a.depth for a in chosen if a.family == "dnn"} == {1, 2}


def test_all_are_all(studied):
  session = tiny_study.open_session(finetune="all")
  found = choices.representatives(session, str(studied), MEMBERS)
  assert found == MEMBERS
