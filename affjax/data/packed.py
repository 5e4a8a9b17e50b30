"""A prepared split once more, as records that hold an image and nothing else: quicker to read.

  python -m affjax.data.packed synthetic_faces                # the encoded images, as they are
  python -m affjax.data.packed synthetic_faces --pixels=112   # decoded: 38 kB an image

TFDS's records are protocol buffers, compressed although images are, one of their fields the image.
These are kept beside them, are read in their stead (`config.data.records`), and change no sample.
They can be deleted at any time. Labels come from the table of the split.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module
from tqdm import tqdm

from affjax.data import records
from tfds_builders import shards as writing

# Of `config.data.records`; "auto" is the last of the others that is there and fits.
KINDS = ("auto", "tfds", "encoded", "pixels")
_OPTIONS = "group_size:1,uncompressed"
_CHUNK = 512  # rows that are read at a time


@dataclasses.dataclass(frozen=True)
class Encoded(records.Shards):
  """Shards whose records are encoded images."""

  def decode(self, record: bytes, out: np.ndarray) -> None:
    """Decodes a record; ValueError says what is wrong with it."""
    self._draw(record, out)


@dataclasses.dataclass(frozen=True)
class Pixels(records.Shards):
  """Shards whose records are the bytes of [height, width, 3] uint8 images of one size."""

  def decode(self, record: bytes, out: np.ndarray) -> None:
    """Copies a record; ValueError if it is not of the size that is asked for."""
    if len(record) != out.size:
      raise ValueError(f"{len(record)} bytes, expected {out.size}")
    out[:] = np.frombuffer(record, np.uint8).reshape(out.shape)


def _name(split: str, pixels: int | None) -> str:
  return f"affjax_{split}-{f'pixels{pixels}' if pixels else 'encoded'}"


def described(build: Any, split: str, pixels: int | None) -> Path:
  """The file that says which the packed shards of a split are; written last."""
  return Path(build.data_dir) / f"{_name(split, pixels)}.json"


def find(build: Any, split: str, pixels: int | None) -> records.Shards | None:
  """The packed shards of a split; None: there are none.

  Args:
    build: of a prepared data set.
    split: its name.
    pixels: height and width of decoded images; None: encoded ones.

  Raises:
    ValueError: the file that describes them cannot be read, or is not of this split.
  """
  path = described(build, split, pixels)
  if not path.is_file():
    return None
  found = records.read_json(path)
  files, lengths = found.get("files"), found.get("lengths")
  count = len(records.shards(build, split))
  if not _plain(files) or not _whole(lengths, files) or sum(lengths) != count:
    raise ValueError(
      f"{path}: expected files beside it, and their lengths, of {count} records together: delete it"
      " and pack the data set again, see `python -m affjax.data.packed --help`"
    )
  # Not written by earlier versions.
  sizes, hashes = found.get("sizes"), found.get("sha256")
  written = _whole(sizes, files) and isinstance(hashes, list) and len(hashes) == len(files)
  return (Pixels if pixels else Encoded)(
    tuple(str(path.parent / name) for name in files),
    tuple(lengths),
    (pixels, pixels) if pixels else records.image_size(build),
    tuple(zip(sizes, hashes, strict=True)) if written else (),
  )


def _plain(names: Any) -> bool:
  """Whether these are names of files, which lead out of no folder."""
  return isinstance(names, list) and all(
    isinstance(name, str) and name not in ("", "..") and name == Path(name).name for name in names
  )


def _whole(numbers: Any, files: Sequence[str]) -> bool:
  """Whether these are whole numbers, one a file."""
  return (
    isinstance(numbers, list)
    and len(numbers) == len(files)
    and all(isinstance(number, int) and number >= 0 for number in numbers)
  )


def there(build: Any, split: str) -> dict[Path, int | None]:
  """The files that describe packed shards of a split, and the `pixels` of each, see `find`."""
  name = re.compile(rf"affjax_{re.escape(split)}-(?:encoded|pixels([1-9]\d*))\.json")
  found = [(path, name.fullmatch(path.name)) for path in sorted(Path(build.data_dir).iterdir())]
  return {path: int(m[1]) if m[1] else None for path, m in found if m}


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
    ValueError: the data set is not prepared, a record cannot be read, or the disk is full.
  """
  source, folder = records.shards(build, split), Path(build.data_dir)
  if (done := find(build, split, pixels)) is not None:
    return sum(os.path.getsize(path) for path in done.paths)
  name, lengths = _name(split, pixels), writing.lengths(len(source))
  files = [f"{name}.array_record-{i:05}-of-{len(lengths):05}" for i in range(len(lengths))]
  read = _pixels(source, pixels) if pixels else _encoded(source)
  with records.storing(folder, f"the packed {split}"), contextlib.ExitStack() as undo:
    for file in files:
      undo.callback((folder / file).unlink, missing_ok=True)
    with tqdm(total=len(source), desc=f"packing {split}", unit="image", disable=None) as bar:
      start = 0
      for file, length in zip(files, lengths, strict=True):
        _write(folder / file, read, range(start, start + length), bar)
        start += length
    made = [records.fingerprint(folder / file) for file in files]
    facts = {"files": files, "lengths": lengths}
    facts |= {"sizes": [of["size"] for of in made], "sha256": [of["sha256"] for of in made]}
    # Last, so that what was interrupted is not taken for whole.
    records.store(described(build, split, pixels), json.dumps(facts).encode())
    undo.pop_all()
  return sum(facts["sizes"])


def _write(path: Path, read: Callable[[range], list[bytes]], rows: range, bar: tqdm) -> None:
  """Writes rows to a file, which is there once it is whole."""
  partial = path.with_name(f".{path.name}")
  try:
    writer = array_record_module.ArrayRecordWriter(str(partial), _OPTIONS)
    with contextlib.closing(writer):
      for start in range(rows.start, rows.stop, _CHUNK):
        part = range(start, min(start + _CHUNK, rows.stop))
        for record in read(part):
          writer.write(record)
        bar.update(len(part))
    records.Shards((str(partial),), (len(rows),)).confirm()
    partial.rename(path)
  finally:
    partial.unlink(missing_ok=True)


def _encoded(source: records.Shards) -> Callable[[range], list[bytes]]:
  def image(row: int) -> bytes:
    record = source.record(row)
    try:
      return records.image_of(record)
    except ValueError as e:
      raise ValueError(f"{source.where(row)}: {e}") from e

  return lambda rows: [image(row) for row in rows]


def _pixels(source: records.Shards, pixels: int) -> Callable[[range], list[bytes]]:
  images = records.Images(source, (pixels, pixels))

  def read(rows: range) -> list[bytes]:
    batch = images(np.array(rows))
    if (unread := records.lost(batch["index"])).size:
      raise ValueError(images.why(int(unread[0])))
    return [image.tobytes() for image in batch["image"]]

  return read


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
