"""Who is who from frame to frame: boxes of faces -> tracks."""

import dataclasses

import numpy as np
from scipy import optimize

_OVERLAP = 0.2  # intersection over union from which two boxes may be of one face
_NEAR = 0.7  # or centres this near, in sides of the boxes: fast small faces do not overlap
_SIZES = 0.5  # of which the smaller side is at least this share of the larger
_INERTIA = 0.6  # of a velocity that is known, against one that was just seen
_FAR = 1e6  # cost of what must not be matched


@dataclasses.dataclass
class Track:
  """One face, followed.

  Attributes:
    number: of the track, from 1 on.
    frame: in which it was last seen.
    box: [4] float64 there.
    velocity: [4] of the box's sides, pixels a frame.
    seen: in how many frames.
  """

  number: int
  frame: int
  box: np.ndarray
  velocity: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(4))
  seen: int = 1

  def at(self, frame: int) -> np.ndarray:
    """[4] the box that is expected in a later frame: moved on, of the size that it was."""
    moved = self.velocity.reshape(2, 2).mean(0) * (frame - self.frame)
    return self.box + np.tile(moved, 2)

  def follow(self, frame: int, box: np.ndarray) -> None:
    """Takes the box for this face's in a later frame."""
    velocity = (box - self.box) / (frame - self.frame)
    known = _INERTIA if self.seen > 1 else 0.0
    self.velocity = known * self.velocity + (1 - known) * velocity
    self.frame, self.box, self.seen = frame, box, self.seen + 1


class Tracker:
  """Follows the faces of one video, frame by frame, in constant time and memory.

  Boxes of a frame go to the tracks whose expected boxes they overlap most, all together (Kuhn 1955,
  "The Hungarian method for the assignment problem"), as in SORT (Bewley et al. 2016,
  arXiv:1602.00763) with a constant velocity in place of its Kalman filter.

  Args:
    patience: frames for which a face may be unseen and keep its track.
  """

  def __init__(self, patience: int) -> None:
    self._patience = patience
    self._tracks: list[Track] = []
    self._count = 0

  def update(self, frame: int, boxes: np.ndarray) -> np.ndarray:
    """Numbers the faces of a frame.

    Args:
      frame: its number, above that of the frame before.
      boxes: [faces, 4] left, top, right, bottom, pixels.

    Returns:
      [faces] int64 numbers of their tracks, from 1 on in the order of appearance; no two are equal.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    self._tracks = [t for t in self._tracks if frame - t.frame <= self._patience]
    numbers = np.zeros(len(boxes), np.int64)
    expected = np.array([t.at(frame) for t in self._tracks]).reshape(-1, 4)
    for row, column in _pairs(expected, boxes):
      track = self._tracks[row]
      track.follow(frame, boxes[column])
      numbers[column] = track.number
    for column in np.flatnonzero(numbers == 0):
      self._count += 1
      numbers[column] = self._count
      self._tracks.append(Track(self._count, frame, boxes[column]))
    return numbers


def _pairs(expected: np.ndarray, boxes: np.ndarray) -> list[tuple[int, int]]:
  """Rows of both that are of one face: those of the largest sum of likeness."""
  if not len(expected) or not len(boxes):
    return []
  overlap = overlaps(expected, boxes)
  apart, sizes = _apart(expected, boxes)
  fits = (overlap >= _OVERLAP) | ((apart <= _NEAR) & (sizes >= _SIZES))
  cost = np.where(fits, apart - overlap, _FAR)
  rows, columns = optimize.linear_sum_assignment(cost)
  return [(i, j) for i, j in zip(rows.tolist(), columns.tolist(), strict=True) if fits[i, j]]


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Intersection over union of boxes [n, 4] and [m, 4]: [n, m] in [0, 1]; 0 of empty ones."""
  low = np.maximum(a[:, None, :2], b[None, :, :2])
  high = np.minimum(a[:, None, 2:], b[None, :, 2:])
  shared = np.maximum(high - low, 0).prod(-1)
  area = lambda x: np.maximum(x[:, 2:] - x[:, :2], 0).prod(-1)
  union = area(a)[:, None] + area(b)[None] - shared
  return np.where(union > 0, shared / np.where(union > 0, union, 1), 0.0)


def _apart(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """[n, m] how far apart centres are, in sides of the boxes; and the ratio of the sides, <= 1."""
  centre = lambda x: (x[:, :2] + x[:, 2:]) / 2
  side = lambda x: np.sqrt(np.maximum(x[:, 2:] - x[:, :2], 1e-6).prod(-1))
  sides = side(a)[:, None], side(b)[None]
  distance = np.linalg.norm(centre(a)[:, None] - centre(b)[None], axis=-1)
  return distance / np.sqrt(sides[0] * sides[1]), np.minimum(*sides) / np.maximum(*sides)
