"""Where task tokens look: what a predictor gives, and what `measure_attention` makes of it."""

import types

import cv2
import jax
import numpy as np
import pytest
from conftest import debug_config

from affjax import inference, procedures
from scripts import measure_attention as measure


@pytest.fixture(scope="module")
def found(tiny_faces):
  return measure.faces("tiny", tiny_faces, 16)


def predictor(**decoder):
  """As opened from a run, with the parameters that its config starts from."""
  changes = {f"model__decoder__{name}": value for name, value in decoder.items()}
  config = debug_config(model__encoder__depth=4, **changes)
  procedure = procedures.from_config(config)
  state = jax.jit(procedure.init)()
  return inference.Predictor(config, procedure, state.params, state.model_state)


@pytest.mark.parametrize("position", ["decoder", "encoder"])
def test_a_predictor_says_where_each_token_by_its_label_looks(position, found):
  opened = predictor(layout="mixed", position=position)
  images = found["image"][:3]
  maps = opened.attention(images)
  units = [f"AU{n}" for n in (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)]
  assert maps.names == ("valence", "arousal", "expression", *units)
  layers, heads = (2, 8) if position == "decoder" else (4, 3)
  assert maps.image.shape == (layers, 3, heads, 15, 7, 7)
  assert maps.tokens.shape == (layers, 3, heads, 15, 15)
  total = maps.image.sum((-2, -1)) + (maps.tokens.sum(-1) if position == "encoder" else 0)
  np.testing.assert_allclose(total, np.ones((layers, 3, heads, 15)), atol=1e-5)
  # Of each image alone, and the patches in their places: rows from the top.
  np.testing.assert_allclose(opened.attention(images[1:2]).image[:, 0], maps.image[:, 1], atol=1e-5)
  if position == "decoder":
    last = opened._procedure.predict(opened._params, opened._model_state, images, attention=True)[1]
    np.testing.assert_allclose(
      maps.image[1, 2, 5, 4, 3, 6], last["decoder"]["image"][1, 2, 5, 4, 3 * 7 + 6], atol=1e-6
    )


def test_a_model_without_tokens_has_no_attention_to_give(found):
  opened = predictor()
  config = debug_config("debug,plain=true")
  opened._procedure = procedures.from_config(config)
  opened.config = config
  state = jax.jit(opened._procedure.init)()
  opened._params, opened._model_state = state.params, state.model_state
  with pytest.raises(ValueError, match="decoders.Linear has no task tokens"):
    opened.attention(found["image"][:1])


def test_attention_that_is_spread_over_the_face_alone_is_one_whatever_the_unit(found):
  for landmarks, face in zip(found["landmarks"], found["face"], strict=True):
    spread = face / face.sum()
    nowhere = np.full((112, 112), 1 / 112**2)
    for unit in measure.REGIONS:
      part = measure.region(unit, landmarks)
      assert measure.share_of_face(spread, part, np.round(face)) == pytest.approx(1, abs=0.12)
      # Spread over the whole picture, as much less as the face is smaller than that.
      expected = face.mean()
      assert measure.share_of_face(nowhere, part, face) == pytest.approx(expected, rel=1e-4)


def test_attention_on_a_region_alone_is_one_over_its_share_of_the_face_and_elsewhere_nothing(found):
  landmarks, face = found["landmarks"][0], found["face"][0]
  for unit in measure.REGIONS:
    part = (measure.region(unit, landmarks) * (face > 0.99)).astype(np.float32)
    number = measure.share_of_face(part / part.sum(), part, face)
    assert number == pytest.approx(face.sum() / part.sum(), rel=0.01)
    assert measure.share_of_face((face > 0.99) * (1 - part), part, face) == 0


