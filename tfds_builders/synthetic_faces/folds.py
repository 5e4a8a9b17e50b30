"""Where expressions fold the skin, painted into the skin's texture.

The mesh has no wrinkles of its own; without them frowns, smiles and sneers are hard to see.
"""

import cv2
import numpy as np

from tfds_builders.synthetic_faces import raster

# Folds of the face at rest: polylines in the frontal plane (x, y in decimetres; the face's left
# half) and the width of the fold. Judged by eye.
LINES = {
  "frown": ([[(0.045, 7.38), (0.055, 7.44), (0.05, 7.5)]], 0.02),
  "forehead": (
    [
      [(0.0, 7.76), (0.2, 7.79), (0.4, 7.77)],
      [(0.0, 7.87), (0.22, 7.90), (0.42, 7.87)],
      [(0.0, 7.98), (0.2, 8.0), (0.38, 7.98)],
    ],
    0.016,
  ),
  "nasolabial": ([[(0.15, 7.0), (0.2, 6.93), (0.245, 6.84), (0.27, 6.75)]], 0.034),
  "cheek": ([[(0.16, 7.13), (0.26, 7.09), (0.38, 7.10), (0.48, 7.17)]], 0.03),
  "crow": (
    [[(0.53, 7.30), (0.62, 7.36)], [(0.54, 7.26), (0.64, 7.26)], [(0.53, 7.21), (0.61, 7.15)]],
    0.012,
  ),
  "bridge": (
    [
      [(0.0, 7.36), (0.05, 7.35), (0.1, 7.31)],
      [(0.0, 7.28), (0.06, 7.26), (0.11, 7.2)],
      [(0.06, 7.2), (0.12, 7.13), (0.15, 7.05)],
    ],
    0.014,
  ),
  "chin": ([[(0.0, 6.43), (0.1, 6.41), (0.17, 6.36)]], 0.022),
}
NAMES = tuple(f"{name} {side}" for name in LINES for side in ("left", "right"))


def paint(
  vertices: np.ndarray,
  triangles: np.ndarray,
  uv: np.ndarray,
  part: np.ndarray,
  shape: tuple[int, int],
) -> np.ndarray:
  """Draws the folds into the skins' texture, one plane per fold and side.

  Args:
    vertices: [vertices, 3] at rest.
    triangles: [triangles, 3].
    uv: [triangles, 3, 2].
    part: [triangles].
    shape: height and width of a skin.

  Returns:
    [height, width, folds] float32, in the order of `NAMES`: 1 at the bottom of a fold, below 0
    on its lit edge, 0 away from it.
  """
  place = _texel_positions(vertices, triangles, uv, part, max(shape))
  place = cv2.resize(place, shape[::-1], interpolation=cv2.INTER_LINEAR)
  maps = []
  for lines, width in LINES.values():
    for sign in (1, -1):
      point = place[..., :2] * np.array([sign, 1], np.float32)
      distance = np.min([_distance(point, line) for line in lines], 0)
      valley = np.exp(-0.5 * (distance / width) ** 2)
      ridge = np.exp(-0.5 * ((distance - 2.2 * width) / width) ** 2)
      # Only the front of the face folds; the back of the head has the same x and y.
      front = np.clip((place[..., 2] - 0.9) / 0.2, 0, 1) * np.clip(point[..., 0] / 0.02 + 1, 0, 1)
      maps.append((valley - 0.15 * ridge) * front)
  return np.ascontiguousarray(np.stack(maps, -1), np.float32)


def _texel_positions(
  vertices: np.ndarray, triangles: np.ndarray, uv: np.ndarray, part: np.ndarray, size: int
) -> np.ndarray:
  """Where each texel of the skin lies on the face: [size, size, 3] float32."""
  skin = part == raster.SKIN
  corners = np.arange(3 * skin.sum(), dtype=np.int32).reshape(-1, 3)
  screen = np.concatenate([uv[skin].reshape(-1, 2) * size, np.ones((corners.size, 1))], 1)
  _, shown, weights = raster.rasterise(screen.astype(np.float32), corners, size, False)
  points = vertices[triangles[skin]][shown]
  weight = np.concatenate([1 - weights.sum(-1, keepdims=True), weights], -1)
  place = (points * weight[..., None]).sum(-2)
  place[shown < 0] = -1e3
  return place.astype(np.float32)


def _distance(point: np.ndarray, line: list[tuple[float, float]]) -> np.ndarray:
  """Distance of points [..., 2] from a polyline."""
  corners = np.array(line, np.float32)
  distances = []
  for a, b in zip(corners[:-1], corners[1:], strict=True):
    along = np.clip(((point - a) @ (b - a)) / ((b - a) @ (b - a)), 0, 1)
    distances.append(np.linalg.norm(point - (a + along[..., None] * (b - a)), axis=-1))
  return np.min(distances, 0)
