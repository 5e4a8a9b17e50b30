"""Video files: found by name, decoded frame by frame with the time of each, and their sound.

PyAV, from which FFmpeg's decoders come, is optional: `pip install -e ".[video]"`.

Frames are numbered 1, 2, ... in the order in which they are shown, as decoding yields them: what a
file's header says of their number is not believed. A file is decoded by one thread. With more, what
FFmpeg makes of a damaged file depends on how many they are (found by trying: up to one frame less a
thread), and frame numbers may not depend on the machine. Callers decode several files at a time.

Pictures are turned as the file says that they are shown, in steps of 90 degrees, which is what
OpenCV does too. Pixels that are not square stay as they are stored.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tfds_builders import images

SUFFIXES = (".mp4", ".avi", ".mkv", ".mov")
RATE = 16_000  # of sound, samples a second
LONGEST = 12 * 3600  # seconds: sound that claims to be later has a damaged time
_PICTURES = (".jpg", ".jpeg")
_CROPS = 100  # pictures, and nothing else, after which a folder is taken to hold no video
_SIDE = re.compile(r"_(?:left|right)\Z")
# Seconds that sound may be off the time which the file gives it. Times are rounded to milliseconds
# in Matroska, and to packets in AVI.
_SLACK = 0.1
# What a file is, whatever it is called: by a playlist FFmpeg would open other files, or fetch them.
_FORMATS = "mov,mp4,avi,matroska,webm"


def base(video: str) -> str:
  """The name of the file that a video's crops are from: without `_left` or `_right`.

  Both people of a video have a folder of crops, and share the file.
  """
  return _SIDE.sub("", video)


def find(source: Path) -> dict[str, Path]:
  """Name without suffix -> file, of all videos anywhere below a folder, by name.

  Folders of crops are left early: those whose first hundred entries are all JPEGs. Names that begin
  with a dot are passed over.

  Raises:
    ValueError: two files have one name, or a link leads out of the folder.
  """
  source = Path(source)
  if not source.is_dir():
    raise ValueError(f"{source}: no such folder; it should hold the videos")
  found: dict[str, Path] = {}
  folders, seen = [source], set()
  while folders:
    folder = folders.pop()
    # Links may lead in a circle.
    if (real := os.path.realpath(folder)) in seen:
      continue
    seen.add(real)
    inner, files = _listing(source, folder)
    folders += inner
    for path in files:
      other = found.setdefault(path.stem, path)
      if os.path.realpath(other) != os.path.realpath(path):
        raise ValueError(
          f"video {path.stem!r}: {min(other, path)} and {max(other, path)} have one name: keep one"
          f" of them below {source}"
        )
  return dict(sorted(found.items()))


def _listing(source: Path, folder: Path) -> tuple[list[Path], list[Path]]:
  """The folders and the videos in a folder."""
  folders, files, pictures = [], [], 0
  with os.scandir(folder) as entries:
    for number, entry in enumerate(entries, 1):
      suffix = os.path.splitext(entry.name)[1].lower()
      pictures += suffix in _PICTURES
      if pictures == number == _CROPS:
        return [], []
      if entry.name.startswith(".") or suffix in _PICTURES:
        continue
      path = Path(entry.path)
      if entry.is_dir():
        folders.append(images.inside(source, path))
      elif suffix in SUFFIXES and entry.is_file():
        files.append(images.inside(source, path))
  return folders, files


def frames(
  path: str | os.PathLike[str],
  size: int | None = None,
  wanted: Collection[int] | None = None,
) -> Iterator[tuple[int, float, np.ndarray]]:
  """Decodes a video, in constant memory.

  Args:
    path: of the file.
    size: to which the shorter side is brought, pixels, averaging where it shrinks; None: as stored.
    wanted: numbers of the frames that are made into pictures; the last of them is where decoding
      ends. None: all.

  Yields:
    number of the frame, from 1; its time in seconds since that of the first; [height, width, 3]
    uint8 RGB.

  Raises:
    ValueError: no frame can be decoded. What is damaged is skipped, as decoders do; stderr says so.
  """
  draw, start = drawing(size), 0.0
  last = None if wanted is None else max(wanted, default=0)
  with contextlib.closing(timed(path)) as decoded, _named(path):
    for k, (time, frame) in enumerate(decoded, 1):
      start = time if k == 1 else start
      if wanted is None or k in wanted:
        yield k, time - start, draw(frame)
      if last is not None and k >= last:
        return


def times(path: str | os.PathLike[str]) -> np.ndarray:
  """[frames] float64 seconds from the first frame to each; raises as `frames` does."""
  found = np.array([time for time, _ in timed(path)])
  return found - found[0]


def count(path: str | os.PathLike[str]) -> int:
  """How many frames can be decoded; raises as `frames` does."""
  return sum(1 for _ in timed(path))


def rate(path: str | os.PathLike[str]) -> float:
  """Frames a second, as the file says: their mean where they come at irregular times.

  Raises:
    ValueError: it cannot be read, or does not say.
  """
  with opened(path) as container:
    return stated_rate(path, pictures_of(path, container))


def sound(path: str | os.PathLike[str], rate: int = RATE) -> np.ndarray:
  """The sound of a video, aligned to its frames.

  Args:
    path: of the file.
    rate: samples a second.

  Returns:
    [samples] int16, all channels mixed to one. Sample 0 is at the time of the first frame: what
    comes before is cut, and what is missing, at the start or later, is silence. Of length 0 if the
    file has no sound.

  Raises:
    ValueError: no frame, or nothing of the sound, can be decoded, or its times are damaged.
  """
  with contextlib.closing(timed(path)) as decoded:
    start, _ = next(decoded)
  with opened(path) as container, _named(path):
    stream = _stream(path, container, "audio")
    heard = [] if stream is None else list(_heard(_decoded(path, container, stream), rate))
  pieces = [(round((time - start) * rate), samples) for time, samples in heard]
  length = max((at + len(samples) for at, samples in pieces), default=0)
  if length > LONGEST * rate:
    raise ValueError(
      f"{path}: its sound ends after {length / rate / 3600:,.0f} hours, at most"
      f" {LONGEST // 3600} are read: the file is damaged"
    )
  whole = np.zeros(max(length, 0), np.int16)
  for at, samples in pieces:
    whole[max(at, 0) : max(at + len(samples), 0)] = samples[max(-at, 0) :]
  return whole


def _heard(decoded: Iterator[Any], rate: int) -> Iterator[tuple[float, np.ndarray]]:
  """Seconds, and [samples] int16 from there on, of sound that goes on without a gap."""
  resampled = _resampling(rate)
  nothing = np.zeros(0, np.int16)
  run, kind, begin, due = [nothing], None, 0.0, 0.0
  for frame in decoded:
    now = due if frame.time is None else frame.time
    this = (frame.format.name, frame.layout.name, frame.sample_rate)
    if this != kind or abs(now - due) > _SLACK:
      if kind:
        yield begin, np.concatenate(run + resampled(None))
      resampled, run, kind, begin, due = _resampling(rate), [nothing], this, now, now
    run += resampled(frame)
    due += frame.samples / frame.sample_rate
  if kind:
    yield begin, np.concatenate(run + resampled(None))


def _resampling(rate: int) -> Callable[[Any], list[np.ndarray]]:
  """A function: PyAV's sound, None at its end -> [samples] int16 each, of one channel."""
  resampler = pyav().AudioResampler("s16", "mono", rate)
  return lambda frame: [made.to_ndarray()[0] for made in resampler.resample(frame)]


