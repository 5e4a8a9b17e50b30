"""Faces in photographs and videos -> a table of what a trained run says of them.

  python -m affjax.predict --checkpoint=runs/x --input=photo.jpg
  python -m affjax.predict --checkpoint=runs/x --input=photographs/ --output=faces.csv
  python -m affjax.predict --checkpoint=runs/x --input=film.mp4 --output=film.parquet
    --smooth=gaussian:5 --overlay=film_faces.mp4 --features=film.npz

Faces are found, followed through a video, cut out as the run's training images are, and predicted;
all of it at the same time, in constant memory and constant time per frame. A row is a face:

  file, frame, time   frame from 1, seconds since the first; empty: a photograph
  track               number of the person in a video, or of the face in a photograph
  face                the detector's probability; empty where the box is interpolated
  left ... bottom     box in pixels of the picture as it is shown, turned as its file says
  valence, arousal, expression, p_EXPRESSION, AU1, AU1_on, ...   of the tasks that the run has
  raw_...             these before --smooth
  note                why there is nothing: "no face", "cannot be decoded: ..."

Every photograph and every frame that is looked at has a row at least. A table is written beside its
place, as NAME.partial.csv, and renamed when it is complete.
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from affjax import (
  checkpoints,
  compiled,
  contract,
  faces,
  inference,
  media,
  overlay,
  postprocess,
  stages,
  stream,
  tables,
)
from affjax.data import clips

BATCH = 64  # faces that are predicted together
BLOCK = 64  # rows that are written together
GAP = 15  # frames for which a face may be unseen and stay the same person's
DETECT_EVERY = 3  # frames; points in between are as exact: see scripts/benchmark_video.py
CORE = 256  # rows at least that are taken at a time where those beside them matter

# The first columns of a table, and what they hold.
PLACE = {
  "file": "text", "frame": "whole", "time": "time", "track": "whole", "face": "real",
  "left": "real", "top": "real", "right": "real", "bottom": "real",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
  """What the command line asks for; see its help.

  Raises:
    ValueError: a number is out of range.
  """

  aligned: bool = False
  every: int = 1
  detect_every: int = DETECT_EVERY
  min_face: int = 40
  max_faces: int | None = None
  smooth: Mapping[str, Any] | None = None
  features: Path | None = None

  def __post_init__(self) -> None:
    for name in ("every", "detect_every", "min_face", "max_faces"):
      value = getattr(self, name)
      if value is not None and not 1 <= value <= 10**6:
        raise ValueError(f"--{name}={value}: use 1 to 1,000,000")

  def windows(self, predictor: Any) -> dict[str, Mapping[str, Any]]:
    """Task -> how its values are smoothed over time: as asked for, else as calibrated."""
    if self.smooth is not None:
      return dict.fromkeys(predictor.labels, self.smooth)
    own = predictor.postprocess
    return {task: of["smooth"] for task, of in own.items() if "smooth" in of}

  @property
  def patience(self) -> int:
    """Frames for which a face may be unseen and stay the same person's."""
    return max(GAP, 2 * self.every * self.detect_every)


def rows(
  files: Sequence[Path], predictor: Any, options: Options, clock: stages.Clock
) -> Iterator[stream.Row]:
  """A row for each face of some photographs and videos, all stages at the same time.

  Args:
    files: of `media.find`.
    predictor: see `inference.load`.
    options: what is asked for.
    clock: takes the times of the stages.

  Yields:
    Rows with `outputs`, and where they are asked for `smooth` and `features`.

  Raises:
    ValueError: the run is not one of aligned faces, or the detector is not installed.
  """
  cut_out = _cutter(predictor, options, clock)
  pictures = stream.batches(stream.shots(files, options.aligned, options.every, clock))
  of_pictures = stages.ahead(cut_out(stages.ahead(pictures)), 16)
  found = itertools.chain.from_iterable(of_pictures)
  found = stages.ahead(_valued(found, predictor, options, clock), BATCH)
  windows = options.windows(predictor)
  if not windows:
    return found
  beside = max(map(_reach, windows.values()))
  core = max(CORE, 2 * beside)
  smooth = functools.partial(_smooth, windows, clock)
  there = lambda row: row.values is not None
  return stream.over_time(
    found, smooth, taken=there, core=core, beside=beside, patience=options.patience
  )


