"""Prepared data sets on disk: opened by name, read as whole batches, counted and fingerprinted.

TFDS is the catalogue (where the shards are, what a record holds); reading goes past it, because its
feature decoding costs as much as the JPEG. Nothing here imports jax or TensorFlow.
"""

import bisect
import dataclasses
import errno
import fcntl
import functools
import hashlib
import importlib
import io
import itertools
import json
import os
import pkgutil
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from array_record.python import array_record_module
from google.protobuf import json_format, message
from tensorflow_datasets.proto import tf_example_pb2

import tfds_builders
from affjax.data.views import CLEAN, View
from affjax.labels import TASKS, remap
from tfds_builders import images as image_files

# Beside TFDS's own files: what they are, counts and fingerprint, the labels of a split without its
# images.
MANIFEST = "affjax_manifest.json"
SUMMARY = "affjax.json"
TABLE = "affjax_{}.npz"
# Of TFDS, read whenever a data set is opened.
INFO = "dataset_info.json"
METADATA = "metadata.json"

MEND = (
  "`python -m affjax.data.prepare NAME --verify` names all that is damaged;"
  " config.data.unreadable='skip' leaves out the records that cannot be read"
)
# What numpy and zipfile raise where a byte of an .npz is not as it was written: found by trying.
_DAMAGED_NPZ = (
  EOFError,
  KeyError,
  OSError,
  RuntimeError,
  ValueError,
  tokenize.TokenError,
  zipfile.BadZipFile,
  zlib.error,
)
# Of the place, not of what is written: too full or not to be written to.
_NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

# Columns of a label table that say which frame of whom a row is, and the features that they are of.
PLACES = {"person": ("person",), "video": ("video", "clip"), "frame": ("frame",)}

# Task -> labels, and task or `expression_RULE` -> mask, of all rows of a split.
Labels = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def names() -> list[str]:
  """Names of the data sets that have a builder."""
  return sorted(m.name for m in pkgutil.iter_modules(tfds_builders.__path__) if m.ispkg)


def builder(name: str, config: str = "", data_dir: str | None = None) -> Any:
  """The TFDS builder of a data set; its data need not be there yet.

  Args:
    name: folder in `tfds_builders`.
    config: one of the builder's configs; empty: its first, or none if it has none. A builder with
      `name_config` makes one of any name: the user's own data.
    data_dir: where prepared data lives; None: TFDS's default place.

  Raises:
    ValueError: no such data set or config, or what TFDS keeps beside its data cannot be read.
  """
  if name not in names():
    raise ValueError(f"data set {name!r}: use one of {', '.join(names())}")
  cls = importlib.import_module(f"tfds_builders.{name}.{name}_dataset_builder").Builder
  known = [c.name for c in cls.BUILDER_CONFIGS]
  chosen: Any = config or None
  if hasattr(cls, "name_config"):
    chosen = cls.name_config(config)
  elif config and config not in known:
    raise ValueError(f"data set {name!r} has no config {config!r}; it has {known or 'none'}")
  try:
    return cls(data_dir=data_dir and os.path.expanduser(data_dir), config=chosen)
  except (AssertionError, AttributeError, ValueError, json_format.ParseError) as e:
    root = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    place = Path(os.path.expanduser(root), name, config or "".join(known[:1]), str(cls.VERSION))
    _blame(place, e)
    raise


def _blame(folder: Path, error: Exception) -> None:
  """Raises ValueError if TFDS refused a data set for a file in its folder that cannot be read."""
  for path in (folder / METADATA, folder / INFO):
    if path.is_file():
      read_json(path)
  if isinstance(error, AssertionError | json_format.ParseError):
    raise ValueError(_unreadable(folder / INFO, error)) from error


_REMEDY = "restore it, or delete its folder and prepare the data set again"


def _unreadable(path: Path, why: object, remedy: str = _REMEDY) -> str:
  said = " ".join(str(getattr(why, "strerror", None) or why).split())
  return f"{path} cannot be read ({''.join(c if c.isprintable() else '?' for c in said)}): {remedy}"


