"""The pictures of the synthetic faces: what units, head, gaze and camera do to them."""

import dataclasses

import numpy as np
import pytest

from tfds_builders.synthetic_faces import asset as assets
from tfds_builders.synthetic_faces import (
  camera,
  expression,
  knobs,
  label_model,
  landmarks,
  raster,
  renderer,
)
from tfds_builders.synthetic_faces import pose as poses

SETTING, VERSION = knobs.Knobs(), "0.2.0"
UNITS = label_model.UNITS


def strengths(**units):
  """au12=(1, 0.5): unit 12 at 1 on the face's left, 0.5 on its right."""
  intensity = np.zeros((len(UNITS), 2))
  for name, value in units.items():
    intensity[UNITS.index(int(name.removeprefix("au")))] = value
  return intensity


def person(number=0):
  return renderer.draw_person(VERSION, 0, "test", number, SETTING.person)


def express(intensity, gaze=(0.0, 0.0), number=0):
  return expression.express(assets.load(), person(number).vertices, intensity, np.array(gaze))


def scene(intensity, head=(0.0, 0.0, 0.0), eyes=(0.0, 0.0)):
  return renderer.Scene(
    intensity=intensity,
    framing=poses.Framing(head=np.array(head, float), focal=55.0),
    eyes=np.array(eyes, float),
    light=np.array([25.0, 25.0, 3.0, 0.3, 5500.0]),
    background=np.full((renderer.SIZE, renderer.SIZE, 3), 0.3, np.float32),
  )


def picture(intensity, number=0, **kwargs):
  return renderer.render(person(number), scene(intensity, **kwargs)).light


GRADIENT = np.linspace(0.1, 0.6, 112 * 112 * 3, dtype=np.float32).reshape(112, 112, 3)
UPPER = (1, 2, 4, 5, 7, 43)
LOWER = (12, 14, 15, 17, 18, 20, 23, 24, 25, 26, 27, 28)


@pytest.mark.parametrize("unit", UNITS)
def test_a_unit_moves_its_part_of_the_face_and_no_other(unit):
  rest = express(strengths()).vertices
  moved = express(strengths(**{f"au{unit}": 1})).vertices
  length = np.linalg.norm(moved - rest, axis=1)
  eyes = np.mean([rest[eye].mean(0) for eye in assets.load().eyes], 0)
  mouth = rest[assets.load().landmarks["upper lip"]]
  nose = 0.5 * (eyes[1] + mouth[1])
  above, below = (length[rest[:, 1] > nose] ** 2).sum(), (length[rest[:, 1] <= nose] ** 2).sum()
  assert length.max() > 0.02  # two millimetres
  if unit in UPPER:
    assert above > 0.95 * (above + below)
  elif unit in LOWER:
    assert below > 0.95 * (above + below)
  else:  # cheeks, nose and upper lip
    between = (rest[:, 1] > mouth[1] - 0.1) & (rest[:, 1] < eyes[1] + 0.3)
    assert (length[between] ** 2).sum() > 0.9 * (above + below)
    assert below > 0.2 * above


@pytest.mark.parametrize("unit", [1, 2, 4, 6, 7, 9, 10, 12, 14, 15, 43])
def test_a_unit_on_the_faces_left_moves_the_right_of_the_picture(unit):
  rest, moved = (express(strengths(**{f"au{unit}": side})).vertices for side in (0, (1, 0)))
  length = np.linalg.norm(moved - rest, axis=1) ** 2
  middle = rest[assets.load().landmarks["nose"], 0]
  assert length[rest[:, 0] > middle].sum() > 0.85 * length.sum()


@pytest.mark.parametrize("unit", UPPER)
def test_pixels_change_where_a_unit_of_the_upper_face_acts(unit):
  change = np.abs(picture(strengths(**{f"au{unit}": 1})) - picture(strengths())).max(-1)
  assert change[:66].max() > 0.05
  assert change[72:].max() < 0.1 * change[:66].max()