def _cutter(
  predictor: Any, options: Options, clock: stages.Clock
) -> Callable[[Iterable[Any]], Generator[list[stream.Row], None, None]]:
  """What makes rows of pictures."""
  if options.aligned:
    return stream.as_they_are
  face = predictor.contract["face"]
  if face is None:
    raise ValueError(
      "the run was trained on whole pictures or on features, not on aligned faces: give --aligned,"
      " or another run"
    )
  crop = faces.Crop.from_json(face)
  detector = faces.Detector(min_face=options.min_face)

  def cut(pictures: Iterable[Any]) -> Generator[list[stream.Row], None, None]:
    found = stages.ahead(stream.find(pictures, detector, options.detect_every, clock))
    followed = stream.follow(found, options.max_faces, options.patience, clock)
    return stream.cut_out(followed, crop, clock)

  return cut


def _valued(
  found: Iterable[stream.Row], predictor: Any, options: Options, clock: stages.Clock
) -> Generator[stream.Row, None, None]:
  """Rows with what the model says: of faces one by one or, of a run over time, of clips."""

  known = set()  # calls that are compiled

  def one_by_one(some: list[stream.Row]) -> None:
    crops = [row.crop for row in some]
    buckets = {size for *_, size in inference.cut(len(some), inference.BUCKETS)}
    with clock("predict" if buckets <= known else "compile", len(some)):
      outputs = predictor.outputs(crops, features=bool(options.features))
    known.update(buckets)
    for row, vector in zip(some, outputs.pop("features", [None] * len(some)), strict=True):
      row.features, row.crop = vector, None
    _give(some, slice(None), predictor.probabilities(outputs))

  def clip(some: list[stream.Row], piece: slice) -> None:
    frames = [row.frame // options.every for row in some]
    with clock("predict" if len(some) in known else "compile", len(some[piece])):
      outputs = predictor.sequence([row.crop for row in some], frames)
    known.add(len(some))
    _give(some, piece, predictor.probabilities(outputs))

  if not contract.is_temporal(predictor.config):
    return stream.in_batches(found, one_by_one, BATCH)
  if options.features:
    raise ValueError("--features: a run over time has no features of single faces; leave it out")
  cut = clips.Clips.of(predictor.config)
  # Whole strides, so that windows are cut as they would be in one piece.
  stride = cut.step * (cut.stride or max(cut.length // 2, 1))
  beside = -(-cut.length * cut.step // stride) * stride
  core = -(-max(CORE, 4 * beside) // stride) * stride
  there = lambda row: row.crop is not None
  return stream.over_time(
    found, clip, taken=there, core=core, beside=beside, patience=options.patience
  )


def _give(some: list[stream.Row], piece: slice, values: Mapping[str, np.ndarray]) -> None:
  """Gives some of the rows their values; where these are no numbers, a note."""
  finite = np.all([np.isfinite(x).all(1) for x in values.values()], axis=0)
  for number in range(len(some))[piece]:
    if finite[number]:
      some[number].values = {task: x[number] for task, x in values.items()}
    else:
      some[number].note = "the model's outputs are no numbers"


def _reach(window: Mapping[str, Any]) -> int:
  """How many frames beside it the smoothed values of a frame depend on, at most."""
  return int(4 * window["width"] + 1) if window["kind"] == "gaussian" else int(window["width"])


def _smooth(
  windows: Mapping[str, Mapping[str, Any]],
  clock: stages.Clock,
  some: list[stream.Row],
  piece: slice,
) -> None:
  """Gives some of the rows of one person smoothed values; the others are looked at."""
  with clock("smooth", len(some[piece])):
    frames, there = np.array([row.frame for row in some]), np.ones(len(some), bool)
    values = {task: np.stack([row.values[task] for row in some]) for task in some[0].values}
    for task, window in windows.items():
      values[task] = postprocess.smooth(values[task], frames, there, **window)
  for number in range(len(some))[piece]:
    some[number].smooth = {task: x[number] for task, x in values.items()}


# From rows to files.


def kinds(predictor: Any, smoothed: bool) -> dict[str, str]:
  """Column -> what it holds, a key of `tables.KINDS`."""
  nothing = {task: np.zeros((1, len(names))) for task, names in predictor.labels.items()}
  of = {"U": "text", "i": "flag", "f": "real"}
  own = {name: of[x.dtype.kind] for name, x in predictor.decide(nothing).columns().items()}
  raw = {f"raw_{name}": kind for name, kind in own.items()} if smoothed else {}
  return PLACE | own | raw | {"note": "text"}


def columns(
  some: Sequence[stream.Row], predictor: Any, kinds: Mapping[str, str]
) -> dict[str, Sequence[Any]]:
  """Column -> values of rows, None where there are none."""
  boxes = np.array([row.box for row in some], np.float32).T
  found: dict[str, Sequence[Any]] = {
    "file": [str(row.file) for row in some],
    "frame": [row.frame or None for row in some],
    "time": [row.time for row in some],
    "track": [row.track or None for row in some],
    "face": np.array([row.score for row in some], np.float32),
    **dict(zip(("left", "top", "right", "bottom"), boxes, strict=True)),
    "note": [row.note or None for row in some],
  }
  there = [i for i, row in enumerate(some) if row.values is not None]
  for prefix in ("", "raw_"):
    if not there:
      break
    of = [some[i].values if prefix else some[i].smooth or some[i].values for i in there]
    values = {task: np.stack([own[task] for own in of]) for task in predictor.labels}
    for name, given in predictor.decide(values).columns().items():
      real = given.dtype.kind == "f"
      whole = np.full(len(some), np.nan if real else None, given.dtype if real else object)
      whole[there] = given
      found[prefix + name] = whole
  nothing = [None] * len(some)
  return {name: found.get(name, nothing) for name in kinds}


class _Counts:
  """How many pictures there were, and what became of them."""

  def __init__(self) -> None:
    self.pictures = self.faces = self.without = self.broken = 0
    self._last: Any = None

  def add(self, row: stream.Row) -> None:
    """Counts a row, and its picture if it is the first of it."""
    self.pictures += (row.file, row.frame) != self._last
    self._last = row.file, row.frame
    self.faces += bool(row.track)
    self.without += row.note == media.NOBODY
    self.broken += row.note.startswith(media.BROKEN)

  def __str__(self) -> str:
    rest = {"without a face": self.without, "that cannot be decoded": self.broken}
    said = "".join(f", {count:,} {what}" for what, count in rest.items() if count)
    return f"{self.faces:,} faces in {self.pictures:,} pictures{said}"


class Job:
  """One command: what it reads, and where it writes.

  Raises:
    ValueError: what cannot be is said before anything is read.
  """

  def __init__(self, arguments: argparse.Namespace) -> None:
    names = [field.name for field in dataclasses.fields(Options)]
    self.options = Options(**{name: getattr(arguments, name) for name in names})
    self.where = Path(arguments.input)
    self.files = media.find(self.where)
    self.table = arguments.output
    self.features = arguments.features
    self.copies = {}
    if arguments.overlay:
      self.copies = overlay.copies(self.files, self.where, arguments.overlay)
    table = None if self.table == tables.STDOUT else Path(self.table)
    outputs = {"output": table, "features": self.features, "overlay": arguments.overlay}
    self.outputs = {name: path for name, path in outputs.items() if path}
    for name, path in self.outputs.items():
      _check_place(name, path, arguments.overwrite)
    self.predictor = inference.load(
      arguments.checkpoint, arguments.which, settings=arguments.settings
    )
    self.clock, self.counts = stages.Clock(), _Counts()

  def run(self) -> None:
    """Reads, predicts and writes; then draws, where that is asked for; and says what all took."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
      spool = Path(folder) / "rows.csv"
      self._predict([self.table, *([str(spool)] if self.copies else [])])
      if self.copies:
        self._draw(spool)
    seconds = time.perf_counter() - start
    table = self.clock.table(devices(), seconds, self.counts.pictures)
    print(f"{table}\n{self.counts}", file=sys.stderr)
    if self.counts.broken == self.counts.pictures:
      raise ValueError(f"--input={self.where}: nothing can be decoded; the table says why")

  def _predict(self, names: Sequence[str]) -> None:
    known = kinds(self.predictor, bool(self.options.windows(self.predictor)))
    width = self.predictor.width if self.features else 0
    with contextlib.ExitStack() as stack:
      found = rows(self.files, self.predictor, self.options, self.clock)
      stack.callback(found.close)
      made = [stack.enter_context(tables.Table(name, known)) for name in names]
      vectors = self.features and stack.enter_context(tables.Vectors(self.features, "features"))
      bar = stack.enter_context(self._bar("predicting"))
      while some := list(itertools.islice(found, BLOCK)):
        with self.clock("write", len(some)):
          block = columns(some, self.predictor, known)
          for table in made:
            table.write(block)
          if vectors:
            vectors.write(_features(some, width))
        for row in some:
          self.counts.add(row)
        bar.update(self.counts.pictures - bar.n)

  def _draw(self, spool: Path) -> None:
    with spool.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
      options = {"aligned": self.options.aligned, "every": self.options.every}
      drawn = overlay.annotate(self.copies, csv.DictReader(file), self.clock, **options)
      with self._bar("drawing") as bar:
        for _ in drawn:
          bar.update()

  def _bar(self, what: str) -> tqdm:
    """A bar over pictures; it knows the time left where all files say how long they are."""
    lengths = list(map(media.length, self.files))
    total = sum(-(-length // self.options.every) for length in lengths) if all(lengths) else None
    return tqdm(total=total, desc=what, unit=" pictures", delay=1, smoothing=0.05)

  def kept(self) -> str:
    """What there is of a job that was stopped."""
    paths = [*self.outputs.values(), *map(tables.partial, self.outputs.values())]
    there = ", ".join(str(path) for path in paths if path.exists())
    return f"{self.counts}; what there is of it: {there or 'nothing'}"


def _check_place(name: str, path: Path, overwrite: bool) -> None:
  """Raises ValueError where a file cannot be written, or would replace one unasked."""
  folder = path.resolve().parent
  if not os.access(folder, os.W_OK | os.X_OK):
    raise ValueError(f"--{name}={path}: {folder} is no folder that can be written to")
  if name == "output" and path.suffix not in tables.SUFFIXES:
    kinds = " or ".join(tables.SUFFIXES)
    raise ValueError(f"--output={path}: use a name that ends in {kinds}, or - for stdout")
  if name != "overlay" and path.is_dir():
    raise ValueError(f"--{name}={path}: is a folder; name a file")
  if path.exists() and not overwrite:
    raise ValueError(f"--{name}={path}: is there already: name another, or give --overwrite")


def _features(some: Sequence[stream.Row], width: int) -> np.ndarray:
  """[rows, width]; NaN where there is no face."""
  nothing = np.full(width, np.nan, np.float32)
  return np.stack([nothing if row.features is None else row.features for row in some])


def devices() -> dict[str, str]:
  """Stage -> where it runs."""
  device = jax.devices()[0]
  model = device.platform if device.platform == "cpu" else f"{device.platform} {device.device_kind}"
  cpu = dict.fromkeys(("decode", "detect", "track", "align"), "cpu")
  return (
    cpu
    | dict.fromkeys(("compile", "predict"), model)
    | dict.fromkeys(("smooth", "write", "decode again", "draw", "overlay"), "cpu")
  )


# The command.


def _window(text: str) -> dict[str, Any]:
  """--smooth: KIND:WIDTH or KIND:WIDTH:causal."""
  kind, _, rest = text.partition(":")
  width, _, causal = rest.partition(":")
  try:
    if causal not in ("", "causal"):
      raise ValueError(f"{text!r}: use KIND:WIDTH or KIND:WIDTH:causal")
    number = float(width) if kind == "gaussian" else int(width)
    window = {"kind": kind, "width": number, "causal": bool(causal)}
    postprocess.check_window(window)
  except ValueError as e:
    raise argparse.ArgumentTypeError(f"{text}: {e}") from None
  return window


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    prog="python -m affjax.predict",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add(
    "--checkpoint",
    required=True,
    metavar="RUN",
    help="folder of a run, or of an export of one (python -m affjax.export)",
  )
  add(
    "--which",
    default="best",
    metavar="best|latest|STEP",
    help="of a run's checkpoints; default best, by the run's metric",
  )
  add(
    "--input",
    required=True,
    metavar="PATH",
    help="a photograph, a video, or a folder of either, looked through to its depth;"
    f" {' '.join(media.PHOTOGRAPHS)}; {' '.join(media.VIDEOS)}",
  )
  add(
    "--output",
    default=tables.STDOUT,
    metavar="FILE",
    help=f"a table, {' or '.join(tables.SUFFIXES)}; default -, which is CSV on stdout",
  )
  add(
    "--overlay",
    type=Path,
    metavar="PATH",
    help="copies with what is predicted drawn in: of a video an .mp4, else a folder",
  )
  add(
    "--features",
    type=Path,
    metavar="FILE.npz",
    help="array `features` [rows of the table, width]; NaN where there is no face",
  )
  add(
    "--aligned",
    action="store_true",
    help="the pictures are faces, aligned as the run's training images: nothing is detected",
  )
  add(
    "--smooth",
    type=_window,
    metavar="KIND:WIDTH",
    help=f"over time, for each person: {', '.join(postprocess.KINDS)} of so many frames (gaussian:"
    " its standard deviation), such as gaussian:5; with :causal nothing later is used; default: as"
    " --settings say, else not",
  )
  add(
    "--settings",
    metavar="FILE",
    help="of `python -m affjax.calibrate --save=FILE`: thresholds, biases, smoothing",
  )
  add(
    "--every",
    type=int,
    default=1,
    metavar="N",
    help="look at every N-th frame of a video only; there are no rows of the others; default 1",
  )
  add(
    "--detect_every",
    type=int,
    default=DETECT_EVERY,
    metavar="N",
    help="look for faces in every N-th of these, and take them to move evenly in between; where"
    f" people come or go every frame is looked at; default {DETECT_EVERY}",
  )
  add(
    "--min_face",
    type=int,
    default=40,
    metavar="PIXELS",
    help="side of the smallest face that is looked for, pictures larger than 640 pixels counted as"
    " if shrunk to that; smaller takes longer; default 40",
  )
  add("--max_faces", type=int, metavar="N", help="in a picture, the surest; default all")
  add("--overwrite", action="store_true", help="replace what is there of the outputs")
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  arguments = parse(argv)
  compiled.keep()
  checkpoints.quiet()
  job = None
  try:
    job = Job(arguments)
    job.run()
  except (ValueError, OSError) as e:
    kept = f" ({job.kept()})" if job and job.counts.pictures else ""
    sys.exit(f"error: {' '.join(str(e).split())}{kept}")
  except KeyboardInterrupt:
    sys.exit(f"interrupted: {job.kept() if job else 'nothing is written'}")


if __name__ == "__main__":
  main()
