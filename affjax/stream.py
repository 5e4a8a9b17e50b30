"""From photographs and videos to faces, followed and cut out: a chain of generators.

Each takes what the one before yields and holds no more than a few pictures, so that all of them can
run at the same time, in constant memory: see `affjax.stages.ahead`.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affjax import faces, media, stages, tracking

PIXELS = 8 * 640 * 480  # of the pictures that are looked at together, at most, if not one alone


@dataclasses.dataclass
class Row:
  """A face in a picture, or a picture without one.

  Attributes:
    file: that the picture is from.
    frame: see `media.Shot`.
    time: likewise.
    track: number of the person; 0: no face.
    score: the detector's probability; NaN: not looked at.
    box: [4] pixels; NaN: there was no looking.
    crop: [size, size, 3] uint8 RGB until it is predicted.
    values: task -> [size] float64, see `inference.Predictor.probabilities`.
    smooth: the same, smoothed.
    features: [width].
    note: why there are none.
  """

  file: Path
  frame: int
  time: float
  track: int = 0
  score: float = np.nan
  box: np.ndarray = dataclasses.field(default_factory=lambda: np.full(4, np.nan))
  crop: np.ndarray | None = None
  values: dict[str, np.ndarray] | None = None
  smooth: dict[str, np.ndarray] | None = None
  features: np.ndarray | None = None
  note: str = ""

  @property
  def key(self) -> tuple[Path, int]:
    """Whose row it is."""
    return self.file, self.track


# From files to faces.


def shots(
  files: Sequence[Path], aligned: bool, every: int, clock: stages.Clock
) -> Iterator[media.Shot]:
  """The pictures of some files, one after the other: see `media.shots`."""
  for file in files:
    yield from clock.iterate("decode", media.shots(file, aligned=aligned, every=every))


def batches(pictures: Iterable[media.Shot]) -> Generator[list[media.Shot], None, None]:
  """Pictures of one size that follow each other, not too many: photographs, or of one video."""
  size = lambda shot: None if shot.image is None else shot.image.shape
  for (shape, _), same in itertools.groupby(pictures, lambda shot: (size(shot), _video(shot))):
    count = max(PIXELS // (shape[0] * shape[1]), 1) if shape else 1
    while batch := list(itertools.islice(same, count)):
      yield batch


def _video(shot: media.Shot) -> Path | None:
  return shot.file if shot.frame else None


Found = tuple[media.Shot, faces.Faces | None]
Look = Callable[[Sequence[media.Shot]], list[Found]]


def find(
  pictures: Iterable[Sequence[media.Shot]], detector: Any, every: int, clock: stages.Clock
) -> Generator[list[Found], None, None]:
  """Pictures with their faces; None: it cannot be decoded, or was not looked at.

  Args:
    pictures: of `batches`.
    detector: see `faces.Detector`.
    every: of how many frames of a video one is looked at; where two of these do not show equally
      many faces, those between are looked at, too.
    clock: takes the time.
  """

  def look(shots: Sequence[media.Shot]) -> list[Found]:
    images = [shot.image for shot in shots if shot.image is not None]
    with clock("detect", len(images)):
      found = iter(detector(images))
    return [(shot, None if shot.image is None else next(found)) for shot in shots]

  for video, its in itertools.groupby(pictures, lambda batch: _video(batch[0])):
    # Of photographs none is between others.
    yield from _in_turns(its, look, every if video else 1)


def _in_turns(
  pictures: Iterable[Sequence[media.Shot]], look: Look, every: int
) -> Iterator[list[Found]]:
  between, last, count = [], -1, 0
  for batch in pictures:
    whole = np.array([shot.image is not None for shot in batch])
    turns = whole & ((count + np.cumsum(whole) - 1) % every == 0)
    count += whole.sum()
    looked = iter(look([shot for shot, turn in zip(batch, turns, strict=True) if turn]))
    found: list[Found] = []
    for shot, turn in zip(batch, turns, strict=True):
      if not turn:
        between.append(shot)
        continue
      shot, its = next(looked)
      found += look(between) if len(its) != last else [(other, None) for other in between]
      found.append((shot, its))
      between, last = [], len(its)
    yield found
  yield look(between)


@dataclasses.dataclass(frozen=True)
class _Seen:
  """The faces of a frame, and the tracks that they are of."""

  frame: int
  tracks: np.ndarray
  found: faces.Faces

  def towards(self, later: "_Seen", frame: int) -> "_Seen":
    """The faces of a frame between two that were looked at: those in both, on their way."""
    tracks, mine, its = np.intersect1d(self.tracks, later.tracks, return_indices=True)
    share = (frame - self.frame) / (later.frame - self.frame)
    way = lambda x, y: ((1 - share) * x[mine] + share * y[its]).astype(np.float32)
    boxes = way(self.found.boxes, later.found.boxes)
    points = way(self.found.points, later.found.points)
    scores = np.full(len(tracks), np.nan, np.float32)
    return _Seen(frame, tracks, faces.Faces(boxes, points, scores))


_NOBODY = _Seen(
  0, np.zeros(0, np.int64), faces.Faces(np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0))
)


def follow(
  found: Iterable[Sequence[Found]], most: int | None, patience: int, clock: stages.Clock
) -> Iterator[tuple[media.Shot, _Seen]]:
  """Pictures with their faces and who they are; frames between wait for the next that is seen."""
  for _, shots in itertools.groupby(itertools.chain.from_iterable(found), lambda x: x[0].file):
    tracker, last, between = tracking.Tracker(patience), _NOBODY, []
    for shot, its in shots:
      if its is None:
        between.append(shot)
        continue
      with clock("track", 1):
        its = its[:most]
        seen = _Seen(shot.frame, tracker.update(shot.frame, its.boxes), its)
      yield from ((s, last.towards(seen, s.frame)) for s in between)
      yield shot, seen
      last, between = seen, []
    yield from ((s, _NOBODY) for s in between)  # what cannot be decoded


def cut_out(
  followed: Iterable[tuple[media.Shot, _Seen]], crop: faces.Crop, clock: stages.Clock
) -> Generator[list[Row], None, None]:
  """A row for each face of a picture, cut out, or one that says why there is none."""
  for shot, seen in followed:
    place = shot.file, shot.frame, shot.time
    if shot.image is None or not len(seen.found):
      yield [Row(*place, note=shot.note or media.NOBODY)]
      continue
    rows = []
    for track, box, points, score in zip(
      seen.tracks.tolist(), seen.found.boxes, seen.found.points, seen.found.scores, strict=True
    ):
      row = Row(*place, track, score, box)
      with clock("align", 1):
        try:
          row.crop = crop.align(shot.image, points)
        except ValueError as e:
          row.note = f"cannot be aligned: {e}"
      rows.append(row)
    yield rows


def as_they_are(pictures: Iterable[Sequence[media.Shot]]) -> Generator[list[Row], None, None]:
  """The rows of pictures that are faces already."""
  for shot in itertools.chain.from_iterable(pictures):
    place = shot.file, shot.frame, shot.time
    if shot.image is None:
      yield [Row(*place, note=shot.note)]
    else:
      yield [Row(*place, track=1, crop=shot.image)]


# From faces to outputs.


def in_batches(
  rows: Iterable[Row], function: Callable[[list[Row]], None], size: int
) -> Generator[Row, None, None]:
  """Rows after a function has been given those with a face, so many at a time but for the last."""
  waiting, faces_ = [], []
  for row in itertools.chain(rows, [None]):
    if row is not None:
      waiting.append(row)
      faces_ += [] if row.crop is None else [row]
    if row is None or len(faces_) == size or len(waiting) == 16 * size:
      if faces_:
        function(faces_)
      yield from waiting
      waiting, faces_ = [], []


class _Track:
  """The rows of one person, given to a function piece by piece, each piece with rows beside it."""

  def __init__(self, function: Callable[[list[Row], slice], None], core: int, beside: int) -> None:
    self._function, self._core, self._beside = function, core, beside
    self._rows: list[Row] = []
    self._done = 0  # of them
    self.frame = 0  # the last

  def add(self, row: Row) -> None:
    """Takes the next row."""
    self._rows.append(row)
    self.frame = row.frame
    if len(self._rows) == self._done + self._core + self._beside:
      self._run(self._done + self._core)

  def close(self) -> None:
    """No row will come."""
    if len(self._rows) > self._done:
      self._run(len(self._rows))

  def _run(self, end: int) -> None:
    self._function(self._rows, slice(self._done, end))
    start = max(end - self._beside, 0)
    self._rows, self._done = self._rows[start:], end - start


def over_time(
  rows: Iterable[Row],
  function: Callable[[list[Row], slice], None],
  *,
  taken: Callable[[Row], bool],
  core: int,
  beside: int,
  patience: int,
) -> Generator[Row, None, None]:
  """Rows in their order, after a function has been given those of each person, piece by piece.

  Args:
    rows: in the order of frames.
    function: of rows of one person and a slice of these, the piece; those around are there to be
      looked at. Together the pieces are all rows.
    taken: whether a row is given to it.
    core: rows of a piece, but for the last.
    beside: rows before and behind it that are there, where there are so many.
    patience: frames for which a person may be unseen.
  """
  waiting, tracks = collections.deque(), {}
  pending: set[int] = set()

  def take(some: list[Row], piece: slice) -> None:
    function(some, piece)
    pending.difference_update(map(id, some[piece]))

  for row in rows:
    for key, track in list(tracks.items()):
      if key[0] != row.file or row.frame - track.frame > patience:
        tracks.pop(key).close()
    waiting.append(row)
    if taken(row):
      pending.add(id(row))
      if row.key not in tracks:
        tracks[row.key] = _Track(take, core, beside)
      tracks[row.key].add(row)
    while waiting and id(waiting[0]) not in pending:
      yield waiting.popleft()
  for track in tracks.values():
    track.close()
  yield from waiting
