"""Photographs and videos, picture by picture, in constant memory; what is damaged is said.

Photographs are read by Pillow, and turned as their EXIF says. Videos are decoded by PyAV, by one
thread, as `tfds_builders.aff_wild2.videos` does and for its reasons: frames are numbered from 1 in
the order in which they are shown, and turned as the file says. A packet that cannot be decoded has
a number, too, by the time that it has: the frames behind it keep theirs.
"""

import dataclasses
import io
import os
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from affjax.data import records
from tfds_builders import images
from tfds_builders.aff_wild2 import videos

PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
VIDEOS = (*videos.SUFFIXES, ".m4v", ".webm")
# How notes begin.
NOBODY, BROKEN = "no face", "cannot be decoded"
_BUILT = "what it builds on is damaged"
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
# What Pillow raises for files that are damaged: found by trying.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, TypeError, Image.DecompressionBombError)


@dataclasses.dataclass(frozen=True)
class Shot:
  """A photograph, or a frame of a video.

  Attributes:
    file: where it is from.
    frame: its number in the video, from 1; 0: a photograph.
    time: seconds since the first frame; NaN: a photograph.
    image: [height, width, 3] uint8 RGB; None: it cannot be decoded.
    note: why not.
  """

  file: Path
  frame: int = 0
  time: float = np.nan
  image: np.ndarray | None = None
  note: str = ""


def is_video(path: Path) -> bool:
  """Whether a file is taken for a video: its name says so."""
  return path.suffix.lower() in VIDEOS


def find(where: Path) -> list[Path]:
  """The photographs and videos that a path stands for, by name: of a folder all below it.

  Names that begin with a dot are passed over, and links to folders not followed.

  Raises:
    ValueError: there are none, or a video is there and PyAV is not.
  """
  if not where.is_dir():
    if not where.exists():
      raise ValueError(f"--input={where}: no such file or folder")
    found = [where]
  else:
    found = []
    for folder, inner, names in os.walk(where):
      inner[:] = sorted(name for name in inner if not name.startswith("."))
      paths = [Path(folder, name) for name in sorted(names) if not name.startswith(".")]
      found += [path for path in paths if path.suffix.lower() in (*PHOTOGRAPHS, *VIDEOS)]
    if not found:
      known = " ".join((*PHOTOGRAPHS, *VIDEOS))
      raise ValueError(f"--input={where}: no photograph or video in it; they are told by {known}")
  if any(map(is_video, found)):
    videos.pyav()
  return found


def length(path: Path) -> int:
  """How many frames a file claims to have; 0: it does not say, or cannot be read."""
  if not is_video(path):
    return 1
  try:
    with videos.opened(path) as container:
      stream = videos.pictures_of(path, container)
      rate = stream.average_rate or stream.guessed_rate or 0
      seconds = float((container.duration or 0) / videos.pyav().time_base)
      return max(stream.frames or round(seconds * rate), 0)
  except (ValueError, OSError):
    return 0


def rate(path: Path) -> float:
  """Frames a second of a video, as it says; 25 where it does not."""
  try:
    return videos.rate(path)
  except ValueError:
    return 25.0


def shots(path: Path, *, aligned: bool = False, every: int = 1) -> Iterator[Shot]:
  """Yields what is in a file, in the order of showing.

  Args:
    path: of the file.
    aligned: photographs are faces as training images are, and read as these are.
    every: of a video, from which frame on to the next one that is wanted: frames 1, 1 + every, ...
  """
  last = Shot(path)
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):
      raise ValueError("not a regular file")
    if is_video(path):
      for last in _frames(path, every):
        yield last
    else:
      yield Shot(path, image=records.read_image(path) if aligned else read_photograph(path))
  except (OSError, ValueError) as e:
    time = last.time if last.frame else 0.0
    place = (last.frame + 1, time) if is_video(path) else ()
    yield Shot(path, *place, note=_note(path, e))


def _note(path: Path, why: Exception) -> str:
  said = " ".join(str(getattr(why, "strerror", None) or why).split())
  said = said.removeprefix(f"{path}: ").removeprefix("the image cannot be decoded: ")
  return f"{BROKEN}: " + "".join(c if c.isprintable() else "?" for c in said)