def read_json(path: Path, remedy: str = _REMEDY) -> dict[str, Any]:
  """Reads a JSON object; ValueError names a file that is missing or holds none, and the remedy."""
  try:
    found = json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError) as e:
    raise ValueError(_unreadable(path, e, remedy)) from e
  if not isinstance(found, dict):
    raise ValueError(_unreadable(path, "no JSON object", remedy))
  return found


def is_prepared(build: Any) -> bool:
  """Whether the builder's shards are on disk."""
  return (Path(build.data_dir) / INFO).is_file()


def needs_source(build: Any) -> bool:
  """Whether the data set is made from files that the user must obtain."""
  return bool(build.MANUAL_DOWNLOAD_INSTRUCTIONS)


class lock:
  """Holds `path` against other processes of this machine for the length of a `with` block."""

  def __init__(self, path: str | os.PathLike[str]) -> None:
    self._path = Path(path)

  def __enter__(self) -> "lock":
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._file = self._path.open("w")
    fcntl.flock(self._file, fcntl.LOCK_EX)
    return self

  def __exit__(self, *unused: object) -> None:
    self._file.close()


@dataclasses.dataclass(frozen=True)
class Shards:
  """The ArrayRecord files of one split, opened on first use, so that it can be sent to a worker.

  Attributes:
    paths: of the files.
    lengths: records of each.
    image_size: (height, width) in pixels of all images; None: each has its own.
    written: bytes and SHA-256 of each file as it was written; empty where they are not known.
  """

  paths: tuple[str, ...]
  lengths: tuple[int, ...]
  image_size: tuple[int, int] | None = None
  written: tuple[tuple[int, str], ...] = ()

  def __len__(self) -> int:
    return sum(self.lengths)

  def __getstate__(self) -> dict[str, Any]:
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

  @functools.cached_property
  def _starts(self) -> list[int]:
    """The first row of each file, and the number of all rows."""
    return [0, *itertools.accumulate(self.lengths)]

  @functools.cached_property
  def _readers(self) -> dict[int, Any]:
    """Number of a file -> its reader, which any number of threads may use."""
    return {}

  def read(self, rows: Sequence[int]) -> list[bytes]:
    """The serialised records of `rows`, in that order.

    Raises:
      ValueError: one cannot be read; names it.
    """
    return [self.record(int(row)) for row in rows]

  def record(self, row: int) -> bytes:
    """The serialised record of a row.

    Raises:
      ValueError: it cannot be read; names it.
    """
    shard = bisect.bisect_right(self._starts, row) - 1
    try:
      found = (self._readers.get(shard) or self._open(shard)).read([row - self._starts[shard]])[0]
    except RuntimeError as e:
      # Before the details: hashes and positions in the file, which may be of any characters.
      why = " ".join(str(e).partition(" (")[0].partition(";")[0].split())
      raise ValueError(f"{self.where(row)}: {repr(why)[1:-1]}") from e
    if not found and shard not in self._readers:  # not every file that is damaged says so
      raise ValueError(f"{self.where(row)}: the file cannot be read")
    return found

  def _open(self, shard: int) -> Any:
    """The reader of a file, kept if the file is whole.

    Files are opened one by one, so that a damaged one is no hindrance to the others. A reader of a
    file that cannot be opened says why when it is asked to read.
    """
    reader = array_record_module.ArrayRecordReader(
      self.paths[shard], "readahead_buffer_size:0", file_reader_buffer_size=32768
    )
    if reader.ok():
      if reader.num_records() != self.lengths[shard]:
        raise RuntimeError(f"{reader.num_records()} records, expected {self.lengths[shard]}")
      self._readers[shard] = reader
    return reader

  def image(self, row: int, out: np.ndarray) -> None:
    """Reads and decodes the image of a row.

    Args:
      row: of the split.
      out: [height, width, 3] uint8, into which it goes; resized with OpenCV where need be.

    Raises:
      ValueError: it cannot be read or decoded, or has another size than all have; names it.
    """
    record = self.record(row)
    try:
      self.decode(record, out)
    except ValueError as e:
      raise ValueError(f"{self.where(row)}: {e}") from e

  def decode(self, record: bytes, out: np.ndarray) -> None:
    """Decodes the image of a serialised record, as `image` does; ValueError says what is wrong."""
    self._draw(image_of(record), out)

  def _draw(self, encoded: bytes, out: np.ndarray) -> None:
    image = decode(encoded, out)
    if image is None:
      raise ValueError("the image cannot be decoded")
    if self.image_size and image.shape[:2] != self.image_size:
      (height, width), expected = image.shape[:2], self.image_size
      raise ValueError(f"{width}x{height} pixels, expected {expected[1]}x{expected[0]}")
    if image.shape != out.shape or not np.shares_memory(image, out):
      out[:] = fit(image, out.shape[:2])

  def where(self, row: int) -> str:
    """Names the shard and the record of a row, for messages."""
    shard = bisect.bisect_right(self._starts, row) - 1
    return f"record {row - self._starts[shard]} of {self.paths[shard]}"

  def confirm(self) -> None:
    """Raises ValueError, naming it, unless each file opens and holds as many records as it should.

    Of a file that was just written: not every failure to write is an error.
    """
    for shard, length in enumerate(self.lengths):
      if length:
        self.record(self._starts[shard])

  def check(self) -> None:
    """Raises ValueError, naming it, where a file is missing or has lost or won bytes."""
    for path, written in itertools.zip_longest(self.paths, self.written):
      try:
        size = os.stat(path).st_size
      except OSError as e:
        raise ValueError(f"{path}: {e.strerror} ({MEND})") from e
      if written and size != written[0]:
        raise ValueError(f"{path}: {size} bytes, {written[0]} were written ({MEND})")


