"""Photographs from which faces are cut: those of web searches, of all kinds and sizes."""

from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from tfds_builders import images, progress

QUALITY = 95  # of the faces, as JPEG without subsampling
PIXEL_BYTES = 0.6  # of such a JPEG, about
READERS = 8  # threads: files are waited for, and decoding lets other threads run


def decode(encoded: bytes) -> np.ndarray:
  """A whole JPEG or PNG -> [height, width, 3] uint8 RGB; not turned by EXIF, since boxes are not.

  Raises:
    ValueError: neither, damaged, or too large.
  """
  images.measure(encoded)
  if encoded.startswith(images.JPEG):
    try:
      return simplejpeg.decode_jpeg(encoded)
    except ValueError as e:
      # What else it minds, OpenCV forgives as browsers do: stray bytes, a rare subsampling. Of what
      # a cut file lacks some versions of it make grey.
      if "Premature end" in str(e):
        raise
  try:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
  except cv2.error:
    image = None
  if image is None:
    raise ValueError("damaged")
  return image[..., ::-1]


def cut(name: str, encoded: bytes, box: np.ndarray) -> bytes:
  """The part of a photograph that is in a box, as JPEG.

  Args:
    name: of its file, for messages.
    encoded: its bytes.
    box: [4] left, top, right, bottom in pixels, the last two exclusive, inside of it.

  Raises:
    ValueError: the photograph cannot be decoded, or the box is not inside.
  """
  try:
    image = decode(encoded)
  except ValueError as e:
    raise ValueError(f"{name}: not an image that can be decoded ({e})") from None
  left, top, right, bottom = box.tolist()
  face = np.ascontiguousarray(image[top:bottom, left:right])
  if face.shape[:2] != (bottom - top, right - left):
    raise ValueError(f"{name}: it has changed since it was looked at")
  return simplejpeg.encode_jpeg(face, quality=QUALITY)


def sizes(folder: Path, names: Sequence[str]) -> dict[str, tuple[int, int]]:
  """Name -> (height, width) in pixels of each image file; (0, 0): it cannot be decoded.

  Raises:
    ValueError: a file cannot be read.
  """

  def size(name: str) -> tuple[int, int]:
    try:
      encoded = images.read(folder / name)
    except OSError as e:
      raise ValueError(f"{folder / name}: {e.strerror}") from e
    try:
      return decode(encoded).shape[:2]
    except ValueError:
      return 0, 0

  names = list(dict.fromkeys(names))
  with (
    futures.ThreadPoolExecutor(READERS) as readers,
    progress.bar(names, f"looking at {folder}") as bar,
  ):
    found = {}
    for name, measured in zip(names, readers.map(size, names), strict=True):
      found[name] = measured
      bar.update()
  return found
