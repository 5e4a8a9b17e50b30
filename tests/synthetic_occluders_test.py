"""Hands before the synthetic faces: whose, where, what they hide, and that they are off."""

import dataclasses

import numpy as np
import pytest

from affjax import labels
from tfds_builders.synthetic_faces import knobs, landmarks, occluders, renderer
from tfds_builders.synthetic_faces import synthetic_faces_dataset_builder as builders

VERSION = "0.2.0"
ALWAYS = dataclasses.replace(knobs.HANDS, hand_often=1.0, hand_seldom=1.0)
MOUTH = occluders.REGIONS[-1][1]


def render(identity, setting):
  return renderer.render_face(VERSION, 0, "test", identity, 0, setting)


@pytest.fixture(scope="module")
def covered():
  """Thirty faces, each with a hand; sharp ones, so that blur hides nothing."""
  setting = knobs.Knobs(camera=knobs.Camera(rate=0, reduced_rate=0), occluders=ALWAYS)
  return [render(i, setting) for i in range(30)]


def test_there_are_no_hands_unless_they_are_wanted():
  assert all(render(i, knobs.Knobs()).scene.hand is None for i in range(20))


def test_a_face_without_a_hand_is_the_same_whether_others_have_one():
  some = knobs.Knobs(occluders=dataclasses.replace(knobs.HANDS, hand_often=0.5, hand_seldom=0.5))
  without = 0
  for i in range(12):
    plain, other = render(i, knobs.Knobs()), render(i, some)
    assert plain.pattern == other.pattern
    np.testing.assert_array_equal(plain.picture.landmarks, other.picture.landmarks)
    assert (plain.jpeg == other.jpeg) == (other.scene.hand is None)
    without += other.scene.hand is None
  assert 0 < without < 12


@pytest.mark.parametrize(
  ("pattern", "share"),
  [
    ("sadness/downcast", 0.3),
    ("fear/gasp", 0.3),
    ("surprise/brows", 0.3),
    ("other/confused", 0.3),
    ("other/talking", 0.05),
    ("happiness/open", 0.05),
    ("neutral/rest", 0.05),
  ],
)
def test_hands_go_with_the_class(pattern, share):
  rng = np.random.default_rng(0)
  drawn = [occluders.draw(rng, pattern, knobs.HANDS) for _ in range(1_500)]
  rate = np.mean([hand is not None for hand in drawn])
  assert rate == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 1_500))


def test_a_hand_before_the_mouth_hides_the_mouth_and_its_units(covered):
  hands = [face for face in covered if face.scene.hand.place == "mouth"]
  assert 8 <= len(hands) <= 22
  lower = [labels.AU_MTL.index(f"AU{unit}") for unit in MOUTH]
  upper = [i for i in range(12) if i not in lower]
  hidden = [not builders.visible(face)[lower].any() for face in hands]
  assert np.mean(hidden) > 0.9
  for face in hands:
    # A hand before the mouth may reach an eye, but never both brows.
    assert builders.visible(face)[upper][:3].all()
    assert not face.picture.landmark_seen[~face.picture.landmark_open].any()


def test_a_hand_on_the_cheek_leaves_most_of_the_mouth(covered):
  cheeks = [face for face in covered if face.scene.hand.place == "cheek"]
  hidden = [not face.picture.landmark_open[48:68].any() for face in cheeks]
  assert np.mean(hidden) < 0.2


def test_the_label_stays_where_the_unit_is_hidden(covered):
  for identity, face in enumerate(covered[:10]):
    plain = render(identity, knobs.Knobs(camera=knobs.Camera(rate=0, reduced_rate=0)))
    np.testing.assert_array_equal(plain.intensity, face.intensity)
    record = builders.example("test", identity, 0, face, labels.EXPRESSION_MTL)
    assert record["occluder"] == f"hand before the {face.scene.hand.place}"
    assert builders.example("t", 0, 0, plain, labels.EXPRESSION_MTL)["occluder"] == ""


def test_the_face_mask_leaves_the_hand_out(covered):
  for identity, face in enumerate(covered[:10]):
    plain = render(identity, knobs.Knobs(camera=knobs.Camera(rate=0, reduced_rate=0)))
    assert (face.picture.face <= plain.picture.face).all()
    assert face.picture.face.sum() < 0.95 * plain.picture.face.sum()


def test_a_hand_comes_from_its_side_and_goes_along_with_the_face():
  points = render(0, knobs.Knobs()).picture.landmarks
  centre = lambda hand, at: np.mean(
    [end for part in occluders.bones(hand, at) for rod in part for end in rod[:2]], 0
  )
  hand = occluders.Hand("mouth", 1, 20.0, 3.0, 0.5)
  mouth = points[48:60].mean(0)
  assert centre(hand, points)[0] > mouth[0] + 5
  assert centre(dataclasses.replace(hand, side=-1), points)[0] < mouth[0] - 5
  np.testing.assert_allclose(centre(hand, points + 10), centre(hand, points) + 10, atol=1e-3)
  flipped = (points * [-1, 1])[landmarks.MIRROR]
  np.testing.assert_allclose(
    centre(dataclasses.replace(hand, side=-1), flipped), centre(hand, points) * [-1, 1], atol=0.01
  )


def test_units_are_hidden_where_most_of_their_region_is():
  free = np.ones(68, bool)
  assert occluders.hidden(free) == ()
  free[48:60] = False
  assert occluders.hidden(free) == MOUTH
  free[17:24] = False
  assert occluders.hidden(free) == (1, 2, 4, *MOUTH)
