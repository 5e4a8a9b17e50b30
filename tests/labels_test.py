import numpy as np
import pytest

from affjax import labels


def test_a_set_read_in_its_own_terms_is_unchanged():
  for names in (labels.EXPRESSION_MTL, labels.EXPRESSION_FERPLUS, labels.AU_MTL, labels.VA):
    np.testing.assert_array_equal(labels.remap(names, names), np.eye(len(names)))


def test_labels_move_by_name_whatever_their_position():
  values = np.arange(1.0, 9.0)
  moved = values @ labels.remap(labels.EXPRESSION_FERPLUS, labels.EXPRESSION_MTL)
  by_name = dict(zip(labels.EXPRESSION_FERPLUS, values, strict=True))
  expected = [by_name[name] for name in labels.EXPRESSION_SEVEN] + [by_name["contempt"]]
  np.testing.assert_array_equal(moved, expected)


@pytest.mark.parametrize(
  ("target", "row"),
  [
    (("other", "contempt"), [0, 1]),  # a place of its own comes first
    (("neutral", "other"), [0, 1]),
    (("neutral", "anger"), [0, 0]),
  ],
)
def test_contempt_goes_to_other_only_where_there_is_no_contempt(target, row):
  np.testing.assert_array_equal(labels.remap(["contempt"], target), [row])


def test_names_that_the_target_lacks_go_nowhere_and_names_that_the_source_lacks_stay_empty():
  matrix = labels.remap(("AU1", "AU99"), ("AU2", "AU1"))
  np.testing.assert_array_equal(matrix, [[0, 1], [0, 0]])
  assert matrix.dtype == np.float32


def test_contempt_and_other_add_up():
  matrix = labels.remap(("contempt", "other"), ("neutral", "other"))
  np.testing.assert_array_equal(np.array([0.25, 0.5]) @ matrix, [0, 0.75])


def test_every_name_of_a_set_occurs_once():
  for names in (labels.EXPRESSION_MTL, labels.EXPRESSION_FERPLUS, labels.AU_MTL, labels.VA):
    assert len(set(names)) == len(names)