# Where no pixel changes when a unit acts and the crop stays: rows, columns.
BELOW_EYES, EYES = (slice(64, 112), slice(0, 112)), (slice(20, 58), slice(28, 84))
STILL = {
  **dict.fromkeys((1, 2, 4, 5, 43), BELOW_EYES),
  7: (slice(76, 112), slice(0, 112)),
  6: (slice(90, 112), slice(30, 82)),
  9: (slice(96, 112), slice(0, 112)),
  12: (slice(20, 46), slice(28, 84)),
  **dict.fromkeys((10, 14, 15, 17, 18, 20, 23, 24, 25, 26, 27, 28), EYES),
}


@pytest.mark.parametrize("unit", UNITS)
def test_no_pixel_changes_away_from_a_unit(unit, monkeypatch):
  place = poses.place
  stay = lambda asset, rest, moved, framing: place(asset, rest, rest, framing)
  monkeypatch.setattr(poses, "place", stay)
  for number in (0, 3, 5):
    change = np.abs(picture(strengths(**{f"au{unit}": 1}), number) - picture(strengths(), number))
    assert change.max() > 0.1
    # But for the edges of what skin far away pulls along, a hair's breadth.
    assert (change[STILL[unit]] > 0.05).mean() < 0.005


def test_left_of_the_face_is_right_in_the_picture():
  change = np.abs(picture(strengths(au2=(1, 0))) - picture(strengths())).sum((0, 2))
  assert change[57:].sum() > 20 * change[:55].sum()


def brows(**units):
  """Outer minus inner height, inner height, distance of the inner ends; in e, mean of 20 people."""
  asset, found = assets.load(), []
  for number in range(20):
    vertices = express(strengths(**units), number=number).vertices
    inner, outer = (
      np.array([vertices[asset.landmarks[f"{side} {name}"]] for side in ("left", "right")])
      for name in ("inner brow", "outer brow")
    )
    eyes = np.mean([vertices[e].mean(0) for e in asset.eyes], 0)
    tilt, height = outer[:, 1].mean() - inner[:, 1].mean(), inner[:, 1].mean() - eyes[1]
    found.append(
      np.array([tilt, height, np.ptp(inner[:, 0])]) / expression.eye_distance(asset, vertices)
    )
  return np.mean(found, 0)


def test_raised_brows_do_not_slope_like_a_scowl():
  rest, inner, whole = brows(), brows(au1=1), brows(au1=1, au2=1)
  assert -0.2 < inner[0] - rest[0] < -0.1
  assert whole[0] - rest[0] < 0.02
  assert whole[1] - rest[1] > 0.12


def test_inner_brows_raised_and_drawn_together_are_oblique():
  rest, worried, frown = brows(), brows(au1=1, au4=1), brows(au4=1)
  assert worried[0] < -0.05
  assert worried[1] > rest[1]
  assert worried[2] < rest[2] - 0.08
  # A frown alone lowers them, as steep as they were or steeper.
  assert frown[0] > rest[0]
  assert frown[1] < rest[1] - 0.1
  assert frown[2] < rest[2] - 0.08


def test_brows_and_mouths_at_rest_are_level():
  asset = assets.load()
  for number in range(30):
    vertices = person(number).vertices
    distance = expression.eye_distance(asset, vertices)
    assert abs(asset.height(vertices, "outer brow", "inner brow") / distance + 0.025) < 0.08
    assert abs(asset.height(vertices, "corner", "lip") / distance) < 0.05


def test_groups_of_people_are_balanced():
  drawn = [person(number).attributes for number in range(400)]
  for name, shares in (
    ("ancestry", np.full(3, 1 / 3)),
    ("sex", np.full(2, 1 / 2)),
    ("age_group", np.array([18, 20, 24]) / 62),
  ):
    counts = np.bincount([someone[name] for someone in drawn])
    # Four standard errors.
    np.testing.assert_allclose(counts / 400, shares, atol=4 * np.sqrt(0.25 / 400))
  sex, ancestry = (np.array([someone[name] for someone in drawn]) for name in ("sex", "ancestry"))
  assert abs(sex[ancestry == 0].mean() - sex[ancestry == 2].mean()) < 0.25


