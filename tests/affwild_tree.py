"""Trees as ABAW releases them, made up from a seed: every quirk of their formats, and the truth.

Each image carries its own number in its pixels, so that a test can tell from a record's image alone
which labels belong to it. Lists are written by code of its own, not by `affjax.annotations`.
"""

import dataclasses
import os
import random
from pathlib import Path

import cv2
import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from affjax.data import prepare, records

HEADER = "image,valence,arousal,expression,aus"
CLASSES = ["neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other"]
UNITS = ["AU1", "AU2", "AU4", "AU6", "AU7", "AU10", "AU12", "AU15", "AU23", "AU24", "AU25", "AU26"]
LSD_CLASSES = ["anger", "disgust", "fear", "happiness", "sadness", "surprise"]
MTL = {
  "train": "training_set_annotations.txt",
  "validation": "validation_set_annotations.txt",
  "test": "MTL_Challenge_test_set_release.txt",
}
ABAW3 = {
  "train": "MTL_Challenge/train_set.txt",
  "validation": "MTL_Challenge/validation_set.txt",
  "test": "MTL_Challenge/Multi_Task_Learning_Challenge_test_set_release.txt",
}
VIDEOS = {
  "train": ["426", "video48", "46-30-484x360_left", "10-60-1280x720", "10-60-1280x720_right"],
  "validation": ["46-30-484x360_right", "video2"],
  "test": ["video45_1", "7"],
}
BLOCK, BITS = 8, 24


@dataclasses.dataclass
class Row:
  """A line of a list. None = unlabelled; `number` is in the image's pixels."""

  line: int
  image: str
  number: int
  va: list[float | None]
  expression: int | None
  units: list[int | None]
  missing: bool


def draw(number: int, rng: np.random.Generator, height: int = 112, width: int = 112) -> bytes:
  """A JPEG with 24 bits and their complement as black and white blocks of 8x8 pixels."""
  bits = [number >> i & 1 for i in range(BITS)]
  blocks = np.array(bits + [1 - bit for bit in bits]).reshape(-1, 8)
  image = cv2.resize(rng.integers(0, 256, (7, 7, 3), np.uint8), (width, height))
  area = image[: BLOCK * len(blocks), : BLOCK * 8]
  area[:] = np.kron(blocks, np.ones((BLOCK, BLOCK)))[..., None] * 180 + rng.integers(0, 70, 3)
  return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 96))])[
    1
  ].tobytes()


def number_of(image: np.ndarray) -> int:
  """The number in the pixels of [height, width, 3] uint8."""
  blocks = image[: BLOCK * 6, : BLOCK * 8].reshape(6, BLOCK, 8, BLOCK, 3)
  bits = (blocks[:, 2:6, :, 2:6].mean((1, 3, 4)) > 125).astype(int).ravel().tolist()
  assert [1 - bit for bit in bits[BITS:]] == bits[:BITS], "these pixels hold no number"
  return sum(bit << i for i, bit in enumerate(bits[:BITS]))


def write_files(files: dict[Path, bytes], shuffle: random.Random) -> None:
  """Creates files in random order: nothing may depend on the order of a folder."""
  paths = list(files)
  shuffle.shuffle(paths)
  for path in paths:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(files[path])


def write_mtl(
  folder: Path,
  seed: int = 0,
  lists: dict[str, str] = MTL,
  images: str = "cropped_aligned",
  newline: str = "\n",
  frames: int = 12,
  splits: tuple[str, ...] = ("train", "validation", "test"),
) -> dict[str, list[Row]]:
  """Writes lists and images of an MTL challenge; returns split -> rows of its list."""
  shuffle, rng = random.Random(seed), np.random.default_rng(seed)
  files: dict[Path, bytes] = {}
  truth = {}
  for split in splits:
    rows: list[Row] = []
    for video in VIDEOS[split]:
      rows += _video(video, frames, shuffle, labelled=split != "test")
    for line, row in enumerate(rows, 2):
      row.line = line
    numbers = {image: shuffle.getrandbits(BITS) for image in sorted({row.image for row in rows})}
    gone = set(shuffle.sample(sorted(numbers), 3))
    # More images than the list has: frames before, between and after.
    extra = {f"{video}/{k:05d}.jpg" for video in VIDEOS[split] for k in (1, 5, 99999)}
    numbers |= {image: shuffle.getrandbits(BITS) for image in sorted(extra - set(numbers))}
    for row in rows:
      row.number, row.missing = numbers[row.image], row.image in gone
    files |= {
      folder / images / image: draw(number, rng)
      for image, number in numbers.items()
      if image not in gone
    }
    end = "," * (split == "test" and seed % 2)
    text = [
      HEADER,
      *((_line(row, shuffle) if split != "test" else row.image) + end for row in rows),
    ]
    files[folder / lists[split]] = "".join(line + newline for line in text).encode()
    truth[split] = rows
  write_files(files, shuffle)
  return truth


def _video(video: str, frames: int, shuffle: random.Random, labelled: bool) -> list[Row]:
  """Rows of one video: frames increase with irregular gaps, some come twice."""
  rows, frame = [], 0
  for place in range(frames):
    frame += shuffle.choice([1, 1, 2, 6, 58])
    row = Row(0, f"{video}/{frame:05d}.jpg", 0, [None] * 2, None, [None] * 12, False)
    if labelled:
      _label(row, place, shuffle)
    rows.append(row)
    if place % 5 == 1:  # an exact copy
      rows.append(dataclasses.replace(row))
    if labelled and place % 5 == 3:  # the same image with other labels
      rows.append(dataclasses.replace(row))
      _label(rows[-1], 5, shuffle)
  return rows


