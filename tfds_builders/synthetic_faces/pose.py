"""How a head stands before the camera, and how the picture is cropped."""

import dataclasses

import numpy as np

from tfds_builders.synthetic_faces import asset as assets
from tfds_builders.synthetic_faces import expression, raster

SIZE = 112
# Pixels of the eyes, the nose's tip and the mouth's corners (the picture's left first) in the usual
# 112 x 112 crop of face recognition. That cropped-aligned Aff-Wild2 uses it is UNVERIFIED.
TEMPLATE = np.array(
  [
    [38.2946, 51.6963],
    [73.5318, 51.5014],
    [56.0252, 71.7366],
    [41.5493, 92.3655],
    [70.7299, 92.2041],
  ]
)
# The camera stands where the crop would fill this share of its frame's width; INFERRED.
SHARE_OF_FRAME = 0.4


@dataclasses.dataclass(frozen=True)
class Pose:
  """Where a head is: from its own frame to the camera's, to the picture; see `raster.project`."""

  turn: np.ndarray
  pivot: np.ndarray
  eyes: np.ndarray
  distance: float
  fit: complex = 1 + 0j
  offset: complex = 0j

  def project(self, vertices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places vertices of the head's frame, see `raster.project`; pixels at twice the size."""
    return raster.project(
      vertices,
      self.turn,
      self.pivot,
      self.eyes,
      self.distance,
      2 * self.fit,
      2 * self.offset,
    )


def rotation(head: np.ndarray) -> np.ndarray:
  """[3, 3] rotation of a head by yaw, pitch and roll in degrees, see `knobs.View`."""
  (cy, cp, cr), (sy, sp, sr) = np.cos(np.deg2rad(head)), np.sin(np.deg2rad(head))
  yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
  pitch = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
  roll = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
  return roll @ yaw @ pitch


@dataclasses.dataclass(frozen=True)
class Framing:
  """How a head is turned and cropped, see `knobs.View`.

  Attributes:
    head: [3] yaw, pitch, roll in degrees.
    focal: millimetres.
    turn: jitter of the crop: degrees.
    zoom: factor.
    shift: [2] eye distances.
  """

  head: np.ndarray
  focal: float
  turn: float = 0.0
  zoom: float = 1.0
  shift: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2))


def place(asset: assets.FaceAsset, rest: np.ndarray, moved: np.ndarray, framing: Framing) -> Pose:
  """Turns the head, sets up the camera and fits the five points to the template.

  Args:
    asset: knows the points' vertices.
    rest: [vertices, 3] the head at rest, which the camera stands in front of.
    moved: [vertices, 3] the head with its expression.
    framing: how it is turned and cropped.

  Returns:
    Where the head is.
  """
  eyes = np.mean([rest[eye].mean(0) for eye in asset.eyes], 0).astype(np.float64)
  distance = expression.eye_distance(asset, rest)
  # A head turns on its neck, below and behind the eyes.
  pivot = eyes - np.array([0, 0.8, 1.1]) * distance
  crop = SIZE / np.linalg.norm(TEMPLATE[1] - TEMPLATE[0]) * distance
  pose = Pose(rotation(framing.head), pivot, eyes, framing.focal / 36 * crop / SHARE_OF_FRAME)
  points = five_points(asset, moved)
  flat = pose.project(points)[1][:, :2] / 2
  fit, offset = similarity(flat, TEMPLATE)
  jitter = framing.zoom * np.exp(1j * np.deg2rad(framing.turn))
  shift = complex(*(framing.shift * np.linalg.norm(TEMPLATE[1] - TEMPLATE[0])))
  centre = complex(*TEMPLATE.mean(0))
  return dataclasses.replace(
    pose, fit=fit * jitter, offset=(offset - centre) * jitter + centre + shift
  )


def five_points(asset: assets.FaceAsset, vertices: np.ndarray) -> np.ndarray:
  """Eyes, nose's tip, mouth's corners, the picture's left first: [5, 3]."""
  left_eye, right_eye = (vertices[eye].mean(0) for eye in asset.eyes)
  rest = [vertices[asset.landmarks[name]] for name in ("nose", "right corner", "left corner")]
  return np.stack([right_eye, left_eye, *rest]).astype(np.float32)


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[complex, complex]:
  """Least-squares scale, rotation and shift, as complex numbers: target = fit * source + offset.

  Args:
    source: [points, 2].
    target: [points, 2].

  Returns:
    `fit` and `offset`.
  """
  s, t = (points[:, 0] + 1j * points[:, 1] for points in (source.astype(np.float64), target))
  fit = ((s - s.mean()).conj() * (t - t.mean())).sum() / (np.abs(s - s.mean()) ** 2).sum()
  return complex(fit), complex(t.mean() - fit * s.mean())