@pytest.mark.parametrize("number", range(8))
def test_lips_are_parted_exactly_where_unit_25_is_there(number):
  rng = np.random.default_rng(number)
  for _ in range(40):
    face = label_model.draw(rng, knobs.Labels(ambiguity=1.0))
    intensity = label_model.draw_intensity(rng, face)
    if face.present[UNITS.index(20)]:
      continue  # parts the lips by itself
    gap = express(intensity, number=number).gap
    assert (gap > expression.PARTED) == face.present[UNITS.index(25)]


def test_stretched_lips_are_labelled_as_parted():
  intensity = strengths(au20=0.8)
  gap = express(intensity).gap
  assert gap > expression.PARTED
  seen = label_model.lips_seen(intensity, gap > expression.PARTED)
  assert seen[UNITS.index(25)].max() >= label_model.PRESENT
  closed = label_model.lips_seen(strengths(au25=0.6), False)
  assert closed[UNITS.index(25)].max() < label_model.PRESENT


def test_a_head_turns_and_rises_as_its_angles_say():
  def nose(head):
    asset, who = assets.load(), person()
    face = expression.express(asset, who.vertices, strengths(), np.zeros(2))
    framing = scene(strengths(), head).framing
    pose = poses.place(asset, who.vertices, face.vertices, framing)
    points = pose.project(poses.five_points(asset, face.vertices))[1][:, :2] / 2
    return points[2] - points[:2].mean(0)

  assert nose((25, 0, 0))[0] > 5
  assert nose((-25, 0, 0))[0] < -5
  assert nose((0, 20, 0))[1] < nose((0, 0, 0))[1] < nose((0, -20, 0))[1]


def test_eyes_turn_as_the_gaze_says():
  asset = assets.load()
  for gaze, axis, sign in (((20, 0), 0, 1), ((-20, 0), 0, -1), ((0, 15), 1, 1), ((0, -15), 1, -1)):
    for eye in asset.eyes:
      front = eye[asset.vertices[eye, 2].argmax()]
      move = (express(strengths(), gaze).vertices - express(strengths()).vertices)[front]
      assert sign * move[axis] > 0.02


def test_the_five_points_lie_on_the_template():
  asset = assets.load()
  for number in range(5):
    who = person(number)
    face = expression.express(asset, who.vertices, strengths(), np.zeros(2))
    framing = scene(strengths(), (0, 0, 20)).framing
    pose = poses.place(asset, who.vertices, face.vertices, framing)
    points = pose.project(poses.five_points(asset, face.vertices))[1][:, :2] / 2
    assert np.linalg.norm(points - poses.TEMPLATE, axis=1).mean() < 4


def test_similarity_finds_scale_rotation_and_shift():
  source = np.random.default_rng(6).normal(size=(5, 2))
  fit, offset = 2 * np.exp(0.3j), 5 - 7j
  flat = fit * (source[:, 0] + 1j * source[:, 1]) + offset
  found = poses.similarity(source, np.stack([flat.real, flat.imag], 1))
  np.testing.assert_allclose(found, (fit, offset), rtol=1e-9)


def spoilt(number, setting):
  """A gradient with the faults that a number gives it."""
  rng = np.random.default_rng(number)
  faults = camera.draw_faults(rng, setting)
  return camera.spoil(rng, GRADIENT, faults), faults


def test_camera_faults_happen_at_their_rate_and_only_then():
  clean = np.round(camera.develop(GRADIENT) * 255)
  never = knobs.Camera(rate=0, grey_rate=0, reduced_rate=0)
  pixels, faults = spoilt(0, never)
  assert (pixels == clean).all()
  assert faults == camera.FAULTLESS
  many = [spoilt(i, knobs.Camera()) for i in range(200)]
  untouched = np.mean([(pixels == clean).all() for pixels, _ in many])
  assert untouched == pytest.approx(0.95 * 0.7**7, abs=0.07)
  for pixels, faults in many:
    # A fault that is told is seen, and none is seen that is not told.
    assert (pixels == clean).all() == (faults == camera.FAULTLESS)


