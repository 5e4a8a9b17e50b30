"""Prepared data sets on disk: opened by name, read as whole batches, counted and fingerprinted.

TFDS is the catalogue (where the shards are, what a record holds); reading goes past it, because its
feature decoding costs as much as the JPEG. Nothing here imports jax or TensorFlow.
"""

import dataclasses
import errno
import fcntl
import hashlib
import importlib
import io
import json
import os
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from array_record.python import array_record_data_source
from tensorflow_datasets.proto import tf_example_pb2

import tfds_builders
from affjax.data.views import CLEAN, View
from affjax.labels import TASKS, remap

# Beside TFDS's own files: counts and fingerprint, and the labels of a split without its images.
SUMMARY = "affjax.json"
TABLE = "affjax_{}.npz"

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
    ValueError: no such data set or config.
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
  return cls(data_dir=data_dir and os.path.expanduser(data_dir), config=chosen)


def is_prepared(build: Any) -> bool:
  """Whether the builder's shards are on disk."""
  return (Path(build.data_dir) / "dataset_info.json").is_file()


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
  """The ArrayRecord files of one split, opened on first use, so that it can be sent to a worker."""

  paths: tuple[str, ...]
  lengths: tuple[int, ...]

  def __len__(self) -> int:
    return sum(self.lengths)

  def __getstate__(self) -> dict:
    return {"paths": self.paths, "lengths": self.lengths}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state)

  def read(self, rows: Sequence[int]) -> list[bytes]:
    """The serialised records of `rows`, in that order."""
    if "source" not in self.__dict__:
      self.__dict__["source"] = array_record_data_source.ArrayRecordDataSource(list(self.paths))
    # One by one: asked for a list, the source starts threads of its own, which on two cores made
    # two threads that read and decode a third slower.
    return [self.__dict__["source"][int(row)] for row in rows]

  def decode(self, record: bytes, out: np.ndarray) -> bool:
    """Decodes a record's image into [height, width, 3]; whether it could."""
    feature = tf_example_pb2.Example.FromString(record).features.feature
    return decode_into(feature["image"].bytes_list.value[0], out)

  def where(self, row: int) -> str:
    """Names the shard and the record of a row, for messages."""
    shard = int(np.searchsorted(np.cumsum(self.lengths), row, side="right"))
    return f"record {row - sum(self.lengths[:shard])} of {self.paths[shard]}"


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
  info = build.info.splits[split]
  return Shards(tuple(str(p) for p in info.filepaths), tuple(info.shard_lengths))


def metadata(build: Any) -> dict[str, Any]:
  """What the builder says of its labels: `labels` (task -> names), `scoring` (task -> rules)."""
  return json.loads((Path(build.data_dir) / "metadata.json").read_text())


@dataclasses.dataclass(frozen=True)
class Images:
  """The images of a split, read as batches: all that a worker is sent.

  Attributes:
    shards: the split's files.
    size: (height, width) in pixels; images of another size are resized with OpenCV.
  """

  shards: Shards
  size: tuple[int, int]

  def __call__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Reads and decodes one batch into a fresh buffer.

    Args:
      rows: [batch] rows of the split; -1 is padding.

    Returns:
      `image` [batch, height, width, 3] uint8 RGB (grey images have three equal channels), `index`
      [batch] int32.
    """
    rows = np.asarray(rows)
    images = np.empty((len(rows), *self.size, 3), np.uint8)
    images[rows < 0] = 0
    real = np.flatnonzero(rows >= 0)
    for i, record in zip(real, self.shards.read(rows[real]), strict=True):
      if not self.shards.decode(record, images[i]):
        raise ValueError(f"{self.shards.where(int(rows[i]))}: the image cannot be decoded")
    return {"image": images, "index": rows.astype(np.int32)}


class Records:
  """One split, read in terms of a model's labels.

  Args:
    images: of the split.
    wants: task -> names of the labels that batches hold.
    masks: further masks that they hold: `expression_strict` and the like.
    seen: labels and masks of every row, from `labels`. What it lacks comes with mask 0.
  """

  def __init__(
    self, images: Images, wants: Mapping[str, Sequence[str]], masks: Sequence[str], seen: Labels
  ) -> None:
    self.images = images
    self._sizes = {task: len(names) for task, names in wants.items()}
    self._masks = tuple(masks)
    self._seen = seen

  def __len__(self) -> int:
    return len(self.images.shards)

  def batch(self, rows: np.ndarray) -> dict[str, Any]:
    """Reads one batch.

    Args:
      rows: [batch] rows of the split; -1 is padding and comes with mask 0.

    Returns:
      What `Images` gives, and `labels` and `mask` (task -> float32; expression has one mask an
      image, va and au one a label).
    """
    return self.labelled(self.images(rows))

  def labelled(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Adds labels and masks to a batch of images."""
    rows = batch["index"]
    of = lambda kind, name, *shape: self._rows(self._seen[kind].get(name), rows, shape)
    one = lambda task, size: () if task == "expression" else (size,)
    mask = {task: of(1, task, *one(task, size)) for task, size in self._sizes.items()}
    return {
      "image": batch["image"],
      "labels": {task: of(0, task, size) for task, size in self._sizes.items()},
      "mask": mask | {name: of(1, name) for name in self._masks},
      "index": rows,
    }

  def _rows(
    self, values: np.ndarray | None, rows: np.ndarray, shape: tuple[int, ...]
  ) -> np.ndarray:
    """Rows of a column, zeros for padding and for a column that is not there."""
    if values is None:
      return np.zeros((len(rows), *shape), np.float32)
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
  if encoded[:2] == b"\xff\xd8":
    for buffer in (out, None) if out is not None else (None,):
      try:
        return simplejpeg.decode_jpeg(encoded, colorspace="RGB", buffer=buffer)
      except ValueError:
        pass  # the buffer is too small, or: simplejpeg is strict, OpenCV forgives what browsers do
  # Of no bytes at all OpenCV raises an error of its own, which does not name the file.
  image = cv2.imdecode(np.frombuffer(encoded or b"-", np.uint8), cv2.IMREAD_COLOR)
  return None if image is None else image[..., ::-1]


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
  """File -> [height, width, 3] uint8 RGB; ValueError names a file that is not an image."""
  image = decode(Path(path).read_bytes())
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
  found: Shards | None = None,
) -> Records:
  """Opens a split of a prepared data set.

  Args:
    build: from `builder`.
    split: its name.
    wants: task -> names of the labels that the model has.
    image_size: height and width of the batches' images, pixels.
    seen: from `labels` with the same `wants`, where the split is read through a view; None: the
      labels as they are.
    found: shards to read it from; None: those that TFDS wrote.
  """
  images = Images(found or shards(build, split), (image_size, image_size))
  seen = labels(build, split, wants) if seen is None else seen
  return Records(images, wants, _hard_masks(metadata(build)), seen)