def _parsed(record: bytes) -> Any:
  """The features of a serialised record, by name."""
  try:
    return tf_example_pb2.Example.FromString(record).features.feature
  except message.DecodeError as e:
    raise ValueError("the record cannot be parsed") from e


def image_of(record: bytes) -> bytes:
  """The encoded image of a serialised record; ValueError says why there is none."""
  image = _parsed(record)["image"].bytes_list.value
  if not image:
    raise ValueError("the record holds no image")
  return image[0]


def shards(build: Any, split: str) -> Shards:
  """Finds a split's shards.

  Raises:
    ValueError: not prepared, or no such split; says what to do.
  """
  if not is_prepared(build):
    options = f" --config={build.builder_config.name}" if build.builder_config else ""
    options += " --source=FOLDER" if needs_source(build) else ""
    raise ValueError(
      f"data set {build.name!r} is not in {build.data_dir}: run"
      f" `python -m affjax.data.prepare {build.name}{options}` (its official files:"
      f" tfds_builders/{build.name}/README.md), or name another place with --data_dir"
    )
  if split not in build.info.splits:
    raise ValueError(
      f"data set {build.name!r} has no split {split!r}; it has {', '.join(build.info.splits)}"
    )
  info, known = build.info.splits[split], manifest(build)
  names = [path.name for path in info.filepaths]
  known = known if known.keys() >= set(names) else {}
  return Shards(
    tuple(str(path) for path in info.filepaths),
    tuple(info.shard_lengths),
    image_size(build),
    tuple((known[name]["size"], known[name]["sha256"]) for name in names if known),
  )


def joined(parts: Sequence[Shards]) -> Shards:
  """The files of several splits of a data set, all of one class, as those of one."""
  first = parts[0]
  if len(parts) == 1:
    return first
  known = all(part.written for part in parts)
  return dataclasses.replace(
    first,
    paths=tuple(path for part in parts for path in part.paths),
    lengths=tuple(length for part in parts for length in part.lengths),
    written=tuple(w for part in parts for w in part.written) if known else (),
  )


def image_size(build: Any) -> tuple[int, int] | None:
  """(height, width) in pixels of all images of a data set; None: each has its own."""
  height, width, _ = build.info.features["image"].shape
  return (height, width) if height and width else None


def manifest(build: Any) -> dict[str, Any]:
  """File -> `size` in bytes and `sha256`, as the build wrote them; empty: before there were any."""
  path = Path(build.data_dir) / MANIFEST
  if not path.is_file():
    return {}
  try:
    known = json.loads(path.read_bytes())
    return {name: {"size": of["size"], "sha256": of["sha256"]} for name, of in known.items()}
  except (OSError, ValueError, AttributeError, KeyError, TypeError) as e:
    raise ValueError(
      f"{path} cannot be read: delete it; `python -m affjax.data.prepare NAME --verify` then reads"
      " every record, and writes another if all are whole"
    ) from e


