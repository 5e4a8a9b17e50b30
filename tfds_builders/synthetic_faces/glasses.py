"""Glasses: a frame of tubes and two lenses, rigid on the head.

They rest on the bridge of the nose and on the ears, before the eyes but behind whatever of the
brows, cheeks and hair is nearer, since they are drawn with the head's perspective and depth.
Measures are shares of the eye distance e (63 millimetres); lengths of the mesh are decimetres.
"""

import dataclasses
import functools

import cv2
import numpy as np

from tfds_builders.synthetic_faces import asset as assets
from tfds_builders.synthetic_faces import canvas, knobs, raster

# Linear albedo of frames: black, brown, silver, gold, grey, red, blue, horn; J.
COLOURS = (
  (0.008, 0.008, 0.009),
  (0.045, 0.02, 0.01),
  (0.35, 0.35, 0.37),
  (0.4, 0.27, 0.1),
  (0.09, 0.09, 0.1),
  (0.16, 0.015, 0.02),
  (0.02, 0.035, 0.11),
  (0.2, 0.11, 0.045),
)
LENS = (0.012, 0.012, 0.014)
REFLECTION = (0.95, 0.98, 1.0)
# From this tint on nothing behind the lenses counts as seen.
DARK = 0.5
OUTLINE, AROUND = 36, 6  # points of a rim, and of the section of a tube
BEFORE_CORNEA = 0.17
BRIDGE = 0.27  # gap between the lenses
CLEARANCE = 0.03


@dataclasses.dataclass(frozen=True)
class Glasses:
  """A pair of glasses, see `knobs.Eyewear`.

  Attributes:
    width: of a lens, in eye distances.
    height: of a lens, in eye distances.
    squareness: 2 for round lenses, more for rectangular ones.
    lift: how far the outer ends are raised, in eye distances.
    thickness: of the rims, in eye distances.
    colour: linear albedo of the frame.
    tint: share of the light that the lenses take.
    reflection: strength of what they mirror.
    streak: direction of that, in degrees.
  """

  width: float
  height: float
  squareness: float
  lift: float
  thickness: float
  colour: tuple[float, float, float]
  tint: float
  reflection: float
  streak: float

  @property
  def name(self) -> str:
    """What a record calls them."""
    return "dark glasses" if self.tint >= DARK else "glasses"


@dataclasses.dataclass(frozen=True)
class Built:
  """Meshes of the head's frame, and their colours."""

  frame: canvas.Mesh
  lenses: canvas.Mesh
  reflection: canvas.Mesh


def draw(rng: np.random.Generator, setting: knobs.Occluders) -> Glasses | None:
  """Draws whether there are glasses, and which."""
  if rng.random() >= setting.glasses:
    return None
  look = setting.eyewear
  dark = rng.random() < look.dark_rate
  shape = {
    name: float(getattr(look, name).draw(rng))
    for name in ("width", "height", "squareness", "lift", "thickness", "reflection", "streak")
  }
  tints = {tint: float(getattr(look, tint).draw(rng)) for tint in ("tint", "dark_tint")}
  colour = COLOURS[rng.integers(len(COLOURS))]
  return Glasses(**shape, colour=colour, tint=tints["dark_tint" if dark else "tint"])