def timed(path: str | os.PathLike[str]) -> Iterator[tuple[float, Any]]:
  """Seconds on the file's clock, and PyAV's frame, of every frame that can be decoded."""
  with opened(path) as container:
    stream = pictures_of(path, container)
    # AVI stores no times of showing. FFmpeg gives those of decoding for them, which are out of
    # order where frames are; when a frame was ready is right but for a delay, the same for all.
    ready = container.format.name == "avi"
    start = float((stream.start_time or 0) * stream.time_base)
    last, late = None, 0.0
    for frame in _decoded(path, container, stream):
      stamp = frame.dts if ready else frame.pts
      if stamp is not None:
        time = float(stamp * stream.time_base)
      else:
        time = start if last is None else last + 1 / stated_rate(path, stream)
      if last is None and ready:
        late = time - start
      last = time
      yield time - late, frame


def _decoded(path: str | os.PathLike[str], container: Any, stream: Any) -> Iterator[Any]:
  """PyAV's frames of a stream, in the order of showing; says on stderr what was left out."""
  errors = pyav().FFmpegError
  found, damaged, why = 0, 0, "it has no frames"
  with _named(path):
    for packet in container.demux(stream):
      try:
        ready = packet.decode()
      except errors as e:
        damaged, why = damaged + 1, e.strerror
        continue
      found += len(ready)
      yield from ready
  if not found and (damaged or stream.type == "video"):
    raise ValueError(f"{path}: no {stream.type} can be decoded ({why})")
  if damaged:
    after = "; frames after them are numbered as if they were not there"
    print(
      f"warning: {path}: {damaged} damaged packets of {stream.type} skipped"
      f"{after if stream.type == 'video' else ''}",
      file=sys.stderr,
      flush=True,
    )