def _hard_masks(described: Mapping[str, Any]) -> list[str]:
  """Names of the masks of images with a hard expression, a mask for each rule of the data set."""
  rules = described.get("scoring", {}).get("expression", {}).get("rules", ())
  return [f"expression_{rule}" for rule in rules]


def _walk(found: Shards, chunk: int = 1024) -> Iterator[dict[str, np.ndarray]]:
  """Yields texts, labels and masks of `chunk` records at a time, in order; decodes no image."""
  for start in range(0, len(found), chunk):
    columns: dict[str, list[Any]] = {}
    for record in found.read(range(start, min(start + chunk, len(found)))):
      feature = tf_example_pb2.Example.FromString(record).features.feature
      for name in (n for n in ("key", "person") if n in feature):
        columns.setdefault(name, []).append(feature[name].bytes_list.value[0])
      for name in (n for n in feature if n.startswith(("labels/", "mask/"))):
        columns.setdefault(name, []).append(np.array(feature[name].float_list.value, np.float32))
    yield {name: np.stack(column) for name, column in columns.items()}


def label_table(build: Any, split: str) -> dict[str, np.ndarray]:
  """Labels of a whole split, without its images; made once and kept beside it.

  Returns:
    `key` [rows] bytes, where the records have it `person` [rows] bytes, and what they hold under
    `labels/TASK` and `mask/TASK`: [rows, size] float32, in terms of the data set's own names.
  """
  path = Path(build.data_dir) / TABLE.format(split)
  if path.is_file():
    with np.load(path) as kept:
      # Earlier versions kept no person.
      if "person" in kept or "person" not in build.info.features:
        return dict(kept)
  chunks = list(_walk(shards(build, split)))
  columns = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
  packed = io.BytesIO()
  np.savez_compressed(packed, **columns)
  keep(path, packed.getvalue())
  return columns


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
  names = sorted(name for name in columns if name not in ("key", "person"))
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
    return json.loads(path.read_text())
  config = build.builder_config.name if build.builder_config else ""
  digest = hashlib.sha256(f"{build.name}/{build.version}/{config}".encode())
  splits = {}
  for split in sorted(build.info.splits):
    digest.update(f"/{split}:{len(shards(build, split))}/".encode())
    splits[split] = _summarise(label_table(build, split), metadata(build)["labels"], digest)
  result = {"fingerprint": digest.hexdigest(), "splits": splits}
  keep(path, json.dumps(result, indent=1).encode())
  return result


def keep(path: Path, content: bytes) -> None:
  """Writes a file whole, or in a read-only place not at all: it is made anew each time."""
  partial = path.with_suffix(f".{os.getpid()}")
  try:
    partial.write_bytes(content)
    partial.rename(path)
  except OSError as e:
    if e.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
      raise