def fingerprint(path: str | os.PathLike[str]) -> dict[str, Any]:
  """`size` in bytes and `sha256` of a file."""
  with open(path, "rb") as file:
    digest = hashlib.file_digest(file, "sha256")
    return {"size": file.tell(), "sha256": digest.hexdigest()}


def metadata(build: Any) -> dict[str, Any]:
  """What the builder says of its labels: `labels` (task -> names), `scoring` (task -> rules)."""
  path = Path(build.data_dir) / METADATA
  found = read_json(path)
  if not isinstance(found.get("labels"), dict):
    raise ValueError(_unreadable(path, "it says nothing of labels"))
  return found


@dataclasses.dataclass(frozen=True)
class Images:
  """The images of a split, or of some of its rows, read as batches: all that a worker is sent.

  Attributes:
    shards: the split's files.
    size: (height, width) in pixels; images of another size are resized with OpenCV.
    taken: [rows] which rows of the files these are; None: all of them.
  """

  shards: Shards
  size: tuple[int, int]
  taken: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.shards) if self.taken is None else len(self.taken)

  def __call__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Reads and decodes one batch into a fresh buffer.

    Args:
      rows: [batch], or of clips [batch, time]: rows of the split; -1 is padding.

    Returns:
      `image` [*rows.shape, height, width, 3] uint8 RGB (grey images have three equal channels),
      `index` [*rows.shape] int32: the rows, and of a row that cannot be read -2 - row. Its image is
      zeros.
    """
    rows = np.asarray(rows)
    index = rows.astype(np.int32)
    images = np.empty((*rows.shape, *self.size, 3), np.uint8)
    flat, marks = images.reshape(-1, *images.shape[-3:]), index.reshape(-1)
    # All are read, then all decoded: in turns that took a thirtieth longer. What is done about one
    # that cannot be is for `Records` to decide, which may be in another process.
    read: dict[int, bytes] = {}
    for i in np.flatnonzero(marks >= 0).tolist():
      try:
        read[i] = self.shards.record(self._of(marks[i]))
      except ValueError:
        marks[i] = -2 - marks[i]
    for i, record in read.items():
      try:
        self.shards.decode(record, flat[i])
      except ValueError:
        marks[i] = -2 - marks[i]
    flat[marks < 0] = 0
    return {"image": images, "index": index}

  def _of(self, row: int) -> int:
    """The row of the files."""
    return int(row if self.taken is None else self.taken[row])

  def why(self, row: int) -> str:
    """What is wrong with a row that cannot be read, with its shard and its record."""
    row = self._of(row)
    try:
      self.shards.image(row, np.empty((*self.size, 3), np.uint8))
    except ValueError as e:
      return str(e)
    return f"{self.shards.where(row)}: it could not be read, and now it can"


@dataclasses.dataclass(frozen=True)
class Several:
  """The images of several splits as those of one, part after part; read as `Images` are.

  Attributes:
    parts: of one size.
  """

  parts: tuple[Images, ...]

  def __len__(self) -> int:
    return sum(map(len, self.parts))

  def __call__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
    """See `Images`."""
    rows, start = np.asarray(rows), 0
    images = np.empty((*rows.shape, *self.parts[0].size, 3), np.uint8)
    images[rows < 0] = 0
    index = rows.astype(np.int32)
    for part in self.parts:
      here = (rows >= start) & (rows < start + len(part))
      found = part(rows[here] - start)
      images[here], own = found["image"], found["index"]
      index[here] = np.where(own < 0, own - start, own + start)
      start += len(part)
    return {"image": images, "index": index}

  def why(self, row: int) -> str:
    """See `Images`."""
    for part in self.parts[:-1]:
      if row < len(part):
        return part.why(row)
      row -= len(part)
    return self.parts[-1].why(row)


def lost(index: np.ndarray) -> np.ndarray:
  """The rows that `Images` could not read: [any number] of the batch's `index`."""
  return -2 - index[index < -1]


