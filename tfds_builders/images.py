"""Image files: which there are, how large they are, whether one is whole. TFDS checks nothing.

Files are not trusted: what is no JPEG or PNG, or absurdly large, is refused by its first bytes,
before memory is asked for, and no link leads out of the folder that the user named.
"""

import itertools
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from tfds_builders import progress

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
PIXELS = 100_000_000  # of an image, at most: 300 MB once it is decoded
FILE_BYTES = 2**28  # of an encoded image, at most
# Segments of a JPEG that say how large it is, and markers that no length follows.
_FRAMES = {bytes([kind]) for kind in range(0xC0, 0xD0) if kind not in (0xC4, 0xC8, 0xCC)}
_ALONE = {bytes([kind]) for kind in (0x01, *range(0xD0, 0xD8))}
SAMPLE = 2000  # files whose size is looked up, of however many
FOLLOW = "AFFJAX_FOLLOW_LINKS"  # environment variable: 1 lets links lead out of the source


def read(path: str | os.PathLike[str]) -> bytes:
  """The bytes of an image file.

  Raises:
    ValueError: no regular file (a pipe would be waited for), or an absurdly large one.
    OSError: it cannot be read.
  """
  status = os.stat(path)
  if not stat.S_ISREG(status.st_mode):
    raise ValueError(f"{path}: not a regular file")
  if status.st_size > FILE_BYTES:
    raise ValueError(f"{path}: {status.st_size:,} bytes; an image has at most {FILE_BYTES:,}")
  return Path(path).read_bytes()


def measure(encoded: bytes) -> tuple[int, int]:
  """(height, width) in pixels, as the first bytes of an image say; nothing is decoded.

  What passes may be given to OpenCV, which then takes it for the JPEG or PNG that it is.

  Raises:
    ValueError: neither JPEG nor PNG, without a header, or of more than `PIXELS`.
  """
  if encoded.startswith(JPEG):
    # A JPEG whose first segment is "ft" bytes long may read on as "yp": OpenCV sees an AVIF there.
    if encoded[4:8] == b"ftyp":
      raise ValueError("it is both JPEG and AVIF")
    height, width = _measure_jpeg(encoded)
  elif encoded.startswith(PNG):
    height, width = _measure_png(encoded)
  else:
    raise ValueError("it is neither JPEG nor PNG")
  if height * width > PIXELS:
    raise ValueError(f"{width}x{height} pixels; at most {PIXELS:,} are decoded")
  return height, width


def _measure_jpeg(encoded: bytes) -> tuple[int, int]:
  try:
    height, width, *_ = simplejpeg.decode_jpeg_header(encoded, strict=False)
    return height, width
  except (ValueError, KeyError):  # damaged, or of a rare subsampling that only OpenCV reads
    at = 2
  while encoded[at : at + 1] == b"\xff":
    kind = encoded[at + 1 : at + 2]
    if kind == b"\xff" or kind in _ALONE:
      at += 1 if kind == b"\xff" else 2
    elif kind in _FRAMES and len(encoded) >= at + 9:
      return struct.unpack_from(">HH", encoded, at + 5)
    else:
      # Its length counts its own two bytes; libjpeg takes less for these.
      at += 2 + max(2, int.from_bytes(encoded[at + 2 : at + 4], "big"))
  raise ValueError("damaged JPEG")


def _measure_png(encoded: bytes) -> tuple[int, int]:
  at = len(PNG)
  if len(encoded) < at + 16 or encoded[at + 4 : at + 8] != b"IHDR":
    raise ValueError("damaged PNG")
  width, height = struct.unpack_from(">II", encoded, at + 8)
  # OpenCV 5 makes room for a chunk of 2 GB in a file of 2 kB, if the chunk says that it is so long.
  kind = b""
  while kind != b"IEND" and at + 8 <= len(encoded):
    length, kind = struct.unpack_from(">I4s", encoded, at)
    at += 12 + length
  if at > len(encoded):
    raise ValueError("damaged PNG: it ends inside a chunk")
  return height, width


def check(name: str, encoded: bytes, size: tuple[int, int] | None = None) -> None:
  """Decodes an image to see that it is whole; what the file is called does not matter.

  Args:
    name: of its file, for messages.
    encoded: its bytes.
    size: (height, width) in pixels that it must have; None: any.

  Raises:
    ValueError: neither JPEG nor PNG, damaged, or of another size.
  """
  try:
    height, width = measure(encoded)
    if not size or (height, width) == size:
      _decode(encoded)
      return
  except ValueError as e:
    raise ValueError(
      f"{name}: not an image that can be decoded ({len(encoded)} bytes; {e})"
    ) from None
  raise ValueError(f"{name}: {width}x{height} pixels; expected {size[1]}x{size[0]}")


def _decode(encoded: bytes) -> None:
  """Raises ValueError unless a JPEG or PNG is whole."""
  if encoded.startswith(JPEG):
    # Strict, unlike OpenCV before 5, which fills what a cut file lacks with grey.
    simplejpeg.decode_jpeg(encoded)
    return
  try:
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
  except cv2.error:
    image = None
  if image is None:
    raise ValueError("damaged PNG")


def inside(source: Path, path: Path) -> Path:
  """Returns a path unless a link leads out of the source by it.

  The source may be a link itself: what counts is where it leads.

  Raises:
    ValueError: names both, and how such links are followed.
  """
  if os.environ.get(FOLLOW) == "1":
    return path
  leads = Path(os.path.realpath(path))
  if not leads.is_relative_to(os.path.realpath(source)):
    raise ValueError(
      f"{path}: a link leads out of {source}, to {leads}: set {FOLLOW}=1 to follow such links, or"
      " put the files there"
    )
  return path


def present(folder: Path, names: Sequence[str], source: Path) -> np.ndarray:
  """Looks files up by name. Each folder is listed once, and only the names in it are read.

  Args:
    folder: where to look.
    names: [n] paths in it, with `/`.
    source: what it lies in, and no link may lead out of.

  Returns:
    [n] bool.

  Raises:
    ValueError: a folder, or a file of these names, is such a link.
  """
  parts = [name.rpartition("/") for name in names]
  inner = dict.fromkeys(folder for folder, _, _ in parts)
  bar = progress.bar(inner, f"looking into {folder}", "folders")
  listed = {name: _listing(inside(source, folder / name)) for name in bar}
  found = [listed[inner].get(name) for inner, _, name in parts]
  for name in dict.fromkeys(itertools.compress(names, found)):
    inside(source, folder / name)
  return np.array([link is not None for link in found], bool)


def _listing(folder: Path) -> dict[str, bool]:
  """The names in a folder, and whether each is a link."""
  try:
    with os.scandir(folder) as entries:
      return {entry.name: entry.is_symlink() for entry in entries}
  except (FileNotFoundError, NotADirectoryError):
    return {}


def megabytes(folder: Path, names: Sequence[str]) -> float:
  """About how large files are together, in 1e6 bytes, from a sample of them: at most seconds."""
  sample = names[:: max(1, len(names) // SAMPLE)]
  sizes = [(folder / name).stat().st_size for name in sample]
  return sum(sizes) / max(1, len(sizes)) * len(names) / 1e6
