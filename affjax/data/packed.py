"""A prepared split once more, as records that hold an image and nothing else: quicker to read.

  python -m affjax.data.packed synthetic_faces                # the encoded images, as they are
  python -m affjax.data.packed synthetic_faces --pixels=112   # decoded: 38 kB an image

TFDS's records are protocol buffers, compressed although images are, one of their fields the image.
These are kept beside them, are read in their stead (`config.data.records`), and change no sample.
They can be deleted at any time. Labels come from the table of the split.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2
from tqdm import tqdm

from affjax.data import records
from tfds_builders import shards as writing

# Of `config.data.records`; "auto" is the last of the others that is there and fits.
KINDS = ("auto", "tfds", "encoded", "pixels")
_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Encoded(records.Shards):
  """Shards whose records are encoded images."""

  def decode(self, record: bytes, out: np.ndarray) -> bool:
    """Decodes a record into [height, width, 3]; whether it could."""
    return records.decode_into(record, out)


@dataclasses.dataclass(frozen=True)
class Pixels(records.Shards):
  """Shards whose records are the bytes of [height, width, 3] uint8 images of one size."""

  def decode(self, record: bytes, out: np.ndarray) -> bool:
    """Copies a record; whether it is of the size that is asked for."""
    if len(record) != out.size:
      return False
    out[:] = np.frombuffer(record, np.uint8).reshape(out.shape)
    return True


def _name(split: str, pixels: int | None) -> str:
  return f"affjax_{split}-{f'pixels{pixels}' if pixels else 'encoded'}"


def find(build: Any, split: str, pixels: int | None) -> records.Shards | None:
  """The packed shards of a split; None: there are none.

  Args:
    build: of a prepared data set.
    split: its name.
    pixels: height and width of decoded images; None: encoded ones.
  """
  described = Path(build.data_dir) / f"{_name(split, pixels)}.json"
  if not described.is_file():
    return None
  found = json.loads(described.read_text())
  paths = tuple(str(described.parent / name) for name in found["files"])
  return (Pixels if pixels else Encoded)(paths, tuple(found["lengths"]))


def shards(build: Any, split: str, kind: str, image_size: int) -> records.Shards:
  """The shards that a split is read from.

  Args:
    build: of a prepared data set.
    split: its name.
    kind: one of KINDS.
    image_size: height and width of the images that are wanted.

  Raises:
    ValueError: no such kind, split, or no such records.
  """
  if kind not in KINDS:
    raise ValueError(f"config.data.records={kind!r}: use one of {', '.join(KINDS)}")
  whole = records.shards(build, split)
  known = {
    "pixels": lambda: find(build, split, image_size),
    "encoded": lambda: find(build, split, None),
    "tfds": lambda: whole,
  }
  if kind == "auto":
    return next(found for open_ in known.values() if (found := open_()))
  found = known[kind]()
  if found is None:
    config = f" --config={build.builder_config.name}" if build.builder_config else ""
    pixels = f" --pixels={image_size}" if kind == "pixels" else ""
    raise ValueError(
      f"config.data.records={kind!r}: {build.data_dir} has none of {split}: run"
      f" `python -m affjax.data.packed {build.name}{config}{pixels}`"
    )
  return found


def pack(build: Any, split: str, pixels: int | None = None) -> int:
  """Packs a split, unless that is done.

  Args:
    build: of a prepared data set.
    split: its name.
    pixels: height and width to which images are decoded and brought; None: they stay encoded.

  Returns:
    Bytes of the shards.

  Raises:
    ValueError: the data set is not prepared, or an image cannot be decoded.
  """
  source, folder = records.shards(build, split), Path(build.data_dir)
  if (there := find(build, split, pixels)) is not None:
    return sum(os.path.getsize(path) for path in there.paths)
  name, lengths = _name(split, pixels), writing.lengths(len(source))
  files = [f"{name}.array_record-{i:05}-of-{len(lengths):05}" for i in range(len(lengths))]
  read = records.Images(source, (pixels, pixels)) if pixels else None
  with tqdm(total=len(source), desc=f"packing {split}", unit="image", disable=None) as bar:
    start = 0
    for file, length in zip(files, lengths, strict=True):
      partial = folder / f".{file}"
      writer = array_record_module.ArrayRecordWriter(str(partial), _OPTIONS)
      for rows in np.array_split(np.arange(start, start + length), max(1, length // 512)):
        for record in _pixels(read, rows) if read else _encoded(source, rows):
          writer.write(record)
        bar.update(len(rows))
      writer.close()
      partial.rename(folder / file)
      start += length
  # Last, so that what was interrupted is not taken for whole.
  records.keep(folder / f"{name}.json", json.dumps({"files": files, "lengths": lengths}).encode())
  return sum((folder / file).stat().st_size for file in files)


def _encoded(source: records.Shards, rows: np.ndarray) -> list[bytes]:
  feature = lambda record: tf_example_pb2.Example.FromString(record).features.feature
  return [feature(record)["image"].bytes_list.value[0] for record in source.read(rows)]


def _pixels(read: records.Images, rows: np.ndarray) -> list[bytes]:
  return [image.tobytes() for image in read(rows)["image"]]


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m affjax.data.packed",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("name", metavar="NAME", help="a prepared data set")
  parser.add_argument("--config", default="", metavar="NAME", help="a config of the data set")
  parser.add_argument("--data_dir", metavar="FOLDER", help="where prepared data lives")
  parser.add_argument(
    "--pixels", type=int, metavar="SIZE", help="decode the images; their height and width"
  )
  arguments = parser.parse_args(argv)
  try:
    build = records.builder(arguments.name, arguments.config, arguments.data_dir)
    for split in build.info.splits or ("train",):  # of what is not prepared, `pack` says so
      size = pack(build, split, arguments.pixels)
      print(f"{split}: {size / 1e6:,.0f} MB in {build.data_dir}", flush=True)
  except ValueError as e:
    sys.exit(f"error: {e}")


if __name__ == "__main__":
  main()