def _label(row: Row, place: int, shuffle: random.Random) -> None:
  """Labels by turns: all, without expression, valence alone, arousal alone, part of the units,
  expression alone, none."""
  value = lambda: round(shuffle.uniform(-1, 1), shuffle.choice([1, 3, 13]))
  kind = place % 7
  row.va = [
    value() if kind in (0, 1, 2, 4) else None,
    value() if kind in (0, 1, 3, 4) else None,
  ]
  row.expression = shuffle.randrange(8) if kind in (0, 2, 4, 5) else None
  row.units = [shuffle.randrange(2) if kind in (0, 1, 3, 4) else None for _ in UNITS]
  if kind == 4:
    for unit in shuffle.sample(range(12), 5):
      row.units[unit] = None


def _line(row: Row, shuffle: random.Random) -> str:
  va = [shuffle.choice(["-5", "-5.0"]) if v is None else repr(v) for v in row.va]
  integers = [str(-1 if v is None else v) for v in (row.expression, *row.units)]
  return ",".join([row.image, *va, *integers])


def counts(rows: list[Row]) -> dict:
  """What `prepare` should count in the rows of a split whose image is there."""
  rows = [row for row in rows if not row.missing]
  known = lambda values: sum(value is not None for value in values)
  units = list(zip(*(row.units for row in rows), strict=True))
  return {
    "images": len(rows),
    "va": {
      "labelled": {n: known(r.va[i] for r in rows) for i, n in enumerate(("valence", "arousal"))}
    },
    "expression": {
      "labelled": known(row.expression for row in rows),
      "votes": {n: sum(r.expression == i for r in rows) for i, n in enumerate(CLASSES)},
    },
    "au": {
      "labelled": {name: known(column) for name, column in zip(UNITS, units, strict=True)},
      "positive": {name: column.count(1) for name, column in zip(UNITS, units, strict=True)},
    },
  }


def write_lsd(folder: Path, seed: int = 0, anger: str = "ANGRER", test: str = "test_set") -> dict:
  """Writes an LSD tree; returns split -> path in the split's folder -> (class or None, number)."""
  shuffle, rng = random.Random(seed), np.random.default_rng(seed)
  files, truth = {}, {}
  size = lambda: (int(rng.integers(48, 130)), int(rng.integers(64, 130)))
  for split, root in (
    ("train", "training_set_synthetic_images"),
    ("validation", "validation_set_real_images"),
  ):
    truth[split] = {}
    for index, name in enumerate(LSD_CLASSES):
      inner = anger if name == "anger" else name.upper()
      for k in range(3 + index):
        number = shuffle.getrandbits(BITS)
        path = f"{inner}/{k}.jpg"  # the same file names in every class
        truth[split][path] = (name, number)
        files[folder / root / path] = draw(number, rng, *size())
  truth["test"] = {f"{k}.jpg": (None, shuffle.getrandbits(BITS)) for k in range(12)}
  files |= {folder / test / n: draw(x, rng, *size()) for n, (_, x) in truth["test"].items()}
  text = "image,expression\n" + "".join(f"{name}\n" for name in truth["test"])
  files[folder / "LSD_Challenge_test_set_release.txt"] = text.encode()
  write_files(files, shuffle)
  return truth


def write_folder(
  folder: Path, text: str | bytes, images=("a.jpg", "b.jpg", "c.jpg"), name: str = "labels.csv"
) -> Path:
  """Writes a folder of images, which carry the numbers 1, 2, ..., and a CSV with this text."""
  folder.mkdir(exist_ok=True)
  rng = np.random.default_rng(0)
  for number, image in enumerate(images, 1):
    (folder / image).parent.mkdir(parents=True, exist_ok=True)
    (folder / image).write_bytes(draw(number, rng, 50 + number, 70))
  (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
  return folder


class _Shuffled:
  """What os.scandir returns, in another order."""

  def __init__(self, entries: list) -> None:
    self._entries = iter(entries)

  def __enter__(self) -> "_Shuffled":
    return self

  def __exit__(self, *unused: object) -> None:
    pass

  def __iter__(self) -> "_Shuffled":
    return self

  def __next__(self) -> os.DirEntry:
    return next(self._entries)

  def close(self) -> None:
    pass


def shuffle_folders(monkeypatch, seed: int) -> None:
  """Lets every way of listing a folder give its files in another order, and anew each time."""
  shuffle = random.Random(seed)
  mixed = lambda found: shuffle.sample(found := list(found), len(found))
  scandir, listdir, glob, iterdir = os.scandir, os.listdir, Path.glob, Path.iterdir
  monkeypatch.setattr(os, "scandir", lambda path=".": _Shuffled(mixed(scandir(path))))
  monkeypatch.setattr(os, "listdir", lambda path=".": mixed(listdir(path)))
  monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(mixed(glob(self, pattern))))
  monkeypatch.setattr(Path, "iterdir", lambda self: iter(mixed(iterdir(self))))


def prepared(name: str, source: Path, data_dir: Path, config: str = ""):
  """Prepares a data set from a tree: its builder and its summary."""
  build = records.builder(name, config, str(data_dir))
  return build, prepare.prepare(build, str(source))


def stored(build, split: str) -> list[dict]:
  """The records of a split as they lie on disk: feature -> list of values."""
  found = records.shards(build, split)
  examples = map(tf_example_pb2.Example.FromString, found.read(range(len(found))))
  kinds = ("bytes_list", "float_list", "int64_list")
  value = lambda feature: next(
    list(getattr(feature, k).value) for k in kinds if feature.HasField(k)
  )
  return [{n: value(f) for n, f in e.features.feature.items()} for e in examples]


def number_in(encoded: bytes) -> int:
  """The number in an encoded image."""
  return number_of(cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR))