def test_coarse_patches_count_by_the_part_of_them_that_is_in_the_region():
  face, part = np.ones((112, 112), np.float32), np.zeros((112, 112), np.float32)
  part[16:32, 16:24] = 1  # the left half of one of 7 x 7 patches
  attention = np.zeros((7, 7))
  attention[1, 1] = 1
  assert measure.share_of_face(attention, part, face) == pytest.approx(0.5 / (16 * 8 / 112**2))


def test_regions_lie_where_their_units_are(found):
  for points in found["landmarks"]:
    if not ((points >= 8) & (points < 104)).all():
      continue  # only whole faces
    middle = {
      unit: np.argwhere(measure.region(unit, points)).mean(0)[::-1] for unit in measure.REGIONS
    }
    brows, eyes, mouth = (
      points[s].mean(0)[1] for s in (slice(17, 27), slice(36, 48), slice(48, 68))
    )
    for unit in ("AU1", "AU2"):
      assert middle[unit][1] < brows
    assert abs(middle["AU4"][1] - brows) < 4
    assert abs(middle["AU7"][1] - eyes) < 2
    assert eyes < middle["AU6"][1] < mouth
    for unit in ("AU15", "AU23", "AU24", "AU25"):
      assert abs(middle[unit][1] - mouth) < 4
    assert middle["AU12"][1] < middle["AU15"][1] < middle["AU26"][1]


def test_a_run_whose_units_share_a_token_is_refused(found):
  shared = types.SimpleNamespace(
    attention=lambda images: inference.Attention(("va", "au"), None, np.ones((1, 16, 1, 2, 7, 7)))
  )
  with pytest.raises(ValueError, match="no token of their own.*layout=elementary"):
    measure.measure(shared, found)


def test_a_token_is_measured_on_its_own_region_and_on_those_of_the_others(found):
  units = list(measure.REGIONS)
  names = ("valence", *units[::-1])  # in another order
  image = np.zeros((2, 16, 4, 13, 112, 112), np.float32)
  for row, landmarks in enumerate(found["landmarks"]):
    for unit in units:
      part = measure.region(unit, landmarks) * found["face"][row]
      image[1, row, :, names.index(unit)] = part / part.sum()
  looking = types.SimpleNamespace(attention=lambda images: inference.Attention(names, None, image))
  numbers, attention = measure.measure(looking, found)
  both, _ = measure.measure(looking, found, "all")  # in the first layer there is no attention
  np.testing.assert_allclose(both, numbers / 2, rtol=1e-5)
  assert attention.shape == (12, 16, 112, 112)
  lips, jaw, brows = (units.index(unit) for unit in ("AU25", "AU26", "AU4"))
  for row, face in enumerate(found["face"]):
    part = measure.region("AU25", found["landmarks"][row]) * face
    assert numbers[lips, lips, row] == pytest.approx(face.sum() / part.sum(), rel=0.05)
  # Lips are in the region of the jaw, and brows in neither.
  assert (numbers[lips, jaw] > 2).all()
  assert numbers[brows, lips].max() == 0


def test_the_table_and_the_picture_are_of_what_was_measured(found, tmp_path):
  rng = np.random.default_rng(0)
  numbers = np.full((2, 12, 12, 16), 0.25)
  for unit in range(12):
    numbers[:, unit, unit] = np.array([1.5, 1.7])[:, None] if unit else 0.5
  lines = measure.table(numbers).splitlines()
  assert " ".join(lines[1].split()) == "AU1 0.50 [ 0.50 0.50] below 1 0.25 0.50 0.50"
  # Student's t of one degree of freedom is 12.7.
  assert lines[2].split()[:6] == ["AU2", "1.60", "[", "0.33", "2.87]", "undecided"]
  assert lines[-1].split()[:2] == ["mean", "1.51"]
  measure.draw(tmp_path / "a.png", found, rng.random((12, 16, 7, 7)), np.ones(12))
  picture = cv2.imread(str(tmp_path / "a.png"))
  assert picture.shape[0] > 3 * 112
  assert picture.shape[1] > 4 * 112
