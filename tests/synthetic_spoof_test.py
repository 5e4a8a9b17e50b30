"""Synthetic faces that are only shown: on paper, on a screen, as a mask; and that they are off."""

import dataclasses

import numpy as np
import pytest

from affjax import labels
from tfds_builders.synthetic_faces import knobs, renderer, spoof
from tfds_builders.synthetic_faces import synthetic_faces_dataset_builder as builders

VERSION = "0.3.0"
CLEAN = knobs.Camera(rate=0, reduced_rate=0, grey_rate=0)
CHANCES = {"print": "print", "screen": "screen", "cut-out": "cut_out"}


def render(identity, **spoofs):
  setting = knobs.Knobs(camera=CLEAN, spoof=knobs.Spoof(**spoofs))
  return renderer.render_face(VERSION, 0, "test", identity, 0, setting)


def flat(kind, **changed):
  """A spoof without bend, grain, or glare, and what it makes of a plain grey picture."""
  drawn = spoof.Spoof(
    kind, np.array([4.0, -9, 4, -9]), 0.0, 0.0, 0.0, 1.1, 0.0, 0.5, np.zeros(3), False, 3
  )
  drawn = dataclasses.replace(drawn, **changed)
  light = np.full((112, 112, 3), 0.25, np.float32)
  points = render(0).picture.landmarks
  return spoof.show(drawn, light, points, np.full((28, 28), 255, np.uint8))


def test_faces_are_alive_unless_spoofs_are_wanted():
  for identity in range(6):
    face = renderer.render_face(VERSION, 0, "test", identity, 0, knobs.Knobs(camera=CLEAN))
    assert face.scene.spoof is None
    record = builders.example("test", identity, 0, face, labels.EXPRESSION_MTL)
    assert record["spoof"] == ""


def test_a_living_face_is_the_same_whether_others_are_spoofs():
  alive = 0
  for identity in range(12):
    plain, other = render(identity), render(identity, print=0.3, screen=0.2)
    np.testing.assert_array_equal(plain.intensity, other.intensity)
    assert (plain.jpeg == other.jpeg) == (other.scene.spoof is None)
    alive += other.scene.spoof is None
  assert 0 < alive < 12


def test_kinds_come_at_their_rates():
  rng = np.random.default_rng(0)
  drawn = [spoof.draw(rng, knobs.SPOOFS) for _ in range(2_000)]
  kinds = [found.kind if found else "" for found in drawn]
  for kind, name in CHANCES.items():
    rate = getattr(knobs.SPOOFS, name)
    assert kinds.count(kind) / 2_000 == pytest.approx(rate, abs=4 * np.sqrt(rate / 2_000))


@pytest.mark.parametrize("kind", spoof.KINDS)
def test_a_spoof_is_told_is_seen_and_is_the_same_twice(kind):
  chances = {CHANCES[kind]: 1.0}
  for identity in range(4):
    face, plain = render(identity, **chances), render(identity)
    record = builders.example("test", identity, 0, face, labels.EXPRESSION_MTL)
    assert record["spoof"] == kind
    assert face.jpeg == render(identity, **chances).jpeg
    assert face.jpeg != plain.jpeg
    # Paper that bends takes the face along, by its bend at most.
    moved = np.abs(face.picture.landmarks - plain.picture.landmarks).max(0)
    assert moved[0] <= abs(face.scene.spoof.bend) + 1e-3
    assert moved[1] == 0
    # What paper or screen leaves out is not seen.
    assert not face.picture.landmark_seen[~face.picture.landmark_open].any()


def test_landmarks_stay_on_what_they_mark_when_paper_bends():
  points = np.array([[30.0, 40], [75, 80], [56, 20]])
  dots = np.zeros((112, 112, 3), np.float32)
  for x, y in points.astype(int):
    dots[y - 1 : y + 2, x - 1 : x + 2] = 1
  for bend in (-2.5, 2.5):
    where = points + 0.5
    drawn = spoof.Spoof(
      "print", np.full(4, -20.0), 0.0, bend, 0.0, 2.5, 0.0, 0.0, np.zeros(3), False, 0
    )
    shown = spoof.show(drawn, dots, np.tile(where, (23, 1))[:68], np.zeros((28, 28), np.uint8))
    for moved in shown.landmarks[:3]:
      rows, columns = np.nonzero(shown.light[..., 1] > 0.5 * shown.light[..., 1].max())
      apart = np.hypot(columns + 0.5 - moved[0], rows + 0.5 - moved[1])
      near = apart < 4
      assert near.any()
      assert abs((columns[near] + 0.5).mean() - moved[0]) < 0.6