def build(asset: assets.FaceAsset, rest: np.ndarray, glasses: Glasses) -> Built:
  """Puts glasses on a head.

  Args:
    asset: knows eyes and landmarks.
    rest: [vertices, 3] the head at rest: glasses do not move with the expression.
    glasses: which.

  Returns:
    Their meshes.
  """
  left, right = (rest[eye].mean(0) for eye in asset.eyes)
  middle, unit = (left + right) / 2, np.linalg.norm(left - right)
  outlines = [_outline(glasses, side, unit) + [middle[0], middle[1], 0] for side in (1, -1)]
  level = max(rest[eye, 2].max() for eye in asset.eyes) + BEFORE_CORNEA * unit
  # Deep-set eyes: the frame rests on what stands out.
  both = np.concatenate(outlines)
  level += np.clip((surface(rest, both) + CLEARANCE - both[:, 2]).max() - level, 0, 0.15 * unit)
  for outline in outlines:
    outline[:, 2] += level
  radius = glasses.thickness * unit / 2
  tubes = [_rim(outline, radius) for outline in outlines]
  tubes.append(_bridge(outlines, radius))
  # Ears begin where the line of the jaw does.
  ear = rest[asset.ibug[[0, 16]], 2].mean() - 0.15 * unit
  for outline, side in zip(outlines, (1, -1), strict=True):
    tubes.append(_temple(rest, outline, ear, side, radius))
  lenses = [_lens(outline) for outline in outlines]
  return Built(
    frame=_join(tubes, np.ones((2, 2, 2), np.float32)),
    lenses=_join(lenses, np.ones((2, 2, 2), np.float32)),
    reflection=_join(lenses, _mirrored(round(glasses.streak))),
  )


def surface(rest: np.ndarray, points: np.ndarray, radius: float = 0.1) -> np.ndarray:
  """How far forward a head reaches at places of the frontal plane.

  Args:
    rest: [vertices, 3].
    points: [points, 2 or more] x and y.
    radius: of the neighbourhood that counts.

  Returns:
    [points] largest z of a vertex within `radius`; of the nearest where none is so near.
  """
  x, y, z = rest.T
  near = (z > 0.3) & (x > points[:, 0].min() - radius) & (x < points[:, 0].max() + radius)
  near &= (y > points[:, 1].min() - radius) & (y < points[:, 1].max() + radius)
  return raster.reach(rest[near], points[:, :2].astype(np.float32), radius)


def _outline(glasses: Glasses, side: int, unit: float) -> np.ndarray:
  """Edge of a lens about the middle between the eyes: [points, 3], from the outer end upwards."""
  angle = np.arange(OUTLINE) * 2 * np.pi / OUTLINE
  bulge = lambda x: np.sign(x) * np.abs(x) ** (2 / glasses.squareness)
  across, up = bulge(np.cos(angle)), bulge(np.sin(angle))
  x = (BRIDGE + glasses.width * (1 + across)) / 2
  y = glasses.height / 2 * up - 0.06 + glasses.lift * np.maximum(across, 0) ** 2 * (up + 1) / 2
  # Frames bend round the face, and lean towards the cheeks.
  z = -0.11 * x**2 + 0.14 * y
  return unit * np.stack([side * x, y, z], 1)


def _tube(path: np.ndarray, sides: tuple[np.ndarray, np.ndarray], closed: bool) -> tuple:
  """A tube along [points, 3] whose section is spanned by `sides`: vertices and triangles."""
  angle = np.arange(AROUND) * 2 * np.pi / AROUND
  ring = np.cos(angle)[:, None] * sides[0][:, None] + np.sin(angle)[:, None] * sides[1][:, None]
  return (path[:, None] + ring).reshape(-1, 3), _skin_of_tube(len(path), closed)


@functools.cache
def _skin_of_tube(count: int, closed: bool) -> np.ndarray:
  """Triangles between `count` rings of points, each with the next."""
  i, j = np.meshgrid(np.arange(count if closed else count - 1), np.arange(AROUND), indexing="ij")
  at = lambda a, b: ((a % count) * AROUND + b % AROUND).ravel()
  a, b, c, d = at(i, j), at(i + 1, j), at(i + 1, j + 1), at(i, j + 1)
  return np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def _rim(outline: np.ndarray, radius: float) -> tuple:
  along = np.roll(outline, -1, 0) - np.roll(outline, 1, 0)
  forward = np.tile([0.0, 0.0, 1.0], (len(outline), 1))
  outward = np.stack([along[:, 1], -along[:, 0], np.zeros(len(along))], 1)  # their cross product
  outward /= np.linalg.norm(outward, axis=1, keepdims=True)
  return _tube(outline, (radius * outward, radius * forward), True)


