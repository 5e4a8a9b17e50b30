"""Predictions drawn into the pictures that they are of: copies of photographs and videos."""

import contextlib
import itertools
from collections.abc import Generator, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from affjax import figures, media, stages, tables
from tfds_builders.aff_wild2 import videos

COLOURS = [tuple(bytes.fromhex(colour.removeprefix("#"))) for colour in figures.COLOURS]
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE, _GREY = (255, 255, 255), (150, 150, 150)
_TICKS = 90_000  # of a video's clock, a second
_CODECS = ("libx264", "libopenh264", "h264", "mpeg4")
# What MP4 holds of sound, so that it can be copied.
_SOUND = ("aac", "mp3", "ac3", "eac3", "opus", "alac")

# Column -> text, as it stands in a CSV.
Row = Mapping[str, str]


def draw(image: np.ndarray, rows: Sequence[Row]) -> np.ndarray:
  """A copy of a picture with what is predicted of each face beside its box.

  Args:
    image: [height, width, 3] uint8 RGB.
    rows: of the table that belong to it.

  Returns:
    [height, width, 3] uint8 RGB.
  """
  out = np.ascontiguousarray(image).copy()
  # 1 for pictures of 480 pixels, in which letters are 11 pixels high.
  scale = max(min(out.shape[:2]) / 480, 0.5)
  for row in rows:
    number = int(row["track"] or 1)
    colour = COLOURS[(number - 1) % len(COLOURS)]
    box = [0, 0, 0, 0]
    if row["left"]:
      box = [round(float(row[side])) for side in ("left", "top", "right", "bottom")]
      cv2.rectangle(out, tuple(box[:2]), tuple(box[2:]), colour, max(round(2 * scale), 1))
    _panel(out, box, _lines(row), _affect(row), colour, scale)
  return out


def _lines(row: Row) -> list[str]:
  """What is said of a face, in a few short lines."""
  lines = [row["note"]] if row["note"] else []
  if name := row.get("expression"):
    lines.append(f"#{row['track']} {name} {float(row[f'p_{name}']):.2f}")
  elif row["track"]:
    lines.append(f"#{row['track']}")
  if place := _affect(row):
    lines.append("V {:+.2f} A {:+.2f}".format(*place))
  units = [name[:-3] for name, value in row.items() if name.endswith("_on") and value == "1"]
  units = [unit.removeprefix("AU") for unit in units if not unit.startswith("raw_")]
  return lines + [f"AU {' '.join(units[i : i + 4])}" for i in range(0, len(units), 4)]


def _affect(row: Row) -> tuple[float, float] | None:
  """Valence and arousal, if they were predicted."""
  return (float(row["valence"]), float(row["arousal"])) if row.get("valence") else None


def _panel(
  out: np.ndarray,
  box: Sequence[int],
  lines: Sequence[str],
  affect: tuple[float, float] | None,
  colour: tuple[int, ...],
  scale: float,
) -> None:
  """Text, and the plane of valence and arousal below it, on dark ground beside a box."""
  size, step, pad = 0.5 * scale, round(18 * scale), round(5 * scale)
  side = round(56 * scale) if affect else 0
  wide = max([side, *(cv2.getTextSize(line, _FONT, size, 1)[0][0] for line in lines)]) + 2 * pad
  tall = step * len(lines) + side + 2 * pad
  height, width = out.shape[:2]
  x = box[2] + pad if box[2] + pad + wide <= width else box[0] - pad - wide
  x = x if x >= 0 else max(width - wide, 0)
  y = min(max(box[1], 0), max(height - tall, 0))
  ground = out[y : y + tall, x : x + wide]
  ground[:] = ground // 4
  for number, line in enumerate(lines, 1):
    # OpenCV's letters are ASCII.
    text = line.encode("ascii", "replace").decode()
    at = (x + pad, y + number * step - round(3 * scale))
    cv2.putText(out, text, at, _FONT, size, _WHITE, max(round(scale), 1), cv2.LINE_AA)
  if affect:
    corner = (x + pad, y + tall - pad - side)
    _plane(out, corner, side, affect, colour, scale)