def drawing(size: int | None) -> Callable[[Any], np.ndarray]:
  """A function: PyAV's frame -> [height, width, 3] uint8 RGB."""
  pyav()
  from av.video.reformatter import VideoReformatter

  # One for all frames: to set it up takes longer than to use it.
  reformatter = VideoReformatter()

  def draw(frame: Any) -> np.ndarray:
    shorter = min(frame.width, frame.height)
    scaled = lambda side: side if size is None else max(1, round(side * size / shorter))
    drawn = reformatter.reformat(
      frame,
      scaled(frame.width),
      scaled(frame.height),
      "rgb24",
      interpolation="AREA" if size is not None and size < shorter else "BILINEAR",
    )
    quarters = round(frame.rotation / 90)  # against the clock, as NumPy turns
    return np.ascontiguousarray(np.rot90(drawn.to_ndarray(), quarters))

  return draw


def stated_rate(path: str | os.PathLike[str], stream: Any) -> float:
  """Frames a second of a stream, as `rate` gives them of a file."""
  found = float(stream.average_rate or stream.guessed_rate or 0)
  if not found:
    raise ValueError(f"{path}: it does not say how many frames it has a second")
  return found


def _stream(path: str | os.PathLike[str], container: Any, kind: str) -> Any:
  """The stream of video or audio of a file, set up for decoding; None: it has none."""
  stream = container.streams.best(kind)
  if stream is not None and stream.codec_context is None:
    raise ValueError(f"{path}: no {kind} can be decoded (FFmpeg does not know its codec)")
  if stream is not None:
    stream.thread_type = "NONE"
  return stream


def pictures_of(path: str | os.PathLike[str], container: Any) -> Any:
  """The stream of pictures of a file, set up for decoding; ValueError: it has none."""
  stream = _stream(path, container, "video")
  if stream is None:
    raise ValueError(f"{path}: there is no video in it")
  # A few bytes can claim to be a picture of many gigabytes.
  stream.codec_context.options = {"max_pixels": str(images.PIXELS)}
  return stream


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
  """PyAV's container of a file; ValueError names it if it is no video."""
  av = pyav()
  # An absolute path is no address of a network, whatever it looks like.
  name, options = os.path.abspath(path), {"format_whitelist": _FORMATS}
  with _named(path):
    try:
      container = av.open(name, options=options)
    except UnicodeDecodeError:  # a title in another encoding; PyAV 19 does not mind
      container = av.open(name, options=options, metadata_errors="replace")
  with container:
    yield container


@contextlib.contextmanager
def _named(path: str | os.PathLike[str]) -> Iterator[None]:
  """FFmpeg's errors as ValueError with the file's name."""
  try:
    yield
  except pyav().FFmpegError as e:
    raise ValueError(
      f"{path}: not a video that can be read ({e.strerror}); use whole files of"
      f" {', '.join(SUFFIXES)}"
    ) from e


def pyav() -> Any:
  """PyAV; ValueError says how it is installed."""
  try:
    import av
  except ImportError as e:
    raise ValueError(
      'videos are read with PyAV, which is not installed: run `pip install -e ".[video]"`'
    ) from e
  return av