@pytest.mark.parametrize(
  ("name", "value"),
  [("exposure", 0.5), ("gamma", 1.2), ("red", 1.08), ("grey", 1.0), ("blur", 1.4), ("noise", 0.03)]
  + [("resolution", 40.0), ("jpeg", 40.0)],
)
def test_each_camera_fault_changes_the_picture(name, value):
  sharp = np.random.default_rng(0).uniform(0, 0.6, GRADIENT.shape).astype(np.float32)
  change = lambda faults: camera.spoil(np.random.default_rng(1), sharp, faults).astype(int)
  faulty = change(camera.Faults(**{name: value}))
  assert np.abs(faulty - change(camera.FAULTLESS)).mean() > 1


def test_the_main_light_comes_from_where_it_is_said_to_come_from():
  halves = {}
  for azimuth in (-60.0, 60.0):
    lit = dataclasses.replace(scene(strengths()), light=np.array([azimuth, 20, 6, 0.15, 5500.0]))
    face = renderer.render(person(), lit).light[40:80].mean((0, 2))
    halves[azimuth] = face[30:50].mean() / face[62:82].mean()
  assert halves[-60.0] > 1.3
  assert halves[60.0] < 1 / 1.3


# The truth about the pictures.


def coloured(number, seen, show):
  """Where a part of the head is drawn, at twice the size: [224, 224] bool, and the landmarks."""
  asset, who = assets.load(), person(number)
  face = expression.express(asset, who.vertices, seen.intensity, seen.eyes, who.wrinkled)
  pose = poses.place(asset, who.vertices, face.vertices, seen.framing)
  screen = pose.project(face.vertices)[1]
  shown = raster.rasterise(screen, asset.triangles, 2 * renderer.SIZE, True)[1]
  drawn = (shown >= 0) & show(asset)[shown]
  return drawn, 2 * renderer.render(who, seen).landmarks


# Not of narrowed eyes, whose lids meet before the corners do.
LOOKS = [
  (0, {}, (0, 0, 0)),
  (1, {"au5": 0.8, "au1": 0.8}, (15, 5, 0)),
  (2, {"au12": 0.8}, (-20, 0, 8)),
  (3, {"au4": 0.8}, (0, 12, -8)),
  (5, {"au25": 0.8, "au26": 0.6}, (10, -12, 0)),
]


@pytest.mark.parametrize(("number", "units", "head"), LOOKS)
def test_landmarks_of_the_eyes_lie_on_the_edge_of_the_eyes(number, units, head):
  eyes, points = coloured(
    number, scene(strengths(**units), head), lambda asset: asset.part == raster.EYE
  )
  for first in (36, 42):
    six = points[first : first + 6]
    column, row = six.mean(0).astype(int)
    around = np.zeros_like(eyes)
    around[row - 25 : row + 25, column - 22 : column + 22] = True
    rows, columns = np.nonzero(eyes & around)
    assert len(rows) > 100
    # 1.5 pixels of the picture are three of this one.
    assert abs(six[:, 0].min() - columns.min()) < 3
    assert abs(six[:, 0].max() - columns.max() - 1) < 3
    assert abs(six[:, 1].min() - rows.min()) < 3
    assert abs(six[:, 1].max() - rows.max() - 1) < 3


@pytest.mark.parametrize(("number", "units", "head"), LOOKS)
def test_landmarks_of_the_brows_lie_on_the_brows(number, units, head):
  who, seen = person(number), scene(strengths(**units), head)
  dark, light = (
    renderer.render(dataclasses.replace(who, brow_colour=np.full(3, value, np.float32)), seen)
    for value in (0, 1)
  )
  hairs = np.abs(light.light - dark.light).max(-1) > 0.05
  rows, columns = np.nonzero(hairs)
  for x, y in light.landmarks[17:27]:
    # The tails of some brows are short: two pixels of a brow that is three high.
    assert np.hypot(columns + 0.5 - x, rows + 0.5 - y).min() < 2.5


@pytest.mark.parametrize("units", [{6: 1, 7: 1}, {6: 1, 7: 1, 12: 1}, {4: 1, 7: 1, 9: 1}, {43: 1}])
def test_no_eyeball_shows_through_the_lids(units):
  for number in range(12):
    seen = scene(strengths(**{f"au{unit}": value for unit, value in units.items()}))
    eyes, points = coloured(number, seen, lambda asset: asset.part == raster.EYE)
    rows, columns = np.nonzero(eyes)
    for first in (36, 42):
      six = points[first : first + 6]
      mine = np.abs(columns - six[:, 0].mean()) < 25
      # Outside of the lids' edges, by more than a pixel of the picture, there is none of it.
      assert ((rows[mine] > six[:, 1].max() + 2) | (rows[mine] < six[:, 1].min() - 2)).sum() == 0


