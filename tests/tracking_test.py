"""Tracks keep their person: faces that move, cross, come, go, and are not seen for a while."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affjax import tracking


def box(x, y, side):
  return np.array([x - side / 2, y - side / 2, x + side / 2, y + side / 2])


def follow(paths, frames, hidden=lambda person, frame: False, jitter=0.0, seed=0, every=1):
  """Person -> numbers that their boxes got; each is at path(frame) = (x, y, side)."""
  rng, tracker = np.random.default_rng(seed), tracking.Tracker(patience=10)
  found = {person: [] for person in range(len(paths))}
  for frame in range(0, frames, every):
    there = [p for p in range(len(paths)) if paths[p](frame) and not hidden(p, frame)]
    rng.shuffle(there)  # detectors give no order
    boxes = [box(*paths[p](frame)) + rng.normal(0, jitter, 4) for p in there]
    numbers = tracker.update(frame, np.array(boxes).reshape(-1, 4))
    assert len(set(numbers.tolist())) == len(numbers)
    for person, number in zip(there, numbers, strict=True):
      found[person].append(int(number))
  return found


def test_overlap_is_that_of_counted_pixels():
  rng = np.random.default_rng(0)
  corners = np.sort(rng.integers(0, 12, (8, 2, 2)), axis=1)
  boxes = corners.reshape(8, 4).astype(float)
  grid = np.zeros((8, 12, 12), bool)
  for mask, (left, top, right, bottom) in zip(grid, boxes.astype(int), strict=True):
    mask[top:bottom, left:right] = True
  both = (grid[:, None] & grid[None]).sum((2, 3))
  either = (grid[:, None] | grid[None]).sum((2, 3))
  expected = np.where(either > 0, both / np.maximum(either, 1), 0)
  np.testing.assert_allclose(tracking.overlaps(boxes, boxes), expected)


@pytest.mark.parametrize("seed", range(5))
def test_two_who_cross_keep_their_tracks(seed):
  paths = [lambda f: (60 + 6 * f, 200, 90), lambda f: (580 - 5 * f, 215, 80)]
  found = follow(paths, 90, jitter=1.5, seed=seed)
  assert [set(numbers) for numbers in found.values()] in ([{1}, {2}], [{2}, {1}])


@pytest.mark.parametrize("seed", range(5))
def test_two_who_cross_keep_their_tracks_though_one_hides_the_other(seed):
  paths = [lambda f: (60 + 6 * f, 200, 90), lambda f: (580 - 5 * f, 205, 80)]
  behind = lambda person, f: person == 1 and abs((60 + 6 * f) - (580 - 5 * f)) < 45
  found = follow(paths, 90, behind, jitter=1.0, seed=seed)
  assert [len(set(numbers)) for numbers in found.values()] == [1, 1]
  assert set(found[0]) != set(found[1])


def test_one_who_leaves_takes_the_number_along():
  paths = [lambda f: (100, 100, 60) if f < 20 else None, lambda f: (300, 100, 60)]
  late = lambda f: (100, 100, 60) if f >= 40 else None  # another, where the first one was
  found = follow([*paths, late], 60)
  assert len(set(found[0])) == len(set(found[1])) == len(set(found[2])) == 1
  assert len({numbers[0] for numbers in found.values()}) == 3


def test_a_short_gap_is_bridged_and_a_long_one_is_not():
  path = [lambda f: (100 + 4 * f, 100, 60)]
  for gap, tracks in ((9, 1), (10, 2)):
    found = follow(path, 60, lambda _, f, gap=gap: 20 <= f < 20 + gap)
    assert len(set(found[0])) == tracks, gap


def test_small_fast_faces_whose_boxes_do_not_overlap_are_followed():
  found = follow([lambda f: (40 + 26 * f, 100, 40)], 20)
  assert set(found[0]) == {1}


def test_frames_may_be_left_out():
  paths = [lambda f: (60 + 6 * f, 200, 90), lambda f: (580 - 5 * f, 215, 80)]
  found = follow(paths, 90, jitter=1.5, every=4)
  assert [len(set(numbers)) for numbers in found.values()] == [1, 1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.tuples(*[st.floats(-1e6, 1e6)] * 4), max_size=6), max_size=6))
def test_whatever_the_boxes_each_face_has_one_number_and_numbers_grow(frames):
  tracker, most = tracking.Tracker(patience=1), 0
  for frame, boxes in enumerate(frames):
    numbers = tracker.update(frame, np.array(boxes).reshape(-1, 4))
    assert len(set(numbers.tolist())) == len(boxes)
    assert all(0 < number <= most + len(boxes) for number in numbers)
    most = max([most, *numbers.tolist()])
