"""The release of 2021: cut out faces, and a file of NumPy's for each number of their labels."""

import functools
import io
import re
import tokenize
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np

from tfds_builders import images, progress, tables
from tfds_builders.affectnet import codes

SPLITS = {"train": "train_set", "validation": "val_set"}
# Of the files of a face what each holds. `lnd`, the landmarks, is not read.
MEANINGS = {
  "exp": codes.expression,
  "val": functools.partial(codes.affect, "valence"),
  "aro": functools.partial(codes.affect, "arousal"),
}
READERS = 8  # threads: files are waited for
FILE_BYTES = 4096  # of a number, at most
# What NumPy raises where a byte is not as it was written: found by trying.
_DAMAGED = (
  EOFError,
  KeyError,
  MemoryError,
  RuntimeError,
  SyntaxError,
  SystemError,
  TypeError,
  ValueError,
  tokenize.TokenError,
)
_NAME = re.compile(r"(\d+)_exp\.npy", re.ASCII)


def read(source: Path, hint: str = "") -> dict[str, tables.Table]:
  """Reads the labels of every face and finds its image; `hint` ends an error."""
  for folder in SPLITS.values():
    if not (source / folder / "annotations").is_dir():
      raise ValueError(f"no folder {source / folder / 'annotations'}{hint}")
  return {split: _table(split, source, source / folder) for split, folder in SPLITS.items()}


def _table(split: str, source: Path, folder: Path) -> tables.Table:
  annotations = images.inside(source, folder / "annotations")
  names = [match[1] for f in annotations.iterdir() if (match := _NAME.fullmatch(f.name))]
  names = sorted(names, key=lambda name: (int(name), name))
  if not names:
    raise ValueError(f"{annotations}: no file such as 0_exp.npy is in it")
  rows = _rows(source, annotations, names)
  taken = [row for row in rows if row[1] not in codes.NO_EXPRESSION]
  if not taken:
    raise ValueError(f"{annotations}: no face has an expression")
  paths = [f"{name}.jpg" for name, *_ in taken]
  return tables.Table(
    source=source,
    folder=folder / "images",
    images=paths,
    keys=[f"{split}/{name}" for name, *_ in taken],
    labels=codes.labels([code for _, code, _ in taken], [va for *_, va in taken]),
    fields={"image_path": paths},
    notes=codes.notes([code for _, code, _ in rows if code in codes.NO_EXPRESSION]),
  ).on_disk()


def _rows(
  source: Path, folder: Path, names: list[str]
) -> list[tuple[str, int, tuple[float, float]]]:
  """Name, code of the expression, valence and arousal of each face."""
  files = [f"{name}_{kind}.npy" for name in names for kind in MEANINGS]
  there = images.present(folder, files, source)
  if not there.all():
    raise ValueError(f"{folder / files[int(there.argmin())]}: no such file")

  def row(name: str) -> tuple[str, int, tuple[float, float]]:
    expression, *va = (_label(folder, name, kind) for kind in MEANINGS)
    return name, expression, tuple(va)

  with (
    futures.ThreadPoolExecutor(READERS) as readers,
    progress.bar(names, f"labels in {folder}") as bar,
  ):
    rows = []
    for found in readers.map(row, names):
      rows.append(found)
      bar.update()
  return rows


def _label(folder: Path, name: str, kind: str) -> Any:
  path = folder / f"{name}_{kind}.npy"
  try:
    return MEANINGS[kind](number(images.read(path)))
  except ValueError as e:
    raise ValueError(f"{path}: {e}") from None
  except OSError as e:
    raise ValueError(f"{path}: {e.strerror}") from None


def number(encoded: bytes) -> str:
  """The number in an .npy file, which may be a text there, as text; nothing is unpickled.

  Raises:
    ValueError: it is no such file, or holds something else.
  """
  if len(encoded) > FILE_BYTES:
    raise ValueError(f"{len(encoded):,} bytes; a number has at most {FILE_BYTES:,}")
  try:
    value = np.lib.format.read_array(io.BytesIO(encoded), allow_pickle=False)
    found = value.item() if value.size == 1 else None
  except _DAMAGED as e:
    raise ValueError(f"no .npy file of a number ({' '.join(str(e).split())})") from None
  if found is None:
    raise ValueError(f"{value.size} numbers; expected one")
  return (found.decode("latin-1") if isinstance(found, bytes) else str(found)).strip()
