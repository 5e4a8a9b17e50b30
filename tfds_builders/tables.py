"""What the builders of photographs share: tables of images and labels, written row by row.

TFDS's own writer shuffles, holds a whole split in memory and, from 1 GB on, needs TensorFlow. Here
record i of a split is row i of its table, written as it is read, however large the split is.
"""

import abc
import dataclasses
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfds_builders import images, photographs, progress, shards

ROW_BYTES = 500  # of a record besides its image
READERS = 8  # threads: files are waited for, and decoding lets other threads run
CHUNK = 512  # images read ahead
BROKEN = 10  # images named in one error
EXAMPLES = 5  # of missing images and the like, named in the metadata


@dataclasses.dataclass(frozen=True)
class Table:
  """The rows of a split, in the order of their records.

  Attributes:
    source: what the user named; no link may lead out of it.
    folder: of the images.
    images: [rows] paths in it.
    keys: [rows] unique in the data set.
    labels: task -> [rows, names] float32, NaN where unlabelled; expressions are one-hot.
    fields: further features, name -> [rows].
    missing: images of rows that are left out because there is no such file.
    boxes: [rows, 4] left, top, right, bottom of the face that is cut out, in pixels of the image,
      the last two exclusive; None: images are kept byte by byte.
    notes: on rows that are left out for other reasons.
  """

  source: Path
  folder: Path
  images: Sequence[str]
  keys: Sequence[str]
  labels: Mapping[str, np.ndarray]
  fields: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
  missing: Sequence[str] = ()
  boxes: np.ndarray | None = None
  notes: Sequence[str] = ()

  def __len__(self) -> int:
    return len(self.images)

  @property
  def unlabelled(self) -> int:
    """How many rows have no label at all."""
    known = np.concatenate([~np.isnan(values) for values in self.labels.values()], 1)
    return int((~known.any(1)).sum())

  def take(self, keep: np.ndarray) -> "Table":
    """The rows where the [rows] bool array holds."""
    some = lambda column: list(itertools.compress(column, keep))
    return dataclasses.replace(
      self,
      images=some(self.images),
      keys=some(self.keys),
      labels={task: values[keep] for task, values in self.labels.items()},
      fields={name: some(column) for name, column in self.fields.items()},
      boxes=None if self.boxes is None else self.boxes[keep],
    )

  def on_disk(self) -> "Table":
    """The rows whose image is there; the others are `missing`.

    Raises:
      ValueError: none is there, or a link leads out of the source.
    """
    there = images.present(self.folder, self.images, self.source)
    if not there.any():
      raise ValueError(
        f"{self.folder}: none of the {len(self)} listed images is here (first of them:"
        f" {', '.join(self.images[:3])})"
      )
    return dataclasses.replace(
      self.take(there), missing=list(itertools.compress(self.images, ~there))
    )

  def with_faces(self) -> "Table":
    """The rows whose face can be cut out, `boxes` clipped to their images.

    Every image is decoded: what cannot be used has to be known before the first record is written.

    Raises:
      ValueError: no row is left.
    """
    found = photographs.sizes(self.folder, self.images)
    size = np.array([found[name] for name in self.images]).reshape(-1, 2)
    boxes = np.clip(self.boxes, 0, np.tile(size[:, ::-1], 2))
    table = dataclasses.replace(self, boxes=boxes)
    table = table.leave_out(~size.any(1), "their image is no whole JPEG or PNG")
    empty = (table.boxes[:, :2] >= table.boxes[:, 2:]).any(1)
    return table.leave_out(empty, "the box of the face is empty or outside the image")

  def leave_out(self, rows: np.ndarray, why: str) -> "Table":
    """The rows where the [rows] bool array does not hold; a note names some of the others.

    Raises:
      ValueError: no row is left.
    """
    if rows.all():
      raise ValueError(f"{self.folder}: no row is left of {len(self)}: {why} ({self.images[0]})")
    if not rows.any():
      return self
    names = list(itertools.compress(self.images, rows))
    more = ", ..." if len(names) > EXAMPLES else ""
    note = f"{len(names)} rows left out, {why}: {', '.join(names[:EXAMPLES])}{more}"
    return dataclasses.replace(self.take(~rows), notes=[*self.notes, note])

  @property
  def megabytes(self) -> float:
    """About what its images take, in 1e6 bytes."""
    if self.boxes is None:
      return images.megabytes(self.folder, self.images)
    width, height = (self.boxes[:, 2:] - self.boxes[:, :2]).T
    return float((width * height).sum()) * photographs.PIXEL_BYTES / 1e6

  def read(self, row: int, size: tuple[int, int] | None) -> tuple[bytes, str]:
    """The encoded image of a row, and what is wrong with it, if anything."""
    path = self.folder / self.images[row]
    try:
      encoded = images.read(path)
      if self.boxes is not None:
        return photographs.cut(str(path), encoded, self.boxes[row]), ""
      images.check(str(path), encoded, size)
    except (ValueError, OSError) as e:
      return b"", str(e)
    return encoded, ""

  def example(self, row: int, encoded: bytes) -> dict[str, Any]:
    """The record of a row. Where there is no label both label and mask are 0."""
    values = {task: column[row] for task, column in self.labels.items()}
    mask = {task: (~np.isnan(value)).astype(np.float32) for task, value in values.items()}
    mask["expression"] = np.float32(mask["expression"].any())
    return {
      "image": io.BytesIO(encoded),  # kept byte by byte
      "key": self.keys[row],
      "labels": {task: np.nan_to_num(value) for task, value in values.items()},
      "mask": mask,
      **{name: column[row] for name, column in self.fields.items()},
    }