def _plane(
  out: np.ndarray,
  corner: tuple[int, int],
  side: int,
  affect: tuple[float, float],
  colour: tuple[int, ...],
  scale: float,
) -> None:
  """Axes of valence, to the right, and arousal, upwards, from -1 to 1, and where a face is."""
  x, y = corner
  cv2.rectangle(out, corner, (x + side, y + side), _GREY, 1)
  cv2.line(out, (x, y + side // 2), (x + side, y + side // 2), _GREY, 1)
  cv2.line(out, (x + side // 2, y), (x + side // 2, y + side), _GREY, 1)
  letter = lambda text, at: cv2.putText(out, text, at, _FONT, 0.35 * scale, _GREY, 1, cv2.LINE_AA)
  letter("A", (x + side // 2 + 2, y + round(11 * scale)))
  letter("V", (x + side - round(10 * scale), y + side // 2 - 2))
  valence, arousal = np.clip(affect, -1, 1)
  at = round(x + (valence + 1) / 2 * side), round(y + (1 - arousal) / 2 * side)
  cv2.circle(out, at, max(round(5 * scale), 2), _WHITE, -1, cv2.LINE_AA)
  cv2.circle(out, at, max(round(4 * scale), 1), colour, -1, cv2.LINE_AA)


class Video:
  """A video that is written frame by frame: H.264 in MP4, with the sound of its source.

  At the end of its `with` block it is complete; before, it has another name: see
  `affjax.tables.partial`. Without any picture there is none.

  Args:
    path: of the file.
    source: video whose sound is copied, where MP4 can hold it.
    every: of how many frames of the source one is written.
  """

  def __init__(self, path: Path, source: Path, every: int = 1) -> None:
    self._path, self._source, self._every = path, source, every
    self._container: Any = None
    self._last = -1

  def __enter__(self) -> "Video":
    return self

  def __exit__(self, kind: object, error: object, trace: object) -> None:
    if self._container is None:
      return
    try:
      self._container.mux(self._stream.encode())
      self._sound.copy(self._last / _TICKS)
    finally:
      self._container.close()
      self._sound.close()
    if kind is None:
      tables.partial(self._path).replace(self._path)

  def write(self, image: np.ndarray, time: float) -> None:
    """Adds a picture.

    Args:
      image: [height, width, 3] uint8 RGB; brought to the size of the first one.
      time: seconds at which it is shown, above that of the picture before.
    """
    if self._container is None:
      self._open(image)
    size = self._stream.width, self._stream.height
    if image.shape[1::-1] != size:
      # Sides are even: a row or a column that is one too many is cut off.
      rows, columns = image.shape[0] - size[1], image.shape[1] - size[0]
      cut = image[: size[1], : size[0]]
      image = cut if {rows, columns} <= {0, 1} else cv2.resize(image, size)
    frame = videos.pyav().VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24")
    self._last = max(round(time * _TICKS), self._last + 1)
    frame.pts, frame.time_base = self._last, Fraction(1, _TICKS)
    self._container.mux(self._stream.encode(frame))
    self._sound.copy(time)

  def _open(self, image: np.ndarray) -> None:
    av = videos.pyav()
    codec = next(name for name in _CODECS if name in av.codecs_available)
    self._container = av.open(str(tables.partial(self._path)), "w", format="mp4")
    rate = Fraction(min(media.rate(self._source), 240) / self._every).limit_denominator(1001)
    self._stream = self._container.add_stream(codec, rate=rate)
    self._stream.width, self._stream.height = (max(s - s % 2, 2) for s in image.shape[1::-1])
    self._stream.pix_fmt = "yuv420p"
    self._stream.codec_context.time_base = Fraction(1, _TICKS)
    if codec == "libx264":
      self._stream.options = {"preset": "veryfast", "crf": "21"}
    self._sound = _Sound(self._source, self._container)


class _Sound:
  """The sound of a video, copied into another as it is: packets that begin with its pictures."""

  def __init__(self, source: Path, output: Any) -> None:
    self._files, self._next = contextlib.ExitStack(), None
    container = self._files.enter_context(videos.opened(source))
    stream = container.streams.best("audio")
    if stream is None or stream.codec_context is None or stream.codec.name not in _SOUND:
      return
    with contextlib.closing(videos.timed(source)) as decoded:
      start = next(decoded)[0]
    self._output = output
    self._to = output.add_stream_from_template(stream)
    self._late = round(start / stream.time_base)
    self._packets = container.demux(stream)
    self._next = next(self._packets, None)

  def copy(self, time: float) -> None:
    """Writes what is heard before a time, seconds from the first picture on."""
    while self._next is not None and self._next.dts is not None:
      packet = self._next
      if float((packet.dts - self._late) * packet.time_base) > time:
        return
      self._next = next(self._packets, None)
      if packet.dts >= self._late:
        packet.pts, packet.dts = packet.pts - self._late, packet.dts - self._late
        packet.stream = self._to
        self._output.mux(packet)

  def close(self) -> None:
    """Closes the source."""
    self._files.close()


def annotate(
  files: Mapping[Path, Path],
  rows: Iterator[Row],
  clock: stages.Clock,
  *,
  aligned: bool = False,
  every: int = 1,
) -> Iterator[int]:
  """Writes copies of photographs and videos with what a table says of them, in constant memory.

  Args:
    files: source -> copy, in the order of the table.
    rows: of the table.
    clock: takes the times of its stages.
    aligned: see `affjax.media.shots`.
    every: likewise.

  Yields:
    1 for each picture.
  """
  of_shots = itertools.groupby(rows, lambda row: (row["file"], row["frame"]))
  for source, copy in files.items():
    copy.parent.mkdir(parents=True, exist_ok=True)
    shots = clock.iterate("decode again", media.shots(source, aligned=aligned, every=every))
    drawn = stages.ahead(_drawn(shots, of_shots, clock))
    if media.is_video(source):
      yield from _video(copy, source, every, drawn, clock)
      continue
    for image, _ in drawn:
      with clock("overlay", 1):
        encoded = cv2.imencode(copy.suffix, image[..., ::-1])[1]
        copy.write_bytes(encoded.tobytes())
    yield 1


def _video(
  copy: Path,
  source: Path,
  every: int,
  drawn: Iterator[tuple[np.ndarray, float]],
  clock: stages.Clock,
) -> Iterator[int]:
  try:
    with Video(copy, source, every) as video:
      for image, time in drawn:
        with clock("overlay", 1):
          video.write(image, time)
        yield 1
  except videos.pyav().FFmpegError as e:
    raise ValueError(f"{copy} cannot be written ({e.strerror})") from e


def _drawn(
  shots: Iterator[media.Shot],
  of_shots: Iterator[tuple[Any, Iterator[Row]]],
  clock: stages.Clock,
) -> Generator[tuple[np.ndarray, float], None, None]:
  """Pictures and their times; one that cannot be decoded is the one before, with what is said."""
  before = None
  for shot in shots:
    own = list(next(of_shots)[1])
    image = before if shot.image is None else shot.image
    if image is not None:
      before = image
      with clock("draw", 1):
        drawn = draw(image, own)
      yield drawn, shot.time


def copies(files: Sequence[Path], where: Path, to: Path) -> dict[Path, Path]:
  """Source -> copy, of all files of an input.

  Args:
    files: of `affjax.media.find`.
    where: the input.
    to: of one video a file, else a folder.

  Raises:
    ValueError: it is of another kind, or in the way of the input.
  """
  if not where.is_dir() and media.is_video(where):
    if to.suffix != ".mp4" or to.is_dir():
      raise ValueError(f"--overlay={to}: of a video it is a file, name it .mp4")
    return _apart({where: to}, to)
  if to.suffix == ".mp4" or to.is_file():
    raise ValueError(f"--overlay={to}: of photographs, or a folder, it is a folder of copies")
  folder = where if where.is_dir() else where.parent
  if where.is_dir() and to.resolve().is_relative_to(where.resolve()):
    raise ValueError(f"--overlay={to}: it is in --input={where}: name a folder beside it")
  return _apart({path: to / _renamed(path.relative_to(folder)) for path in files}, to)


def _apart(copies: dict[Path, Path], to: Path) -> dict[Path, Path]:
  """Raises ValueError where a copy would replace what it is of."""
  sources = {path.resolve() for path in copies}
  if mine := [copy for copy in copies.values() if copy.resolve() in sources]:
    raise ValueError(f"--overlay={to}: {mine[0]} is of the input: name another place")
  return copies


def _renamed(path: Path) -> Path:
  """The name of a copy: of a kind that can be written, and another for each."""
  known = (".mp4",) if media.is_video(path) else (".png", ".jpg", ".jpeg")
  return path if path.suffix.lower() in known else path.with_name(f"{path.name}{known[0]}")
