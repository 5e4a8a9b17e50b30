"""The records of a video, one a frame: streamed, so that memory does not grow with its length."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from tensorflow_datasets.proto import tf_example_pb2

from affjax.labels import TASKS
from tfds_builders import images, stage, tables
from tfds_builders.aff_wild2 import layout, videos

IMAGE_SIZE = (112, 112)  # of a crop
FULL_SIZE = 256  # pixels of the shorter side of an uncropped frame
QUALITY = 95  # of its JPEG
FULL_BYTES = (
  40_000  # of one, 456 pixels wide, at 2.7 bits a pixel; INFERRED, for the size of a build
)


@dataclasses.dataclass(frozen=True)
class Video:
  """A video in one split.

  Attributes:
    split: its name.
    name: of the video.
    place: folder of its crops, or the file of the video.
    frames: [rows] int32 ascending from 1, those that may become records.
    sizes: [rows] int64 bytes of their crops, or [1] those of the file.
    names: task -> how many labels it has, of all tasks.
    lines: task -> its lines as `layout.Labels` has them, of the tasks that have any here.
  """

  split: str
  name: str
  place: Path
  frames: np.ndarray
  sizes: np.ndarray
  names: Mapping[str, int]
  lines: Mapping[str, np.ndarray]

  def fingerprint(self, version: str) -> str:
    """A hash over all that the records depend on, but for the pixels."""
    digest = hashlib.sha256(
      f"{version}/{self.split}/{self.name}/{sorted(self.names.items())}".encode()
    )
    arrays = {**self.lines, "frames": self.frames, "sizes": self.sizes}
    for name, values in sorted(arrays.items()):
      digest.update(f"/{name}:{values.dtype}{values.shape}:".encode() + values.tobytes())
    return digest.hexdigest()

  def labels(self, task: str) -> np.ndarray:
    """[rows, names] float32 as a `tables.Table` has them; NaN beyond the last line of a file."""
    size = self.names[task]
    of_frame = np.full((self.frames[-1], size), np.nan, np.float32)
    if task in self.lines:
      lines = self.lines[task][: len(of_frame)]
      if task == "expression":
        of_frame[: len(lines)] = tables.one_hot(lines, size)
      else:
        of_frame[: len(lines)] = np.where(known(lines), lines, np.nan)
    return of_frame[self.frames - 1]


def of(
  split: str, name: str, labels: Mapping[str, layout.Labels], pictures: layout.Pictures
) -> Video | None:
  """The rows of a video in a split: its frames that have a line of any task and a picture.

  Returns:
    None: there are none.
  """
  lines = {
    task: of_task.splits[split][name]
    for task, of_task in labels.items()
    if name in of_task.splits[split]
  }
  longest = max(map(len, lines.values()), default=0)
  frames, sizes = pictures.frames, pictures.sizes
  if frames is None:
    frames = np.arange(1, longest + 1, dtype=np.int32)
  else:
    frames, sizes = frames[frames <= longest], sizes[frames <= longest]
  if not len(frames):
    return None
  names = {task: len(labels[task].names) if task in labels else 0 for task in TASKS}
  return Video(split, name, pictures.place, frames, sizes, names, lines)


def known(lines: np.ndarray) -> np.ndarray:
  """Where there is a label in lines as `layout.Labels` has them: bool of their shape."""
  return ~np.isnan(lines) if lines.dtype == np.float32 else lines >= 0


class Records:
  """Serialises the records of a video as TFDS would, which takes several times as long.

  Attributes:
    unlabelled: how many of those that were made have no label at all.
  """

  def __init__(self, video: Video) -> None:
    self.unlabelled = 0
    self._video = video
    self._same = tf_example_pb2.Example()  # what all records have
    for name in ("person", "video"):
      self._same.features.feature[name].bytes_list.value.append(video.name.encode())
    self._columns: dict[str, np.ndarray] = {}
    self._labelled = np.zeros(len(video.frames), bool)
    for task in TASKS:
      labels = video.labels(task)
      there = ~np.isnan(labels)
      mask = there.any(1, keepdims=True) if task == "expression" else there
      self._columns[f"labels/{task}"] = np.where(there, labels, np.float32(0))
      self._columns[f"mask/{task}"] = mask.astype(np.float32)
      self._labelled |= there.any(1)

  def record(self, row: int, image: bytes, time: float | None = None) -> bytes:
    """The record of a row.

    Args:
      row: of the video's frames.
      image: encoded.
      time: of its presentation, in seconds; None: the data set has no such field.
    """
    frame = int(self._video.frames[row])
    name = f"{self._video.name}/{frame:05d}"
    # A new one each time: what was set before takes memory for as long as a message lives.
    example = tf_example_pb2.Example()
    example.CopyFrom(self._same)
    feature = example.features.feature
    feature["image"].bytes_list.value.append(image)
    feature["key"].bytes_list.value.append(f"{self._video.split}/{name}".encode())
    feature["image_path"].bytes_list.value.append(f"{name}.jpg".encode())
    feature["frame"].int64_list.value.append(frame)
    feature["line"].int64_list.value.append(frame + 1)  # line 1 is the header
    for column, values in self._columns.items():
      found = feature[column].float_list
      found.SetInParent()  # where it has no values too
      found.value.extend(values[row].tolist())
    if time is not None:
      feature["time"].float_list.value.append(time)
    self.unlabelled += not self._labelled[row]
    # In one order, so that two builds write the same bytes.
    return example.SerializeToString(deterministic=True)


def crops(video: Video, write: Callable[[bytes], None]) -> dict[str, Any]:
  """Writes the records of a video's crops, which are kept byte by byte.

  Returns:
    `unlabelled`: how many of them have no label at all.

  Raises:
    stage.Broken: crops cannot be read, or are no whole images of 112 x 112 pixels.
  """
  records, broken = Records(video), []
  for row, frame in enumerate(video.frames.tolist()):
    path = f"{video.place}/{frame:05d}.jpg"
    try:
      encoded = images.read(path)
      images.check(path, encoded, IMAGE_SIZE)
    except (ValueError, OSError) as e:
      broken.append(str(e))
      continue
    write(records.record(row, encoded))
  if broken:
    raise stage.Broken(broken)
  return {"unlabelled": records.unlabelled}


def full(video: Video, write: Callable[[bytes], None]) -> dict[str, Any]:
  """Writes the records of a video's frames, scaled; those that have a line.

  Returns:
    `unlabelled`: how many of them have no label at all; `decoded`: how many frames the video has.

  Raises:
    stage.Broken: it cannot be decoded.
  """
  records, decoded = Records(video), 0
  try:
    for frame, time, image in videos.frames(video.place, FULL_SIZE):
      decoded = frame
      if frame <= len(video.frames):
        jpeg = simplejpeg.encode_jpeg(image, quality=QUALITY, colorsubsampling="420")
        write(records.record(frame - 1, jpeg, time))
  except ValueError as e:
    raise stage.Broken([str(e)]) from e
  return {"unlabelled": records.unlabelled, "decoded": decoded}
