"""The 68 landmarks of iBUG (300-W) as vertices of the mesh.

They are points of the head in space, chosen once by looking at renders: the line of the jaw stays
on the bone when the head turns, and does not slide along the outline as an annotator's would.
"""

from collections.abc import Mapping

import numpy as np

from tfds_builders.synthetic_faces import raster

# Vertices of MakeHuman's base mesh (hm08) on the face's right, which is the left of a picture, in
# the order of iBUG; the other side is their mirror. A pair stands for the point in the middle.
JAW = (5754, 868, 5238, 5242, 895, 893, 917, 5221)  # from the ear to beside the chin
CHIN = 5171
BROW = (211, 179, (178, 176), (176, 180), 181)  # from the outer end inwards
NOSE = (132, 131, 201, 297)  # from between the eyes to the tip
NOSTRIL = (358, 285)
UNDER_NOSE = 317
# Outer corner, upper lid, inner corner, lower lid. A lid's edge is three millimetres thick: middle.
EYE = (1090, (1081, 1055), (1099, 1073), 1104, (1096, 1070), (1094, 1068))
OUTER_LIP = (422, 5351, 460)  # the corner, upwards to the bow
BOW, UNDER_LIP = 455, 492
LOWER_LIP = ((486, 480), 406)  # from beside the middle to the corner
INNER_LIP = (446, 470)  # where the lips part, then the upper one
INNER_UPPER, INNER_LOWER = 474, 493
INNER_BELOW = 482

# Seen from the side: how far in front (decimetres) the edge of the jaw is how high. It begins at
# the ears. And where the forehead ends.
JAW_LINE = ((0.68, 0.8, 1.0, 1.2, 1.4, 1.6), (6.75, 6.55, 6.38, 6.28, 6.22, 6.2))
HAIRLINE = 8.1
# A landmark counts as seen when nothing is this far (decimetres) before it.
TOLERANCE = 0.06

# Which landmark is which one's mirror image.
MIRROR = np.array(
  [
    *range(16, -1, -1),
    *range(26, 16, -1),
    *range(27, 31),
    *range(35, 30, -1),
    *(45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40),
    *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),
    *(64, 63, 62, 61, 60, 67, 66, 65),
  ]
)


def vertices(number: Mapping[int, int], rest: np.ndarray) -> np.ndarray:
  """Finds the vertices of the landmarks.

  Args:
    number: vertex of the base mesh -> row of `rest`.
    rest: [vertices, 3] the head at rest, symmetric.

  Returns:
    [68, 2] rows of `rest` in the order of iBUG; a landmark is the middle of its two.
  """
  chosen = {
    **dict(enumerate((*JAW, CHIN))),
    **dict(enumerate(BROW, 17)),
    **dict(enumerate((*NOSE, *NOSTRIL, UNDER_NOSE), 27)),
    **dict(enumerate(EYE, 36)),
    **dict(enumerate((*OUTER_LIP, BOW), 48)),
    **dict(enumerate((UNDER_LIP, *LOWER_LIP), 57)),
    **dict(enumerate((*INNER_LIP, INNER_UPPER), 60)),
    **dict(enumerate((INNER_LOWER, INNER_BELOW), 66)),
  }
  found = np.empty((68, 2), np.int64)
  for landmark, pair in chosen.items():
    for column, name in enumerate(np.broadcast_to(pair, 2)):
      row = number[int(name)]
      mirrored = np.abs(rest - rest[row] * [-1, 1, 1]).max(1).argmin()
      # In this order: a landmark in the middle is its own mirror image.
      found[MIRROR[landmark], column] = mirrored
      found[landmark, column] = row
  return found


def face(vertices: np.ndarray, triangles: np.ndarray, part: np.ndarray) -> np.ndarray:
  """Tells the face from ears, neck and scalp.

  Args:
    vertices: [vertices, 3] the head at rest.
    triangles: [triangles, 3].
    part: [triangles] see `raster`.

  Returns:
    [triangles] bool: eyes, the mouth's inside, and the skin in front of the ears, above the line of
    the jaw and below where most hair begins.
  """
  _, height, depth = vertices[triangles].mean(1).T
  jaw = np.interp(depth, *JAW_LINE)
  skin = (part == raster.SKIN) & (depth > JAW_LINE[0][0]) & (height > jaw) & (height < HAIRLINE)
  return skin | np.isin(part, (raster.EYE, raster.MOUTH, raster.TEETH, raster.TONGUE))


def seen(screen: np.ndarray, depth: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Which points lie in the picture with nothing before them.

  Args:
    screen: [points, 3] float32, see `raster`.
    depth: [size, size] float32 inverse distance of the head and what is on it.
    free: [size, size] share of each pixel that no occluder hides.

  Returns:
    [points] bool, with neither the head itself nor an occluder before them; and with no occluder,
    whatever of the head is.
  """
  column, row = (np.floor(screen[:, axis]).astype(int) for axis in (0, 1))
  size = len(depth)
  inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
  place = np.clip(row, 0, size - 1), np.clip(column, 0, size - 1)
  unhidden = inside & (free[place] > 0.5)
  return unhidden & (1 / screen[:, 2] < 1 / np.maximum(depth[place], 1e-6) + TOLERANCE), unhidden