def read_photograph(path: Path) -> np.ndarray:
  """File -> [height, width, 3] uint8 RGB, turned as its EXIF says; the first of several pictures.

  Raises:
    ValueError: it cannot be decoded, or is absurdly large.
  """
  encoded = images.read(path)
  try:
    with warnings.catch_warnings(), Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
      warnings.simplefilter("ignore")  # of sizes, which are looked at here, and of broken EXIF
      if image.width * image.height > images.PIXELS:
        raise ValueError(
          f"{image.width}x{image.height} pixels; at most {images.PIXELS:,} are decoded"
        )
      if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off and not scale
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
      return np.ascontiguousarray(ImageOps.exif_transpose(image).convert("RGB"))
  except Image.UnidentifiedImageError:
    raise ValueError(f"no image of a kind that is known ({len(encoded)} bytes)") from None
  except _DAMAGED as e:
    raise ValueError(str(e)) from e


def _frames(path: Path, every: int) -> Iterator[Shot]:
  draw, start = videos.drawing(None), 0.0
  for number, (time, frame, why) in enumerate(_decoded(path), 1):
    start = time if number == 1 else start
    if (number - 1) % every:
      continue
    image = None if frame is None else draw(frame)
    yield Shot(path, number, time - start, image, why and f"{BROKEN}: {why}")


def _decoded(path: Path) -> Iterator[tuple[float, Any, str]]:
  """Seconds on the file's clock, PyAV's frame or None, and why there is none; by time."""
  errors = videos.pyav().FFmpegError
  due: dict[int, str] = {}  # time of packets that no frame came of yet -> what is wrong with them
  given_up: set[int] = set()
  found, harmed, cut = 0, False, ""
  with videos.opened(path) as container:
    stream = videos.pictures_of(path, container)
    clock = _Clock(path, container, stream)
    try:
      for packet in container.demux(stream):
        stamp = clock.stamp(packet)
        if packet.size and stamp is not None and not packet.is_discard:
          due[stamp] = ""
        try:
          ready = packet.decode()
        except errors as e:
          due[clock.last if stamp is None else stamp], harmed = e.strerror, True
          continue
        for frame in ready:
          stamp = clock.stamp(frame)
          if stamp in given_up:  # behind damage frames may come late, out of order
            continue
          found += 1
          due.pop(stamp, None)
          earlier = [] if stamp is None else sorted(time for time in due if time < stamp)
          # Not every packet is a picture; in what is whole, those that are none are not missed.
          lost = {time: due.pop(time) for time in earlier}
          if harmed:
            given_up.update(lost)
            yield from ((clock.seconds(time), None, why or _BUILT) for time, why in lost.items())
          yield clock.show(frame, harmed), frame, ""
    except errors as e:  # of the container: what comes next in the file is not known
      cut = e.strerror
  if harmed:
    yield from ((clock.seconds(time), None, due[time] or _BUILT) for time in sorted(due))
  if cut or not (found or harmed):
    yield clock.seconds(clock.last), None, f"the file ends early ({cut})" if cut else "no frames"


class _Clock:
  """When frames are shown, as the file says."""

  def __init__(self, path: Path, container: Any, stream: Any) -> None:
    self._path, self._stream = path, stream
    # AVI stores no times of showing: see `videos.timed`.
    self._ready = container.format.name == "avi"
    self._start = stream.start_time or 0
    self._late, self._known = 0, False
    self.last = self._start

  def stamp(self, of: Any) -> int | None:
    """The time of a packet or a frame in ticks of the stream; None: it has none."""
    return of.dts if self._ready else of.pts

  def seconds(self, stamp: int) -> float:
    """Ticks in seconds."""
    return float((stamp - self._late) * self._stream.time_base)

  def show(self, frame: Any, after_damage: bool) -> float:
    """Seconds of the next frame; one without a time is shown as long as the rate says."""
    stamp = self.stamp(frame)
    if stamp is None:
      step = 1 / videos.stated_rate(self._path, self._stream) / float(self._stream.time_base)
      stamp = round(self.last + step) if self._known else self._start
    if not self._known and self._ready and not after_damage:
      self._late = stamp - self._start
    self._known, self.last = True, stamp
    return self.seconds(stamp)