@pytest.mark.parametrize("number", range(4))
def test_landmarks_of_the_inner_lips_surround_the_open_mouth(number):
  inside = (raster.MOUTH, raster.TEETH, raster.TONGUE)
  mouth, points = coloured(
    number,
    scene(strengths(au25=0.9, au26=0.9)),
    lambda asset: np.isin(asset.part, inside),
  )
  rows, columns = np.nonzero(mouth[130:])
  # The skin of the lips goes on inwards: what is behind their edge may begin a little later.
  assert -1 < rows.min() + 130 - points[62, 1] < 5
  assert -1 < points[66, 1] - rows.max() - 130 < 6
  assert points[48, 0] < points[60, 0] < columns.min() + 6
  assert points[54, 0] > points[64, 0] > columns.max() - 6


def test_mirrored_landmarks_are_landmarks_of_the_mirrored_face():
  asset = assets.load()
  rest = asset.vertices
  left = strengths(au2=(0.8, 0), au4=(0, 0.7), au12=(0.9, 0.1), au43=(0.5, 0))
  mirror = lambda points: (points * [-1, 1])[landmarks.MIRROR]
  found = []
  for intensity, side in ((left, 1), (left[:, ::-1], -1)):
    face = expression.express(asset, rest, intensity, np.array([side * 8.0, 4]))
    framing = poses.Framing(np.array([side * 20.0, 5, side * 6]), 50.0)
    pose = poses.place(asset, rest, face.vertices, framing)
    # In the camera's frame: the usual crop is not quite symmetric.
    found.append(pose.project(face.vertices[asset.ibug].mean(1))[0])
  np.testing.assert_allclose(mirror(found[0][:, :2]), found[1][:, :2], atol=2e-3)
  assert sorted(landmarks.MIRROR) == list(range(68))
  np.testing.assert_array_equal(landmarks.MIRROR[landmarks.MIRROR], np.arange(68))


def test_the_far_side_of_a_turned_head_is_not_seen():
  found = renderer.render(person(), scene(strengths(), (40, 0, 0)))
  # A head that turns to the right of the picture hides its ear and jaw there.
  assert found.landmark_seen[[1, 2, 3, 36, 39]].all()
  assert not found.landmark_seen[[13, 14, 15]].any()
  outside = (found.landmarks < 0).any(1) | (found.landmarks >= renderer.SIZE).any(1)
  assert not found.landmark_seen[outside].any()


def test_landmarks_follow_the_crop():
  seen = scene(strengths())
  moved = dataclasses.replace(
    seen, framing=dataclasses.replace(seen.framing, shift=np.array([0.1, -0.2]))
  )
  shift = renderer.render(person(), moved).landmarks - renderer.render(person(), seen).landmarks
  distance = np.linalg.norm(poses.TEMPLATE[1] - poses.TEMPLATE[0])
  np.testing.assert_allclose(shift, np.tile([0.1 * distance, -0.2 * distance], (68, 1)), atol=1e-3)


def test_the_face_mask_holds_the_features_and_neither_background_nor_hair():
  bare = next(i for i in range(30) if not person(i).hair)
  long = next(i for i in range(30) if person(i).hair == "long01")
  for number in (bare, long):
    found = renderer.render(person(number), scene(strengths()))
    columns, rows = (found.landmarks[[27, 30, 33, 41, 46, 57, 62]] // 4).astype(int).T
    assert (found.face[rows, columns] > 200).all()
    assert (found.face[-4:, :2] == 0).all()  # hair, neck or background
  found = renderer.render(person(bare), scene(strengths(), (40, 0, 0)))
  behind = np.abs(found.light - 0.3).max(-1).reshape(28, 4, 28, 4).max((1, 3)) < 1e-6
  assert behind.any()
  assert not found.face[behind].any()
