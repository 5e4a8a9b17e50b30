"""Clips: windows of frames that follow each other, and frames stitched together from windows again.

A window is a list of rows of a split: those of the frames f, f + step, f + 2 step, ... of one
person in one video. Where there is no such frame there is a gap, -1, and so there is behind the
last one. Time is the frame number, never the order of the rows.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

SHUFFLES = ("none", "clip", "split")
_LONGEST = 4096  # frames of a window
_TURNS = 16  # rows of one frame


@dataclasses.dataclass(frozen=True)
class Clips:
  """`config.data.clips`: how a split is cut into windows; false where it is not.

  Attributes:
    length: frames of a window; 0: images, one by one.
    stride: frames from the start of a window to that of the next; 0: half of `length`.
    step: frame numbers from one frame of a window to the next.
    shuffle: a control. Frames stand at times that are not theirs, "clip": at those of the same
      person in the same video; "split": of anybody, so that the frames beside one say nothing of
      it. They are dealt out once, with their labels, the same way in every run.

  Raises:
    ValueError: a field outside its range.
  """

  length: int = 0
  stride: int = 0
  step: int = 1
  shuffle: str = "none"

  def __post_init__(self) -> None:
    limits = {"length": (0, _LONGEST), "stride": (0, _LONGEST), "step": (1, 10**6)}
    for name, (low, high) in limits.items():
      value = getattr(self, name)
      if type(value) is not int or not low <= value <= high:
        raise ValueError(f"config.data.clips.{name}={value!r}: use {low} to {high}")
    if self.stride > self.length:
      raise ValueError(
        f"config.data.clips.stride={self.stride} leaves out frames between windows of"
        f" config.data.clips.length={self.length}: use at most that"
      )
    if self.shuffle not in SHUFFLES:
      raise ValueError(
        f"config.data.clips.shuffle={self.shuffle!r}: use one of {', '.join(SHUFFLES)}"
      )

  @classmethod
  def of(cls, config: Mapping[str, Any]) -> "Clips":
    """Reads a whole config; the configs of earlier runs have no such section.

    Raises:
      ValueError: the section has a field that there is not, or one outside its range.
    """
    section = config["data"].get("clips") or {}
    known = [field.name for field in dataclasses.fields(cls)]
    if unknown := sorted(set(section) - set(known)):
      raise ValueError(f"config.data.clips takes no {unknown}; it takes {', '.join(known)}")
    return cls(**section)

  def __bool__(self) -> bool:
    return self.length > 0

  def windows(self, video: np.ndarray, person: np.ndarray, frame: np.ndarray) -> np.ndarray:
    """[windows, length] rows of a split, see `windows`, dealt out as `shuffle` says."""
    stride = self.stride or max(self.length // 2, 1)
    rows = windows(video, person, frame, length=self.length, stride=stride, step=self.step)
    if self.shuffle == "none":
      return rows
    dealt = _dealt(_numbers(video, person) * (self.shuffle == "clip"))
    return np.where(rows < 0, -1, dealt[rows])


def windows(
  video: np.ndarray,
  person: np.ndarray,
  frame: np.ndarray,
  *,
  length: int,
  stride: int,
  step: int = 1,
) -> np.ndarray:
  """Cuts a split into windows; every row is in at least one of them.

  With a `step` above 1 the frames that a window passes over are in windows of their own. Where a
  frame has several rows, so have the windows around it: in the first the first row, in another the
  second, beside the same frames.

  Args:
    video: [rows] names, bytes or text; empty where there is none.
    person: [rows] names; what is of another person or another video is never in one window.
    frame: [rows] frame numbers, from 0 on.
    length: frames of a window.
    stride: frames from the start of a window to that of the next, 1 to `length`.
    step: frame numbers from one frame of a window to the next.

  Returns:
    [windows, length] int64: rows, -1 for gaps. Those of one person in one video stand together, in
    the order of the names; within a person and video they are in the order of time. Second rows
    of a frame come last. No window is empty.

  Raises:
    ValueError: a row of no video and no person, or without a frame number, or too many of a frame.
  """
  _check(video, person, frame)
  if not len(frame):
    return np.zeros((0, length), np.int64)
  clip = _numbers(video, person)
  first = np.full(clip.max() + 1, np.iinfo(np.int64).max)
  np.minimum.at(first, clip, frame)
  since = frame - first[clip]
  # The frames that windows may hold one after the other are a track; there they are 0, 1, 2, ...
  track, place = _numbers(clip, since % step), since // step
  turn, turns = _turns(track, place)
  if turns.max() > _TURNS:
    raise ValueError(
      f"frame {frame[turns.argmax()]} of one person in one video has {turns.max()} rows, at most"
      f" {_TURNS} can be: clips need frame numbers that tell frames apart"
    )
  parts = []
  for number in range(turns.max()):
    rows = np.flatnonzero(turn == np.minimum(number, turns - 1))
    cut = _cut(rows, track[rows], place[rows], length, stride)
    parts.append(cut[(turn[cut] == number).any(1, where=cut >= 0)])
  return np.concatenate(parts)


def _check(video: np.ndarray, person: np.ndarray, frame: np.ndarray) -> None:
  """Raises ValueError unless it is known of every row which frame of whom it is."""
  nobody = (np.strings.str_len(video) == 0) & (np.strings.str_len(person) == 0)
  astray = np.flatnonzero(nobody | (frame < 0))
  if len(astray):
    raise ValueError(
      f"clips need a video or a person, and a frame number, of every row: {len(astray)} of"
      f" {len(frame)} rows have none, such as row {astray[0]}"
    )


def _numbers(*columns: np.ndarray) -> np.ndarray:
  """[rows] number of what the columns say together, 0, 1, 2, ... in their order."""
  numbers = np.zeros(len(columns[0]), np.int64)
  for column in columns:
    values = np.unique(column, return_inverse=True)[1]
    numbers = np.unique(numbers * (values.max() + 1) + values, return_inverse=True)[1]
  return numbers


def _turns(track: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Of each row: how many rows of its frame stand before it, and how many there are in all."""
  order = np.lexsort((place, track))
  new = np.ones(len(order), bool)
  new[1:] = (np.diff(track[order]) != 0) | (np.diff(place[order]) != 0)
  group, starts = np.cumsum(new) - 1, np.flatnonzero(new)
  turn, turns = np.empty_like(order), np.empty_like(order)
  turn[order] = np.arange(len(order)) - starts[group]
  turns[order] = np.bincount(group)[group]
  return turn, turns


