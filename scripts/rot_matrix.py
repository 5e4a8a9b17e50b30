"""What is seen of damaged data, and what is lost: a line for each kind of damage.

  python -m scripts.rot_matrix

The tiny synthetic faces are rendered to a temporary folder, 32 records a file. Each kind of damage
is done to the training split of a copy of them, which is then opened and read as training does,
with `config.data.unreadable` as "error" and as "skip", and verified.
"""

import contextlib
import dataclasses
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import jax
import numpy as np
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from affjax import experiment
from affjax.data import manifest, packed, pipeline, prepare, records
from configs import vit_mtl
from tfds_builders import shards as writing

SPLIT = "train"
FILE = 1  # of the split's files, the one that is damaged
RECORD = 5  # of that file, the one that is damaged where it is one


def faces(folder: Path) -> Any:
  """The tiny synthetic faces, rendered to a folder: three files of the training split."""
  build = records.builder("synthetic_faces", "tiny", str(folder))
  with mock.patch.object(writing, "RECORDS", 32):
    prepare.prepare(build)
    packed.pack(build, SPLIT)
  return build


def flip(path: Path, byte: int) -> None:
  """Inverts one byte of a file."""
  content = bytearray(path.read_bytes())
  content[byte] ^= 0xFF
  path.write_bytes(content)


def rewrite(folder: Path, change: Callable[[bytes], bytes]) -> None:
  """Writes a file again with one of its records changed, as a set without a manifest."""
  found = records.shards(records.builder("synthetic_faces", "tiny", str(folder)), SPLIT)
  start = sum(found.lengths[:FILE])
  content = found.read(range(start, start + found.lengths[FILE]))
  content[RECORD] = change(content[RECORD])
  writer = array_record_module.ArrayRecordWriter(found.paths[FILE], "group_size:1")
  with contextlib.closing(writer):
    for record in content:
      writer.write(record)
  Path(found.paths[FILE]).with_name(records.MANIFEST).unlink()


def with_image(encoded: bytes) -> Callable[[bytes], bytes]:
  """A change of a record: another image."""

  def change(record: bytes) -> bytes:
    example = tf_example_pb2.Example.FromString(record)
    example.features.feature["image"].bytes_list.value[0] = encoded
    return example.SerializeToString()

  return change


def jpeg(height: int, width: int) -> bytes:
  """An encoded image of that size."""
  return cv2.imencode(".jpg", np.full((height, width, 3), 90, np.uint8))[1].tobytes()


@dataclasses.dataclass(frozen=True)
class Fault:
  """A kind of damage.

  Attributes:
    make: does it to a data_dir.
    says: what the error says, as a pattern; empty: there is none, as nothing is lost.
    lost: which rows cannot be read then; empty: one of FILE, which depends on how images were
      encoded.
    at_start: whether it is met when the data are opened, not when they are read.
    kind: which records are read, see `config.data.records`.
  """

  make: Callable[[Path], object]
  says: str
  lost: tuple[int, ...] = ()
  at_start: bool = False
  kind: str = "tfds"


def file(folder: Path, pattern: str) -> Path:
  """One of the files of a prepared set."""
  (found,) = folder.glob(f"synthetic_faces/tiny/*/{pattern}")
  return found


def _cut(path: Path) -> None:
  os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
  flip(path, 136_000)  # in the middle, and in no header of ArrayRecord's


SHARD = f"synthetic_faces-{SPLIT}.array_record-0000{FILE}-of-00003"
PACKED = f"affjax_{SPLIT}-encoded.array_record-0000{FILE}-of-00003"
ROWS = tuple(range(32 * FILE, 32 * FILE + 32))
ROW = (32 * FILE + RECORD,)
FAULTS = {
  "truncated shard": Fault(lambda to: _cut(file(to, SHARD)), "were written", ROWS, True),
  "flipped byte": Fault(lambda to: _flip(file(to, SHARD)), "data hash mismatch"),
  "missing shard": Fault(lambda to: file(to, SHARD).unlink(), "No such file", ROWS, True),
  "undecodable image": Fault(
    lambda to: rewrite(to, with_image(b"no image")), "the image cannot be decoded", ROW
  ),
  "wrong-sized image": Fault(
    lambda to: rewrite(to, with_image(jpeg(80, 100))), "100x80 pixels, expected 112x112", ROW
  ),
  "broken protobuf": Fault(
    lambda to: rewrite(to, lambda record: b"\xff" * 40), "the record cannot be parsed", ROW
  ),
  "no image": Fault(lambda to: rewrite(to, lambda record: b""), "the record holds no image", ROW),
  "truncated table": Fault(lambda to: _cut(file(to, f"affjax_{SPLIT}.npz")), ""),
  "truncated summary": Fault(lambda to: _cut(file(to, records.SUMMARY)), ""),
  "packed, truncated": Fault(
    lambda to: _cut(file(to, PACKED)), "were written", ROWS, True, "encoded"
  ),
  "packed, flipped byte": Fault(
    lambda to: _flip(file(to, PACKED)), "data hash mismatch", kind="encoded"
  ),
}


def opened(data_dir: Path, unreadable: str, kind: str = "tfds") -> experiment.Data:
  """The data of the flagship's smallest run, the damaged split alone."""
  config = json.loads(vit_mtl.get_config("debug").to_json_best_effort())
  config["data"] |= {"unreadable": unreadable, "records": kind, "select": SPLIT, "report": []}
  return experiment.Data(config, str(data_dir))


def read(data: experiment.Data, workers: int = 0) -> dict[str, Any]:
  """The training split as one batch, in the order of its rows."""
  split = data.records(SPLIT)
  batches = list(pipeline.batches(split, pipeline.sequence(len(split), 32), workers=workers))
  return jax.tree.map(lambda *arrays: np.concatenate(arrays), *batches)


def outcome(data_dir: Path, fault: Fault, unreadable: str) -> str:
  """What comes of opening and reading damaged data."""
  errors, when = io.StringIO(), "at the start"
  try:
    with contextlib.redirect_stderr(errors):
      data = opened(data_dir, unreadable, fault.kind)
      when = "at the record"
      count = int((read(data)["index"] < 0).sum())
  except ValueError as e:
    return f"stops {when}: {str(e).removesuffix(f' ({records.MEND})')}"
  said = errors.getvalue().strip().partition(": skipped in")[0].partition("\n")[0]
  return f"{count} of {3 * 32} rows masked: {said}"


def verified(data_dir: Path) -> str:
  """What `--verify` says of the file that is damaged."""
  said = io.StringIO()
  with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
    whole = manifest.verify(records.builder("synthetic_faces", "tiny", str(data_dir)))
  return "nothing" if whole else " ".join(said.getvalue().splitlines()[1].split())


def main() -> None:
  """Prints the table."""
  with tempfile.TemporaryDirectory() as root:
    whole, copy = Path(root) / "whole", Path(root) / "copy"
    folder = Path(faces(whole).data_dir).relative_to(whole)
    for name, fault in FAULTS.items():
      found = {}
      for column in (*experiment.UNREADABLE, "verify"):
        shutil.copytree(whole, copy)
        fault.make(copy)
        found[column] = verified(copy) if column == "verify" else outcome(copy, fault, column)
        shutil.rmtree(copy)
      print(f"\n{name}")
      for column, text in found.items():
        short = text.replace(f"{copy / folder}/", "").replace(SHARD, "SHARD")
        print(f"  {column:6}  {short.replace(PACKED, 'PACKED')}")


if __name__ == "__main__":
  main()
