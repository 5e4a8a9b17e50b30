"""Image files: which there are, how large they are, whether one is whole. TFDS checks nothing."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from tfds_builders import progress

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
SAMPLE = 2000  # files whose size is looked up, of however many


def check(name: str, encoded: bytes, size: tuple[int, int] | None = None) -> None:
  """Decodes an image to see that it is whole; what the file is called does not matter.

  Args:
    name: of its file, for messages.
    encoded: its bytes.
    size: (height, width) in pixels that it must have; None: any.

  Raises:
    ValueError: neither JPEG nor PNG, damaged, or of another size.
  """
  image, why = None, "it is neither JPEG nor PNG"
  if encoded.startswith(JPEG):
    try:
      # Strict, unlike OpenCV before 5, which fills what a cut file lacks with grey.
      image = simplejpeg.decode_jpeg(encoded)
    except ValueError as e:
      why = str(e)
  elif encoded.startswith(PNG):
    image, why = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR), "damaged PNG"
  if image is None:
    raise ValueError(f"{name}: not an image that can be decoded ({len(encoded)} bytes; {why})")
  if size and image.shape[:2] != size:
    height, width = image.shape[:2]
    raise ValueError(f"{name}: {width}x{height} pixels; expected {size[1]}x{size[0]}")


def present(folder: Path, names: Sequence[str]) -> np.ndarray:
  """Looks files up by name. Each folder is listed once, and only the names in it are read.

  Args:
    folder: where to look.
    names: [n] paths in it, with `/`.

  Returns:
    [n] bool.
  """
  parts = [name.rpartition("/") for name in names]
  inner = dict.fromkeys(folder for folder, _, _ in parts)
  bar = progress.bar(inner, f"looking into {folder}", "folders")
  listed = {name: _listing(folder / name) for name in bar}
  return np.array([name in listed[inside] for inside, _, name in parts], bool)


def _listing(folder: Path) -> set[str]:
  try:
    with os.scandir(folder) as entries:
      return {entry.name for entry in entries}
  except (FileNotFoundError, NotADirectoryError):
    return set()


def megabytes(folder: Path, names: Sequence[str]) -> float:
  """About how large files are together, in 1e6 bytes, from a sample of them: at most seconds."""
  sample = names[:: max(1, len(names) // SAMPLE)]
  sizes = [(folder / name).stat().st_size for name in sample]
  return sum(sizes) / max(1, len(sizes)) * len(names) / 1e6