def _bridge(outlines: list[np.ndarray], radius: float) -> tuple:
  # A little above the middle of the lenses' inner ends.
  inner = OUTLINE // 2 - 2
  a, b = outlines[0][inner], outlines[1][inner]
  share = np.linspace(0, 1, 7)[:, None]
  path = a + (b - a) * share
  arch = np.sin(np.pi * share[:, 0]) * np.linalg.norm(b - a)
  path[:, 1] += 0.2 * arch
  path[:, 2] += 0.15 * arch
  up, forward = (np.tile(axis, (len(path), 1)) for axis in ([0.0, 1, 0], [0.0, 0, 1]))
  return _tube(path, (1.2 * radius * up, radius * forward), False)


def _temple(rest: np.ndarray, outline: np.ndarray, ear: float, side: int, radius: float) -> tuple:
  """The arm from a rim's outer end back over the ear."""
  hinge = outline[2]
  depth = np.linspace(hinge[2], ear, 5)
  # It lies against the head before the ears, and goes on behind them.
  temple = np.abs(rest[:, 2] - (hinge[2] + ear) / 2) < 0.1
  beside = temple & (np.abs(rest[:, 1] - hinge[1]) < 0.2)
  end = np.abs(rest[beside, 0]).max(initial=abs(hinge[0])) + CLEARANCE
  across = np.minimum(abs(hinge[0]) + (end - abs(hinge[0])) * np.linspace(0, 2, len(depth)), end)
  path = np.stack([side * across, np.full(len(depth), hinge[1]), depth], 1)
  up = np.tile([0.0, 1.0, 0.0], (len(path), 1))
  out = np.tile([1.0, 0.0, 0.0], (len(path), 1))
  return _tube(path, (1.4 * radius * up, 0.7 * radius * out), False)


def _lens(outline: np.ndarray) -> tuple:
  """A fan from the middle to the rim: vertices, triangles, texture coordinates."""
  centre = outline.mean(0) + [0, 0, 0.03]
  vertices = np.concatenate([centre[None], outline])
  edge = np.arange(len(outline))
  triangles = np.stack([np.zeros_like(edge), edge + 1, (edge + 1) % len(outline) + 1], 1)
  low, high = vertices[:, :2].min(0), vertices[:, :2].max(0)
  flat = (vertices[:, :2] - low) / (high - low)
  return vertices, triangles, flat[triangles]


def _join(parts: list[tuple], texture: np.ndarray) -> canvas.Mesh:
  """Makes one mesh of several."""
  starts = np.cumsum([0] + [len(part[0]) for part in parts[:-1]])
  triangles = np.concatenate([part[1] + start for part, start in zip(parts, starts, strict=True)])
  if len(parts[0]) > 2:
    uv = np.concatenate([part[2] for part in parts]).astype(np.float32)
  else:
    uv = np.zeros((len(triangles), 3, 2), np.float32)
  vertices = np.concatenate([part[0] for part in parts]).astype(np.float32)
  return vertices, triangles.astype(np.int32), uv, texture


@functools.lru_cache(maxsize=64)
def _mirrored(degrees: int, size: int = 48) -> np.ndarray:
  """What lenses mirror: a window and a streak across, [size, size, 2] brightness and alpha."""
  axis = (np.arange(size) + 0.5) / size - 0.5
  angle = np.deg2rad(degrees)
  along = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
  streak = (np.abs(along - 0.12) < 0.09) | (np.abs(along + 0.1) < 0.03)
  alpha = cv2.GaussianBlur(streak.astype(np.float32), (0, 0), 1.5)
  alpha = 0.25 * (0.5 + axis[:, None]) + 0.75 * alpha
  return np.ascontiguousarray(np.stack([np.ones_like(alpha), alpha], -1), np.float32)
