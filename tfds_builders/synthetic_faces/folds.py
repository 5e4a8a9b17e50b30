"""Where expressions fold the skin, painted into the skin's texture.

The mesh has no wrinkles of its own; without them frowns, smiles and sneers are hard to see.
"""

import cv2
import numpy as np

from tfds_builders.synthetic_faces import raster

# Folds of the face at rest: polylines in the frontal plane (x, y in decimetres; the face's left
# half) and the width of the fold. Judged by eye.
LINES = {
  "frown": ([[(0.042, 7.36), (0.055, 7.43), (0.05, 7.5)]], 0.02, 0),
  "forehead": (
    [
      [(0.0, 7.76), (0.2, 7.79), (0.4, 7.77)],
      [(0.0, 7.87), (0.22, 7.90), (0.42, 7.87)],
      [(0.0, 7.98), (0.2, 8.0), (0.38, 7.98)],
    ],
    0.016,
    0,
  ),
  "nasolabial": (
    [[(0.15, 6.97), (0.19, 6.9), (0.245, 6.8), (0.29, 6.71), (0.31, 6.62)]],
    0.026,
    1,
  ),
  "cheek": ([[(0.17, 7.14), (0.27, 7.1), (0.38, 7.11), (0.47, 7.17)]], 0.022, -1),
  "crow": (
    [[(0.53, 7.30), (0.6, 7.35)], [(0.54, 7.26), (0.62, 7.26)], [(0.53, 7.21), (0.59, 7.16)]],
    0.012,
    0,
  ),
  "bridge": (
    [
      [(0.0, 7.375), (0.05, 7.365), (0.09, 7.34)],
      [(0.0, 7.29), (0.05, 7.275), (0.1, 7.23)],
      [(0.03, 7.19), (0.09, 7.14), (0.13, 7.06)],
    ],
    0.014,
    0,
  ),
  "dimple": ([[(0.31, 6.68), (0.325, 6.61), (0.31, 6.54)]], 0.018, 1),
  "marionette": ([[(0.285, 6.6), (0.3, 6.53), (0.295, 6.45)]], 0.018, 1),
  "chin": ([[(0.0, 6.43), (0.1, 6.41), (0.17, 6.36)]], 0.022, 0),
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
  for lines, width, lit in LINES.values():
    for sign in (1, -1):
      point = place[..., :2] * np.array([sign, 1], np.float32)
      away = np.stack([_distance(point, line) for line in lines])
      away = np.take_along_axis(away, np.abs(away).argmin(0)[None], 0)[0]
      valley = np.exp(-0.5 * (away / width) ** 2)
      # The flank that bulges towards the light is brighter; both, a little, where neither does.
      flank = lit * away if lit else np.abs(away)
      ridge = np.exp(-0.5 * ((flank - 2.2 * width) / width) ** 2)
      # Only the front of the face folds; the back of the head has the same x and y.
      front = np.clip((place[..., 2] - 0.9) / 0.2, 0, 1) * np.clip(point[..., 0] / 0.02 + 1, 0, 1)
      maps.append((valley - (0.2 if lit else 0.15) * ridge) * front)
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
  """Distance of points [..., 2] from a polyline, negative on its right."""
  corners = np.array(line, np.float32)
  distances = []
  for a, b in zip(corners[:-1], corners[1:], strict=True):
    step = b - a
    along = np.clip(((point - a) @ step) / (step @ step), 0, 1)
    left = (point - a) @ np.array([-step[1], step[0]])
    distance = np.linalg.norm(point - (a + along[..., None] * step), axis=-1)
    distances.append(np.where(left < 0, -distance, distance))
  distances = np.stack(distances)
  return np.take_along_axis(distances, np.abs(distances).argmin(0)[None], 0)[0]