def one_hot(indices: np.ndarray, classes: int) -> np.ndarray:
  """[rows] indices, -1 = unlabelled -> [rows, classes] float32 one-hot, NaN where unlabelled."""
  indices = np.asarray(indices)
  labels = np.eye(classes, dtype=np.float32)[indices]
  labels[indices < 0] = np.nan
  return labels


def features(
  size: tuple[int, int] | None, labels: Mapping[str, int | None], **fields: Any
) -> tfds.features.FeaturesDict:
  """The features of a `Table`'s records.

  Args:
    size: (height, width) of all images in pixels; None: each has its own.
    labels: task -> number of names; None: it is in the metadata.
    **fields: name -> feature of the table's further fields.
  """
  vector = lambda count: tfds.features.Tensor(shape=(count,), dtype=np.float32)
  shape = (*(size or (None, None)), 3)
  return tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(shape=shape, encoding_format="jpeg"),
      "key": tfds.features.Text(),
      "labels": {task: vector(count) for task, count in labels.items()},
      "mask": {task: vector(count) for task, count in labels.items()}
      | {"expression": tfds.features.Tensor(shape=(), dtype=np.float32)},
      **fields,
    }
  )


class Builder(tfds.core.GeneratorBasedBuilder):
  """Writes tables.

  Attributes:
    image_size: (height, width) in pixels that every image must have; None: any.
    published: split -> counts that others have printed, in the structure of a summary's splits.
    total: rows of all splits together that others have printed, where the splits are our own.
  """

  image_size: tuple[int, int] | None = None
  published: Mapping[str, Any] = {}
  total: int | None = None
  draws_progress = True
  _tables: Mapping[str, Table] | None = None

  @abc.abstractmethod
  def read(self, source: Path) -> dict[str, Table]:
    """Reads the lists: split -> table. May set `self.info.metadata`.

    Raises:
      ValueError: the files are not as they should be.
    """

  def megabytes(self, source: Path) -> float:
    """About what the build takes on disk, in 1e6 bytes; reads all but images kept as they are."""
    self._tables = self.read(source)
    return sum(table.megabytes + len(table) * ROW_BYTES / 1e6 for table in self._tables.values())

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Table]:
    # Not kept: it is large, and the files may be mended before the next attempt.
    found, self._tables = self._tables, None
    found = found or self.read(Path(dl_manager.manual_dir))
    self.info.metadata["missing"] = {
      split: {"count": len(table.missing), "examples": list(table.missing[:EXAMPLES])}
      for split, table in found.items()
      if table.missing
    }
    self.info.metadata["unlabelled"] = {split: table.unlabelled for split, table in found.items()}
    report = [f"{split}: {note}" for split, table in found.items() for note in table.notes]
    if self.total:
      report.append(f"{sum(map(len, found.values()))} rows in all; published: {self.total}")
    self.info.metadata["report"] = report
    return found

  def _generate_examples(self, split: str, table: Table) -> Iterator[dict[str, Any]]:
    broken: list[str] = []
    with (
      futures.ThreadPoolExecutor(READERS) as readers,
      progress.bar(range(len(table)), split) as bar,
    ):
      for start in range(0, len(table), CHUNK):
        rows = range(start, min(start + CHUNK, len(table)))
        read = readers.map(lambda row: table.read(row, self.image_size), rows)
        for row, (encoded, wrong) in zip(rows, read, strict=True):
          if wrong:
            broken.append(wrong)
          yield table.example(row, encoded)
        bar.update(len(rows))
    if broken:
      more = f"; and {len(broken) - BROKEN} more" if len(broken) > BROKEN else ""
      raise ValueError("; ".join(broken[:BROKEN]) + more)

  def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[Any]:
    """Instead of TFDS's: see the top of the file."""
    tables = self._split_generators(dl_manager)
    return [
      # Its end is where broken images are named.
      shards.write(self, split, self._generate_examples(split, table), len(table))
      for split, table in tables.items()
    ]