def test_a_screen_is_bluish_has_a_dark_bezel_and_fringes():
  shown = flat("screen").light
  middle = shown[20:90, 30:80]
  assert middle[..., 2].mean() > 1.2 * middle[..., 0].mean()
  assert shown[56, 7].max() < 0.1 * middle.mean()
  assert middle.std((0, 1)).max() < 1e-3
  fringed = flat("screen", grain=0.2).light[20:90, 30:80]
  assert fringed.std((0, 1)).min() > 0.01


def test_print_is_paler_has_a_white_edge_and_dots():
  shown = flat("print").light
  assert shown[56, 5].min() > 0.6  # the white edge
  dots = flat("print", grain=0.12, pitch=2.4).light[20:90, 30:80]
  assert dots.std((0, 1)).min() > 0.01
  assert shown[20:90, 30:80].std((0, 1)).max() < 1e-3
  colourful = render(2)
  washed = [
    spoof.show(
      dataclasses.replace(render(2, print=1.0).scene.spoof, wash=wash, grain=0.0, bend=0.0),
      np.broadcast_to(np.array([0.4, 0.1, 0.05], np.float32), (112, 112, 3)),
      colourful.picture.landmarks,
      colourful.picture.face,
    ).light[40:70, 40:70]
    for wash in (0.0, 0.9)
  ]
  spread = [np.ptp(light.mean((0, 1))) / light.mean() for light in washed]
  assert spread[1] < 0.7 * spread[0]


def test_a_cut_out_shows_another_background_beyond_a_white_rim():
  points = render(0).picture.landmarks
  one, other = (flat("cut-out", seed=seed).light for seed in (3, 4))
  same = np.abs(one - other).max(-1) < 1e-6
  inside = points[27:36].astype(int)
  assert same[inside[:, 1], inside[:, 0]].all()
  assert not same[2:8, 2:8].any()
  assert one[same].max() > 2 * one[tuple(inside[0][::-1])].max()  # the rim


def test_holes_show_living_eyes():
  lively = np.zeros((112, 112, 3), np.float32)
  lively[..., 0] = 0.5  # redder than print can be
  points = render(0).picture.landmarks
  base = spoof.Spoof(
    "cut-out", np.full(4, -20.0), 0.0, 0.0, 0.0, 2.5, 0.0, 1.0, np.zeros(3), True, 3
  )
  shown = spoof.show(base, lively, points, np.zeros((28, 28), np.uint8)).light
  eye, nose = points[36:42].mean(0).astype(int), points[30].astype(int)
  share = lambda place: shown[place[1], place[0], 1] / shown[place[1], place[0], 0]
  assert share(eye) < 0.05
  assert share(nose) > 0.1


def test_an_edge_across_the_mouth_hides_its_units():
  face = render(0, print=1.0)
  low = dataclasses.replace(
    face.scene.spoof, margins=np.array([-9.0, -9, -9, 45]), bend=0.0, tilt=0.0
  )
  person = renderer.draw_person(VERSION, 0, "test", 0, knobs.Person())
  background = np.zeros((112, 112, 3), np.float32)
  scene = dataclasses.replace(face.scene, spoof=low, background=background)
  cut = dataclasses.replace(face, scene=scene, picture=renderer.render(person, scene))
  mouth = [labels.AU_MTL.index(f"AU{unit}") for unit in (10, 12, 15, 23, 24, 25, 26)]
  brows = [labels.AU_MTL.index(f"AU{unit}") for unit in (1, 2, 4)]
  assert not builders.visible(cut)[mouth].any()
  assert builders.visible(cut)[brows].all()
  assert (cut.picture.face[18:] == 0).all()
