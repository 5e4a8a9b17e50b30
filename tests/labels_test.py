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


def index(names):
  return {name: k for k, name in enumerate(names)}


def test_the_indices_are_those_of_the_official_files():
  """Typed from the challenges' and AffectNet's own tables."""
  eight = {"neutral": 0, "anger": 1, "disgust": 2, "fear": 3, "happiness": 4, "sadness": 5}
  eight |= {"surprise": 6, "other": 7}
  assert index(labels.EXPRESSION_MTL) == eight
  assert "other" not in labels.EXPRESSION_SEVEN
  assert all(eight[name] == k for name, k in index(labels.EXPRESSION_SEVEN).items())
  assert all(eight[name] == k + 1 for name, k in index(labels.EXPRESSION_LSD).items())
  assert len(labels.EXPRESSION_LSD) == 6
  affectnet = {"neutral": 0, "happiness": 1, "sadness": 2, "surprise": 3, "fear": 4}
  affectnet |= {"disgust": 5, "anger": 6, "contempt": 7}
  assert index(labels.EXPRESSION_AFFECTNET) == affectnet
  compound = index(labels.EXPRESSION_COMPOUND)
  assert compound["fearfully surprised"] == 0
  assert compound["angrily surprised"] == 4
  assert compound["sadly angry"] == 6
  twelve, eight = (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26), (1, 2, 4, 6, 12, 15, 20, 25)
  assert [f"AU{n}" for n in twelve] == list(labels.AU_MTL)
  assert [f"AU{n}" for n in eight] == list(labels.AU_ABAW1)


def test_the_eight_units_of_the_first_edition_find_their_places_among_twelve():
  matrix = labels.remap(labels.AU_ABAW1, labels.AU_MTL)
  assert matrix.sum() == 7
  assert matrix[labels.AU_ABAW1.index("AU20")].sum() == 0
  assert matrix[labels.AU_ABAW1.index("AU25"), labels.AU_MTL.index("AU25")] == 1