class Skipped:
  """Rows of a split that cannot be read and are padding instead: noted as they come up.

  Args:
    split: its name.
    length: its rows.
  """

  FIRST = 5  # of which it is kept what is wrong with them

  def __init__(self, split: str, length: int) -> None:
    self._split, self._length = split, length
    self._rows: set[int] = set()
    self._first: list[str] = []

  def __bool__(self) -> bool:
    return bool(self._rows)

  def add(self, rows: np.ndarray, images: Images | Several) -> None:
    """Notes rows; the first is said on stderr."""
    for row in sorted(set(rows.tolist()) - self._rows):
      self._rows.add(row)
      if len(self._first) < self.FIRST:
        self._first.append(images.why(row))
      if len(self._rows) == 1:
        what = f"skipped in {self._split}, as others that cannot be read will be"
        print(f"{self._first[0]}: {what}", file=sys.stderr, flush=True)

  def facts(self) -> dict[str, Any]:
    """`count` of the rows so far, `of` how many, and what is wrong with the `first` of them."""
    return {"count": len(self._rows), "of": self._length, "first": self._first[: self.FIRST]}


class Records:
  """One split, read in terms of a model's labels.

  Args:
    images: of the split.
    wants: task -> names of the labels that batches hold.
    masks: further masks that they hold: `expression_strict` and the like.
    seen: labels and masks of every row, from `labels`. What it lacks comes with mask 0.
    skipped: takes the rows that cannot be read, which are padding then; None: they are errors.

  Attributes:
    images: as given.
    masks: likewise.
    seen: likewise.
  """

  def __init__(
    self,
    images: Images | Several,
    wants: Mapping[str, Sequence[str]],
    masks: Sequence[str],
    seen: Labels,
    skipped: Skipped | None = None,
  ) -> None:
    self.images = images
    self._skipped = skipped
    self._sizes = {task: len(names) for task, names in wants.items()}
    self.masks = tuple(masks)
    self.seen = seen

  def __len__(self) -> int:
    return len(self.images)

  def batch(self, rows: np.ndarray) -> dict[str, Any]:
    """Reads one batch.

    Args:
      rows: [batch], or of clips [batch, time]: rows of the split; -1 is padding and comes with mask
        0.

    Returns:
      What `Images` gives, and `labels` and `mask` (task -> float32; expression has one mask an
      image, va and au one a label).

    Raises:
      ValueError: a row cannot be read, and there is nothing that takes those that are skipped.
    """
    return self.labelled(self.images(rows))

  def labelled(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Adds labels and masks to a batch of images, in which no row is lost from then on."""
    rows = batch["index"]
    if (unread := lost(rows)).size:
      if self._skipped is None:
        raise ValueError(f"{self.images.why(int(unread[0]))} ({MEND})")
      self._skipped.add(unread, self.images)
      rows = np.maximum(rows, -1)
    of = lambda kind, name, *shape: self._rows(self.seen[kind].get(name), rows, shape)
    one = lambda task, size: () if task == "expression" else (size,)
    mask = {task: of(1, task, *one(task, size)) for task, size in self._sizes.items()}
    return {
      "image": batch["image"],
      "labels": {task: of(0, task, size) for task, size in self._sizes.items()},
      "mask": mask | {name: of(1, name) for name in self.masks},
      "index": rows,
    }

  def _rows(
    self, values: np.ndarray | None, rows: np.ndarray, shape: tuple[int, ...]
  ) -> np.ndarray:
    """Rows of a column, zeros for padding and for a column that is not there."""
    if values is None:
      return np.zeros((*rows.shape, *shape), np.float32)
    found = values[np.maximum(rows, 0)].astype(np.float32)
    found[rows < 0] = 0
    return found


def decode_into(encoded: bytes, out: np.ndarray) -> bool:
  """Encoded bytes -> [height, width, 3] uint8 RGB, resized where need be; whether it could be."""
  image = decode(encoded, out)
  if image is None:
    return False
  if image.shape != out.shape or not np.shares_memory(image, out):
    out[:] = fit(image, out.shape[:2])
  return True


def decode(encoded: bytes, out: np.ndarray | None = None) -> np.ndarray | None:
  """Encoded bytes -> [height, width, 3] uint8 RGB, grey with three equal channels; None: broken.

  What comes may lie in the memory of `out`, if that is contiguous and large enough.
  """
  jpeg = encoded.startswith(image_files.JPEG)
  if jpeg and out is not None:
    try:
      # Not measured before, which would cost more than a microsecond: what `out` is too small for
      # is refused by its header too.
      return simplejpeg.decode_jpeg(encoded, colorspace="RGB", buffer=out)
    except ValueError:
      pass
  try:
    image_files.measure(encoded)
  except ValueError:
    return None
  if jpeg:
    try:
      return simplejpeg.decode_jpeg(encoded, colorspace="RGB")
    except ValueError:
      pass  # simplejpeg is strict, OpenCV forgives what browsers do
  try:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
  except cv2.error:
    return None
  return None if image is None else image[..., ::-1]


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
  """File -> [height, width, 3] uint8 RGB; ValueError names a file that is not an image."""
  encoded = image_files.read(path)
  try:
    image_files.measure(encoded)
  except ValueError as e:
    raise ValueError(f"{path}: the image cannot be decoded: {e}") from None
  image = decode(encoded)
  if image is None:
    raise ValueError(f"{path}: the image cannot be decoded")
  return image


def fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Makes an image a batch's: grey to RGB, and resized where it is of another size.

  Args:
    image: [height, width, 3] or [height, width] (grey) uint8.
    size: (height, width) in pixels.

  Raises:
    ValueError: another shape or dtype.
  """
  image = np.asarray(image)
  if image.ndim == 2:
    image = np.repeat(image[..., None], 3, -1)
  if image.ndim != 3 or image.shape[-1] != 3 or image.dtype != np.uint8:
    raise ValueError(
      f"image of shape {image.shape} and dtype {image.dtype}: expected [height, width, 3] uint8 RGB"
    )
  if image.shape[:2] == size:
    return image
  # Averaging where it shrinks: interpolation alone would alias.
  shrinks = image.shape[0] > size[0]
  return cv2.resize(
    image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  )


def records(
  build: Any,
  split: str,
  wants: Mapping[str, Sequence[str]],
  image_size: int,
  seen: Labels | None = None,
  images: Images | None = None,
  skipped: Skipped | None = None,
) -> Records:
  """Opens a split of a prepared data set, or some rows of several.

  Args:
    build: from `builder`.
    split: its name.
    wants: task -> names of the labels that the model has.
    image_size: height and width of the batches' images, pixels.
    seen: labels of the rows, from `labels` with the same `wants`; None: those of the split as they
      are.
    images: images of the rows; None: those that TFDS wrote.
    skipped: see `Records`.
  """
  images = images or Images(shards(build, split), (image_size, image_size))
  seen = labels(build, split, wants) if seen is None else seen
  return Records(images, wants, _hard_masks(metadata(build)), seen, skipped)


def one_after_other(
  parts: Sequence[Records], wants: Mapping[str, Sequence[str]], skipped: Skipped | None = None
) -> Records:
  """Several splits as one, part after part; what a part has no labels of comes with mask 0.

  Args:
    parts: opened with the same `wants` and size of images.
    wants: task -> names of the labels that the model has.
    skipped: see `Records`.
  """

  def column(kind: int, name: str) -> np.ndarray:
    found = [part.seen[kind].get(name) for part in parts]
    shape = next(x.shape[1:] for x in found if x is not None)
    zeros = [np.zeros((len(part), *shape), np.float32) for part in parts]
    return np.concatenate([z if x is None else x for x, z in zip(found, zeros, strict=True)])

  names = lambda kind: dict.fromkeys(name for part in parts for name in part.seen[kind])
  seen = tuple({name: column(kind, name) for name in names(kind)} for kind in (0, 1))
  masks = dict.fromkeys(name for part in parts for name in part.masks)
  images = Several(tuple(part.images for part in parts))
  return Records(images, wants, tuple(masks), seen, skipped)


def _hard_masks(described: Mapping[str, Any]) -> list[str]:
  """Names of the masks of images with a hard expression, a mask for each rule of the data set."""
  rules = described.get("scoring", {}).get("expression", {}).get("rules", ())
  return [f"expression_{rule}" for rule in rules]


def _walk(found: Shards, chunk: int = 1024) -> Iterator[dict[str, np.ndarray]]:
  """Yields texts, labels and masks of `chunk` records at a time, in order; decodes no image."""
  first: dict[str, tuple[int, ...]] = {}
  for start in range(0, len(found), chunk):
    rows = []
    for row in range(start, min(start + chunk, len(found))):
      record = found.record(row)
      try:
        rows.append(_labels_of(record))
        shapes = {name: np.shape(value) for name, value in rows[-1].items()}
        first = first or shapes
        if shapes != first:
          raise ValueError("the record has not the labels that the first one has")
      except ValueError as e:
        raise ValueError(f"{found.where(row)}: {e}") from e
    yield {name: np.stack([row[name] for row in rows]) for name in first}


def _labels_of(record: bytes) -> dict[str, Any]:
  """Texts, labels and masks of a serialised record."""
  feature = _parsed(record)
  vectors = [name for name in feature if name.startswith(("labels/", "mask/"))]
  places = {"key": "key"} | {
    column: name for column, names in PLACES.items() for name in names if name in feature
  }
  values: dict[str, Any] = {}
  for column, name in places.items():
    found = feature[name].int64_list if column == "frame" else feature[name].bytes_list
    if not found.value:
      raise ValueError(f"the record has no {name}")
    values[column] = found.value[0]
  values |= {name: np.array(feature[name].float_list.value, np.float32) for name in vectors}
  if not all(np.isfinite(values[name]).all() for name in vectors):
    raise ValueError("the record has a label that is no number")
  return values


def label_table(build: Any, split: str) -> dict[str, np.ndarray]:
  """Labels of a whole split, without its images; made once and kept beside it.

  Returns:
    `key` [rows] bytes; where the records have them `person` and `video` (or `clip`) [rows] bytes
    and `frame` [rows] int64; and what they hold under `labels/TASK` and `mask/TASK`: [rows, size]
    float32, in terms of the data set's own names.

  Raises:
    ValueError: no table is kept, and it cannot be made because records cannot be read.
  """
  path, found = Path(build.data_dir) / TABLE.format(split), shards(build, split)
  if kept := kept_table(build, split):
    return kept
  if path.is_file():
    print(f"{path}: damaged or of other records, so it is made anew", file=sys.stderr, flush=True)
  try:
    chunks = list(_walk(found))
  except ValueError as e:
    raise ValueError(f"the labels of {split} cannot be read, nor done without: {e}") from e
  columns = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
  packed = io.BytesIO()
  np.savez_compressed(packed, **columns)
  keep(path, packed.getvalue())
  return columns


def kept_table(build: Any, split: str) -> dict[str, np.ndarray] | None:
  """What `label_table` has kept; None: nothing, or not all of its columns and rows."""
  features = build.info.features
  names = {"key"} | {column for column, of in PLACES.items() if any(n in features for n in of)}
  for kind in (kind for kind in ("labels", "mask") if kind in features):
    names |= {f"{kind}/{name}" for name in features[kind]}
  try:
    with np.load(Path(build.data_dir) / TABLE.format(split)) as kept:
      columns = dict(kept)
  except _DAMAGED_NPZ:
    return None
  length = build.info.splits[split].num_examples
  whole = names <= set(columns) and all(len(column) == length for column in columns.values())
  return columns if whole else None


def labels(
  build: Any, split: str, wants: Mapping[str, Sequence[str]], view: View = CLEAN
) -> Labels:
  """Labels and masks of a whole split in terms of a model: what `Records.batch` gives for them.

  Args:
    build: from `builder`.
    split: its name.
    wants: task -> names of the labels that the model has.
    view: what noise and which missing tasks they are seen with.

  Returns:
    Task -> labels [rows, size], and task -> mask [rows, size] (expression, and each of its rules:
    [rows]), of the tasks that the data set has.
  """
  table, described = label_table(build, split), metadata(build)
  has = described["labels"]
  columns = view(table, has)
  out: Labels = ({}, {})
  for task in (t for t in wants if t in has):
    matrix = remap(has[task], wants[task])
    label, mask = columns[f"labels/{task}"] @ matrix, columns[f"mask/{task}"]
    if task == "expression":
      known = matrix.sum(1)[columns[f"labels/{task}"].argmax(1)]
      out[1].update(
        {name: columns[f"mask/{name}"][:, 0] * known for name in _hard_masks(described)}
      )
      mass = label.sum(1)
      label, mask = label / np.where(mass > 0, mass, 1)[:, None], mask[:, 0] * (mass > 0)
    else:
      mask = mask @ matrix
    out[0][task], out[1][task] = label, mask
  return out


def _summarise(
  columns: Mapping[str, np.ndarray], has: Mapping[str, Sequence[str]], digest: Any
) -> dict[str, Any]:
  """Counts one split and feeds its keys and labels to the digest."""
  names = sorted(name for name in columns if name not in ("key", *PLACES))
  for row, key in enumerate(columns["key"].tolist()):
    digest.update(key)
    for name in names:
      digest.update(name.encode() + columns[name][row].tobytes())
  counts: dict[str, Any] = {"images": len(columns["key"])}
  for task in (t for t in TASKS if t in has):
    label, mask = columns[f"labels/{task}"], columns[f"mask/{task}"]
    counts[task] = {"labelled": dict(zip(has[task], mask.sum(0).tolist(), strict=False))}
    if task == "expression":
      counts[task] = {"labelled": mask.sum().item(), "votes": _tally(label, mask, has[task])}
      hard = np.eye(label.shape[1])[label.argmax(1)]
      for name in (n for n in names if n.startswith("mask/expression_")):
        counts[task][name.removeprefix("mask/")] = _tally(hard, columns[name], has[task])
    elif task == "au":
      counts[task]["positive"] = dict(zip(has[task], (label * mask).sum(0).tolist(), strict=True))
  return counts


def _tally(label: np.ndarray, mask: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
  counts = (label * mask.reshape(-1, 1)).sum(0, dtype=np.float64)
  return dict(zip(classes, counts.round(1).tolist(), strict=True))


def summary(build: Any) -> dict[str, Any]:
  """Counts and fingerprint of a prepared data set; made once and kept beside it.

  Returns:
    `fingerprint`: hash over name, version, config, split sizes, keys and labels (never over shard
    bytes: they differ between builds of equal content); `splits`: split -> counts.
  """
  path = Path(build.data_dir) / SUMMARY
  if path.is_file():
    try:
      kept = read_json(path)
      if isinstance(kept.get("fingerprint"), str) and kept.get("splits", {}).keys() == set(
        build.info.splits
      ):
        return kept
      raise ValueError
    except (AttributeError, ValueError):
      print(f"{path}: damaged, so it is made anew", file=sys.stderr, flush=True)
  config = build.builder_config.name if build.builder_config else ""
  digest = hashlib.sha256(f"{build.name}/{build.version}/{config}".encode())
  splits = {}
  for split in sorted(build.info.splits):
    digest.update(f"/{split}:{len(shards(build, split))}/".encode())
    splits[split] = _summarise(label_table(build, split), metadata(build)["labels"], digest)
  result = {"fingerprint": digest.hexdigest(), "splits": splits}
  keep(path, json.dumps(result, indent=1).encode())
  return result


def store(path: Path, content: bytes) -> None:
  """Writes a file whole or, where that is an OSError, not at all."""
  partial = path.with_suffix(f".{os.getpid()}")
  try:
    partial.write_bytes(content)
    partial.rename(path)
  finally:
    partial.unlink(missing_ok=True)


def keep(path: Path, content: bytes) -> None:
  """Writes a file whole or, in a read-only or full place, not at all: it is made anew each time."""
  try:
    store(path, content)
  except OSError as e:
    if e.errno not in _NO_PLACE:
      raise


class storing:
  """What a `with` block cannot write for want of room or leave is said in one line.

  Args:
    where: the folder that it writes to.
    what: it makes, for the message.
    kept: says what of it is kept; empty: nothing is.
  """

  def __init__(
    self, where: str | os.PathLike[str], what: str, kept: Callable[[], str] = lambda: ""
  ) -> None:
    self._where, self._what, self._kept = where, what, kept

  def __enter__(self) -> "storing":
    return self

  def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
    if not isinstance(error, OSError | RuntimeError):
      return
    # ArrayRecord raises RuntimeError, with the system's text in it.
    for code in _NO_PLACE:
      if getattr(error, "errno", None) == code or os.strerror(code) in str(error):
        raise ValueError(
          f"{self._what} cannot be written to {self._where}: {os.strerror(code)}."
          f" {self._kept() or 'Nothing of it is kept'}: make room or give leave to write there, or"
          " name another place with --data_dir"
        ) from error
