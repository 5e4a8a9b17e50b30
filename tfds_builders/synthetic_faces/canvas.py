"""A picture in the making, at twice its size: what is near is drawn first.

The depth of the opaque parts is found first. Then come the translucent parts from near to far (hair
before brows), and last the colours of the opaque parts, where something else does not cover them.
"""

import dataclasses

import numpy as np

from tfds_builders.synthetic_faces import asset as assets
from tfds_builders.synthetic_faces import pose as poses
from tfds_builders.synthetic_faces import raster

SIZE = 2 * poses.SIZE
SKIN_GLOSS = 0.05
# Vertices, triangles, texture coordinates, texture; see `raster.layer`.
Mesh = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclasses.dataclass
class Canvas:
  """The head's opaque parts, and what is in front of them.

  Attributes:
    pose: where the head is.
    lights: see `camera.lights`.
    placed: [vertices, 3] float32 the head in the camera's axes.
    screen: [vertices, 3] float32 the head on the screen.
    depth: [224, 224] float32 inverse distance of the opaque parts.
    shown: [224, 224] int32 triangle of the head, -1 where none is.
    weights: [224, 224, 2] float32, see `raster.rasterise`.
    front: [224, 224, 3] float32 linear light of the translucent parts, multiplied by `veil`.
    veil: [224, 224] float32 in [0, 1], how much they cover.
  """

  pose: poses.Pose
  lights: tuple[np.ndarray, np.ndarray]
  placed: np.ndarray
  screen: np.ndarray
  depth: np.ndarray
  shown: np.ndarray
  weights: np.ndarray
  front: np.ndarray
  veil: np.ndarray

  def block(self, mesh: Mesh) -> None:
    """Keeps what is laid later from showing through an opaque mesh of the head's frame."""
    screen = self.pose.project(mesh[0])[1]
    self.depth = np.maximum(self.depth, raster.rasterise(screen, mesh[1], SIZE, False)[0])

  def lay(self, mesh: Mesh, colour: np.ndarray, opacity: float, bias: float) -> None:
    """Puts a translucent mesh of the head's frame behind those before, see `raster.layer`."""
    vertices, triangles, uv, texture = mesh
    placed, screen = self.pose.project(vertices)
    normals = raster.vertex_normals(placed, triangles)
    order = np.argsort(-screen[triangles, 2].sum(1), kind="stable")
    look = (uv, texture, colour, opacity, bias, *self.lights)
    raster.layer(self.front, self.veil, self.depth, screen, normals, triangles, order, *look)

  def colour(
    self,
    asset: assets.FaceAsset,
    skin: np.ndarray,
    eye: np.ndarray,
    plain: np.ndarray,
    hidden: np.ndarray,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Colours the opaque parts and lays the others over them.

    Args:
      asset: the head's mesh.
      skin: see `raster.shade`.
      eye: see `raster.shade`.
      plain: see `raster.shade`.
      hidden: [224, 224] bool, what else need not be coloured.

    Returns:
      [224, 224, 3] float32 linear light, multiplied by coverage, and [224, 224] float32 coverage.
    """
    picture, cover = np.zeros_like(self.front), np.zeros_like(self.veil)
    normals = raster.vertex_normals(self.placed, asset.triangles)
    raster.shade(
      picture,
      cover,
      self.shown,
      hidden | (self.veil > raster.FULL),
      self.weights,
      self.screen,
      normals,
      asset.occlusion,
      asset.triangles,
      asset.uv,
      asset.part,
      skin,
      eye,
      plain,
      *self.lights,
      SKIN_GLOSS,
    )
    raster.lay_over(picture, cover, self.front, self.veil)
    return picture, cover


def begin(
  asset: assets.FaceAsset,
  vertices: np.ndarray,
  pose: poses.Pose,
  lights: tuple[np.ndarray, np.ndarray],
) -> Canvas:
  """Finds where the opaque parts of a head are."""
  placed, screen = pose.project(vertices)
  depth, shown, weights = raster.rasterise(screen, asset.triangles, SIZE, True)
  front, veil = np.zeros((SIZE, SIZE, 3), np.float32), np.zeros((SIZE, SIZE), np.float32)
  return Canvas(pose, lights, placed, screen, depth, shown, weights, front, veil)
