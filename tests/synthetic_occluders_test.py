"""Hands before the synthetic faces: whose, where, what they hide, and that they are off."""

import dataclasses

import numpy as np
import pytest
import simplejpeg

from affjax import labels
from tfds_builders.synthetic_faces import asset as assets
from tfds_builders.synthetic_faces import glasses, knobs, landmarks, occluders, renderer
from tfds_builders.synthetic_faces import synthetic_faces_dataset_builder as builders

VERSION = "0.3.0"
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


# Glasses and hair.

CLEAN = knobs.Camera(rate=0, reduced_rate=0, grey_rate=0)
EYES = slice(36, 48)


def wearing(**chances):
  return knobs.Knobs(camera=CLEAN, occluders=knobs.Occluders(**chances))


def pixels(face):
  return simplejpeg.decode_jpeg(face.jpeg).astype(int)


def test_nothing_stands_before_a_face_by_default():
  for i in range(8):
    scene = render(i, knobs.Knobs()).scene
    assert (scene.hand, scene.glasses, scene.lock) == (None, None, None)


def test_occluders_come_at_their_rates_and_alone_change_the_pictures():
  setting, some = (
    knobs.Knobs(),
    knobs.Knobs(
      occluders=dataclasses.replace(
        knobs.OCCLUDED, hand_often=0.2, hand_seldom=0.2, glasses=0.3, lock=0.2
      )
    ),
  )
  bare = 0
  for i in range(16):
    plain, other = render(i, setting), render(i, some)
    named = builders.example("t", 0, 0, other, labels.EXPRESSION_MTL)["occluder"]
    np.testing.assert_array_equal(plain.intensity, other.intensity)
    assert (plain.jpeg == other.jpeg) == (named == "")
    bare += named == ""
  assert 0 < bare < 16
  rng = np.random.default_rng(0)
  for draw, rate in ((glasses.draw, 0.1), (occluders.draw_lock, 0.05)):
    found = [draw(rng, knobs.OCCLUDED) is not None for _ in range(2_000)]
    assert np.mean(found) == pytest.approx(rate, abs=4 * np.sqrt(rate / 2_000))


def test_all_occluders_are_named():
  setting = wearing(hand_often=1, hand_seldom=1, glasses=1, lock=1)
  haired = next(i for i in range(20) if render(i, setting).scene.lock)
  face = render(haired, setting)
  named = builders.example("t", 0, 0, face, labels.EXPRESSION_MTL)["occluder"].split(", ")
  assert named == [face.scene.hand.name, face.scene.glasses.name, face.scene.lock.name]
  assert named[0].startswith("hand before the ")
  assert named[1] in ("glasses", "dark glasses")
  assert named[2] in ("hair over the left eye", "hair over the right eye")


def test_glasses_sit_before_the_eyes_and_touch_nothing_below_the_nose():
  for i in range(6):
    face, plain = render(i, wearing(glasses=1)), render(i, wearing())
    apart = np.abs(pixels(face) - pixels(plain)).max(-1) > 12
    points = plain.picture.landmarks
    rows, columns = np.nonzero(apart)
    assert len(rows) > 100
    eyes, mouth = points[EYES, 1].mean(), points[48:60, 1].mean()
    assert rows.max() < 0.35 * eyes + 0.65 * mouth + 4
    assert abs(np.median(rows) - eyes) < 8
    # Rims go round both eyes: something changes left and right of either.
    middle = points[27, 0]
    assert (columns < middle).any()
    assert (columns > middle).any()


def test_glasses_are_rigid_on_the_head():
  asset = assets.load()
  someone = renderer.draw_person(VERSION, 0, "test", 0, knobs.Person())
  pair = glasses.draw(np.random.default_rng(0), knobs.Occluders(glasses=1))
  vertices, triangles, _, _ = glasses.build(asset, someone.vertices, pair).frame
  left, right = (someone.vertices[eye].mean(0) for eye in asset.eyes)
  unit = np.linalg.norm(left - right)
  # In front of both eyes, behind the nose's tip, and back to the ears on both sides.
  nose = someone.vertices[asset.landmarks["nose"], 2]
  rims = np.abs(vertices[:, 0]) < 1.1 * unit
  assert vertices[rims, 2].max() > max(left[2], right[2])
  assert vertices[rims, 2].max() < nose + 0.2 * unit
  assert vertices[:, 2].min() < left[2] - unit
  assert triangles.max() == len(vertices) - 1
  shifted = someone.vertices + np.array([0.1, -0.2, 0.3], np.float32)
  moved = glasses.build(asset, shifted, pair).frame[0]
  ends = np.abs(moved - vertices - [0.1, -0.2, 0.3]).max(1)
  assert np.median(ends) < 1e-4


def test_dark_glasses_hide_the_eyes_and_their_units_and_clear_ones_do_not():
  dark = knobs.Eyewear(dark_rate=1.0)
  clear = knobs.Eyewear(dark_rate=0.0, thickness=knobs.Uniform(0.02, 0.03))
  eyes = [labels.AU_MTL.index(f"AU{unit}") for unit in occluders.REGIONS[1][1]]
  mouth = [labels.AU_MTL.index(f"AU{unit}") for unit in MOUTH]
  for i in range(6):
    face = render(i, wearing(glasses=1, eyewear=dark))
    assert face.scene.glasses.name == "dark glasses"
    assert face.picture.landmark_open[EYES].mean() < 0.3
    assert not builders.visible(face)[eyes].any()
    assert builders.visible(face)[mouth].all()
    assert not face.picture.landmark_seen[~face.picture.landmark_open].any()
    face = render(i, wearing(glasses=1, eyewear=clear))
    assert face.scene.glasses.name == "glasses"
    assert face.picture.landmark_open[EYES].mean() > 0.6


def test_a_lock_hides_the_eye_that_it_says_and_leaves_the_other():
  broad = knobs.Fringe(width=knobs.Uniform(0.9, 1), reach=knobs.Uniform(0.6, 1))
  frontal = dataclasses.replace(
    wearing(lock=1, fringe=broad), view=knobs.View(yaw=knobs.Normal(0, 1))
  )
  found = [face for face in (render(i, frontal) for i in range(24)) if face.scene.lock]
  assert len(found) > 8
  hidden = {1: [], -1: []}
  for face in found:
    side = face.scene.lock.side
    # The face's left eye is on the picture's right: landmarks 42 to 47.
    for eye, where in ((1, slice(42, 48)), (-1, slice(36, 42))):
      hidden[eye * side].append(1 - face.picture.landmark_open[where].mean())
  assert np.mean(hidden[1]) > 0.75
  assert np.mean(hidden[-1]) < 0.15


def test_only_those_who_have_hair_have_it_over_an_eye():
  for i in range(30):
    face = render(i, wearing(lock=1))
    hair = renderer.draw_person(VERSION, 0, "test", i, knobs.Person()).hair
    assert (face.scene.lock is None) == (hair == "")