def _cut(
  rows: np.ndarray, track: np.ndarray, place: np.ndarray, length: int, stride: int
) -> np.ndarray:
  """The windows of rows of which no two have the same track and place."""
  end = np.zeros(track.max() + 1, np.int64)
  np.maximum.at(end, track, place + 1)
  last = np.maximum(-((length - end) // stride), 0)[track]  # number of a track's last window
  numbers, found = [], []
  for before in range(-(-length // stride)):  # a row is in so many windows at most
    number = place // stride - before
    inside = (number >= 0) & (number <= last) & (place - number * stride < length)
    found.append(np.flatnonzero(inside))
    numbers.append(number[inside])
  found, number = np.concatenate(found), np.concatenate(numbers)
  order = np.lexsort((number, track[found]))
  found, number = found[order], number[order]
  new = np.ones(len(found), np.int64)
  new[1:] = (np.diff(track[found]) != 0) | (np.diff(number) != 0)
  cut = np.full((new.sum(), length), -1, np.int64)
  cut[np.cumsum(new) - 1, place[found] - number * stride] = rows[found]
  return cut


def _dealt(group: np.ndarray) -> np.ndarray:
  """[rows] which row comes to the place of each: one of its group, each of them once."""
  draw = np.random.default_rng(0).random(len(group))
  dealt = np.empty(len(group), np.int64)
  dealt[np.argsort(group, kind="stable")] = np.lexsort((draw, group))
  return dealt


def scored(rows: np.ndarray) -> np.ndarray:
  """Which frames of overlapping windows count, so that each row counts once.

  Args:
    rows: [windows, length] of a split, -1 for gaps.

  Returns:
    [windows, length] bool: of each row the place that is nearest to the middle of its window; of
    equal ones the first.
  """
  length = rows.shape[1]
  off = np.abs(2 * np.arange(length) - (length - 1))
  real = np.flatnonzero(rows >= 0)
  row = rows.ravel()[real]
  order = np.lexsort((real, off[real % length], row))
  first = np.ones(len(order), bool)
  first[1:] = np.diff(row[order]) != 0
  out = np.zeros(rows.size, bool)
  out[real[order[first]]] = True
  return out.reshape(rows.shape)


def stitch(outputs: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
  """Frames from overlapping windows: the mean of what these say of each.

  Args:
    outputs: [windows, length, ...] numbers.
    rows: [windows, length] of a split, -1 for gaps.
    count: rows of the split.

  Returns:
    [count, ...] float32, NaN for rows that no window has.
  """
  real = rows >= 0
  total = np.zeros((count, *outputs.shape[2:]))
  np.add.at(total, rows[real], outputs[real])
  times = np.bincount(rows[real], minlength=count).reshape(-1, *[1] * (outputs.ndim - 2))
  return (total / np.where(times, times, np.nan)).astype(np.float32)
