"""Mirrored choices give the mirrored picture: left and right are nowhere mixed up.

The person is symmetric (the mesh at rest, plain skin and eyes, no hair), and so is the crop, which
the usual template is not quite. What remains differs by how quads were cut into triangles and by
the textures of the brows.
"""

import dataclasses

import numpy as np
import pytest

from tfds_builders.synthetic_faces import asset as assets
from tfds_builders.synthetic_faces import (
  glasses,
  knobs,
  label_model,
  landmarks,
  occluders,
  renderer,
)
from tfds_builders.synthetic_faces import pose as poses

UNITS, SIZE = label_model.UNITS, renderer.SIZE
SYMMETRIC = (poses.TEMPLATE + ([SIZE, 0] + poses.TEMPLATE * [-1, 1])[[1, 0, 2, 4, 3]]) / 2


@pytest.fixture(autouse=True)
def symmetric_crop(monkeypatch):
  monkeypatch.setattr(poses, "TEMPLATE", SYMMETRIC)


@pytest.fixture(scope="module")
def person():
  someone = renderer.draw_person("0.3.0", 0, "mirror", 0, knobs.Person())
  plain = np.empty_like(someone.skin)
  plain[:] = (0.45, 0.3, 0.22, 1)
  eye = (someone.eye + someone.eye[:, ::-1]) / 2
  vertices = assets.load().vertices
  return dataclasses.replace(someone, vertices=vertices, skin=plain, eye=eye, hair="")


def scene(side, units, **things):
  """Everything on one side of the face, or (-1) on the other."""
  intensity = np.zeros((len(UNITS), 2))
  for unit, both in units.items():
    intensity[UNITS.index(unit)] = both[::side]
  background = np.linspace(0.1, 0.5, SIZE, dtype=np.float32)[None, ::side, None]
  return renderer.Scene(
    intensity=intensity,
    framing=poses.Framing(
      head=np.array([side * 14.0, -4.0, side * 6.0]),
      focal=50.0,
      turn=side * 2.0,
      shift=np.array([side * 0.03, 0.01]),
    ),
    eyes=np.array([side * 9.0, 4.0]),
    light=np.array([side * 40.0, 30.0, 3.0, 0.3, 5500.0]),
    background=np.ascontiguousarray(np.broadcast_to(background, (SIZE, SIZE, 3))),
    **things,
  )


def both(person, units, things=lambda side: {}):
  """Rendered, and rendered the other way round and then flipped back: light, landmarks, seen."""
  one, other = (renderer.render(person, scene(side, units, **things(side))) for side in (1, -1))
  flipped = ([SIZE, 0] + other.landmarks * [-1, 1])[landmarks.MIRROR]
  return one, other, (other.light[:, ::-1], flipped)


@pytest.mark.parametrize(
  "units",
  [
    {},
    {2: (0.9, 0), 4: (0, 0.8), 12: (0.9, 0.1), 43: (0, 0.7)},
    {1: (0.8, 0), 6: (0.9, 0), 10: (0, 0.9), 14: (0.8, 0), 25: (0.7, 0.7), 26: (0.5, 0.5)},
    {9: (0.9, 0.2), 15: (0.9, 0), 20: (0, 0.9), 5: (0.8, 0)},
  ],
)
def test_mirrored_units_head_gaze_light_and_crop_give_the_mirrored_picture(person, units):
  one, other, (light, points) = both(person, units)
  np.testing.assert_allclose(points, one.landmarks, atol=0.15)
  apart = np.abs(light - one.light).max(-1)
  assert apart.mean() < 0.002
  assert np.quantile(apart, 0.99) < 0.025
  assert np.abs(other.face[:, ::-1].astype(int) - one.face).mean() < 0.2
  # And not because both look the same: unflipped they differ.
  assert np.abs(other.light - one.light).max(-1).mean() > 0.05
  assert abs(one.gap - other.gap) < 1e-3


@pytest.mark.parametrize("thing", ["hand", "glasses", "lock"])
def test_mirrored_occluders_give_the_mirrored_picture(person, thing):
  pair = glasses.Glasses(0.8, 0.55, 3.0, 0.04, 0.06, glasses.COLOURS[0], 0.8, 0.0, 45.0)
  things = {
    "hand": lambda side: {"hand": occluders.Hand("mouth", side, 25.0, 4.0, 0.5)},
    "glasses": lambda side: {"glasses": pair},
    "lock": lambda side: {"lock": occluders.Lock(side, 0.8, 0.6, 1.0, 7)},
  }[thing]
  one, other, (light, _) = both(person, {12: (0.9, 0.1)}, things)
  plain = renderer.render(person, scene(1, {12: (0.9, 0.1)}))
  changed = np.abs(plain.light - one.light).max(-1) > 0.03
  assert changed.mean() > 0.03
  apart = np.abs(light - one.light).max(-1)
  assert apart.mean() < 0.006
  assert apart[changed].mean() < 0.04
  seen = other.landmark_open[landmarks.MIRROR]
  assert (seen != one.landmark_open).sum() <= 2
