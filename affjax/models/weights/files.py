"""Files of arrays: read without unpickling anything, and what they say of themselves."""

import math
import re
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors
from safetensors.numpy import load_file

# Arrays may take this many bytes, or so many times those of their file: trained weights shrink
# little, and a file of zeros that are unpacked into memory by the thousand is no file of weights.
_UNPACKED_BYTES, _UNPACKED_TIMES = 2**28, 20
# The header of an array as numpy writes it; the dtype is of booleans, integers or floats.
_HEADER = re.compile(
  rb"\{'descr': '[<>|=]?[biuf](\d{1,2})', 'fortran_order': (?:True|False),"
  rb" 'shape': \(((?:\d{1,18}, ?)*(?:\d{1,18})?)\), \} *\n?"
)
_HEADER_BYTES = 10_000  # of one, at most
_SAFETENSORS = re.compile(r"BOOL|[IU](8|16|32|64)|B?F16|F(32|64)")  # its names of such dtypes


def read(path: str | Path) -> dict[str, np.ndarray]:
  """Reads arrays from a file in numpy's format or, by its ending, in safetensors'.

  Nothing is unpickled. What the file says of its arrays is looked at before any of them is read.

  Raises:
    ValueError: there is no such file, it is damaged, holds other than arrays of numbers, or these
      are absurdly large for its size.
  """
  path = Path(path).expanduser()
  if not path.is_file():
    raise ValueError(f"{path}: no such file; scripts/import_weights.py imports weights")
  try:
    return _read_safetensors(path) if path.suffix == ".safetensors" else _read_npz(path)
  except (
    *(ValueError, OSError, RuntimeError, EOFError),
    *(zipfile.BadZipFile, zlib.error, safetensors.SafetensorError),
  ) as e:
    kind = "a .safetensors" if path.suffix == ".safetensors" else "an .npz"
    # One line, whatever the names in the file are.
    why = "".join(c if c.isprintable() else "?" for c in str(e).partition("\n")[0])
    raise ValueError(
      f"{path}: cannot be read as {kind} file of arrays: {why or 'it ends too early'}"
    ) from e


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
  # The library holds shapes and offsets against each other and the file.
  with safetensors.safe_open(path, "numpy") as file:
    names = file.keys()
    for name in names:
      kind = file.get_slice(name).get_dtype()
      if not _SAFETENSORS.fullmatch(kind):
        raise ValueError(f"{name} is of {kind}; use floats, integers or booleans")
  return load_file(path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
  with zipfile.ZipFile(path) as archive:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
      name = member.filename.removesuffix(".npy")
      if name in members:
        raise ValueError(f"{name} is there twice")
      members[name] = member
    unpacked, size = sum(m.file_size for m in members.values()), path.stat().st_size
    if unpacked > max(_UNPACKED_BYTES, _UNPACKED_TIMES * size):
      raise ValueError(f"{size:,} bytes that would become {unpacked:,}")
    for name, member in members.items():
      if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is neither stored nor deflated")
      if member.flag_bits & 1:
        raise ValueError(f"{name} is encrypted")
      with archive.open(member) as file:
        if _size_by_header(file) != member.file_size:
          raise ValueError(f"{name} is no array of numbers, or of another size than it says")
    arrays = {}
    for name, member in members.items():
      with archive.open(member) as file:
        arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
  return arrays


def _size_by_header(file: BinaryIO) -> int | None:
  """Bytes of a file in numpy's format, by its first ones; None: it is no array of numbers."""
  start = file.read(8)
  digits = {b"\x93NUMPY\x01\x00": 2, b"\x93NUMPY\x02\x00": 4}.get(start)
  if digits is None:
    return None
  length = int.from_bytes(file.read(digits), "little")
  match = _HEADER.fullmatch(file.read(length)) if length <= _HEADER_BYTES else None
  if match is None:
    return None
  shape = [int(n) for n in re.findall(rb"\d+", match[2])]
  return 8 + digits + length + math.prod(shape) * int(match[1])
