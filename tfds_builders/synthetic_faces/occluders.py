"""A hand before the face: rounded fingers and a palm, painted over the picture.

It has the person's skin tone, is lit as the face is, throws a soft shadow, and goes along with the
face: it is placed by the landmarks and sized by the distance of the eyes.
"""

import dataclasses
import functools
import itertools

import cv2
import numpy as np

from tfds_builders.synthetic_faces import asset as assets
from tfds_builders.synthetic_faces import canvas, glasses, knobs, raster
from tfds_builders.synthetic_faces import pose as poses

PLACES = ("mouth", "cheek")
# Who covers the face: these classes and this pattern; the shares are the knobs'.
COVERING = ("sadness", "fear", "surprise", "confused")

# A hand in eye distances, which are 63 millimetres; x along the fingers, y across, 0 where the
# fingers begin; a finger's joint is in its middle. Measures: J.
FINGERS = ((0.95, -0.45), (1.12, -0.15), (1.05, 0.15), (0.8, 0.43))  # length, y
FINGER_RADIUS = 0.125
WRIST = -1.5
PALM_RADIUS = 0.24
THUMB = ((-0.95, -0.55), (-0.4, -0.85), (0.0, -0.8))

STRANDS, STEPS = 22, 12  # ribbons of a lock, and places along each

# Landmarks, and the labelled units that are seen there.
REGIONS = (
  (slice(17, 27), (1, 2, 4)),
  (slice(36, 48), (6, 7)),
  (slice(48, 68), (10, 12, 15, 23, 24, 25, 26)),
)
# Both ends, [2] in pixels each, and the radius in pixels.
Rod = tuple[np.ndarray, np.ndarray, float]


@dataclasses.dataclass(frozen=True)
class Hand:
  """A hand before the face.

  Attributes:
    place: one of `PLACES`.
    side: 1 where it comes from the right of the picture, -1 from the left.
    angle: of the fingers, in degrees up from the horizontal, before the head's tilt.
    spread: of the fingers, in degrees.
    curl: how much shorter fingers look that bend towards the face, in [0, 1].
  """

  place: str
  side: int
  angle: float
  spread: float
  curl: float

  @property
  def name(self) -> str:
    """What a record calls it."""
    return f"hand before the {self.place}"


def draw(rng: np.random.Generator, pattern: str, setting: knobs.Occluders) -> Hand | None:
  """Draws whether there is a hand, and which.

  Args:
    rng: where the choices come from.
    pattern: class and pattern of the face, such as "sadness/downcast".
    setting: distributions of the choices.
  """
  covers = any(name in COVERING for name in pattern.split("/"))
  if rng.random() >= (setting.hand_often if covers else setting.hand_seldom):
    return None
  place = PLACES[rng.integers(len(PLACES))]
  angle = setting.mouth_angle if place == "mouth" else setting.cheek_angle
  return Hand(
    place=place,
    side=1 if rng.random() < 0.5 else -1,
    angle=float(angle.draw(rng)),
    spread=float(setting.spread.draw(rng)),
    curl=float(setting.curl.draw(rng)),
  )


def bones(hand: Hand, landmarks: np.ndarray) -> list[list[Rod]]:
  """Lays out the hand on the picture.

  Args:
    hand: which.
    landmarks: [68, 2] in pixels.

  Returns:
    Palm, thumb and fingers, far to near; each of rounded rods that run into each other.
  """
  left, right = landmarks[36:42].mean(0), landmarks[42:48].mean(0)
  # A turned head brings the eyes together, but not the eyes and the mouth.
  down = np.linalg.norm(landmarks[[48, 54]].mean(0) - (left + right) / 2)
  unit = max(np.linalg.norm(right - left), down)
  tilt = np.arctan2(*(right - left)[::-1])
  cheek = 0.75 * landmarks[13 if hand.side > 0 else 3] + 0.25 * landmarks[33]
  target = landmarks[48:60].mean(0) if hand.place == "mouth" else cheek
  angle = np.deg2rad(hand.angle)
  along = np.array([-hand.side * np.cos(angle), -np.sin(angle)])
  across = np.array([-along[1], along[0]]) * hand.side
  turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
  start = np.array([0.55 if hand.place == "mouth" else 0.35, 0.0])
  # In the hand's own axes first: both ends and the radius of each rod.
  parts = [[((WRIST, 0.6 * y), (-0.12, 0.95 * y), PALM_RADIUS) for _, y in FINGERS]]
  parts.append([(a, b, 1.15 * FINGER_RADIUS) for a, b in itertools.pairwise(THUMB)])
  for length, y in FINGERS:
    lean = np.tan(np.deg2rad(hand.spread) * y / 0.45)
    joints = [(x, y + lean * x) for x in (-0.12, 0.5 * length, length * (1 - 0.35 * hand.curl))]
    radii = (1.08 * FINGER_RADIUS, FINGER_RADIUS)
    parts.append([(*ends, r) for ends, r in zip(itertools.pairwise(joints), radii, strict=True)])
  axes = unit * np.stack([along, across]) @ turn.T
  place = lambda point: target + (point - start) @ axes
  return [[(place(a), place(b), radius * unit) for a, b, radius in rods] for rods in parts]


@dataclasses.dataclass(frozen=True)
class Painted:
  """A hand that is to be laid over a picture.

  Attributes:
    light: [size, size, 3] float32 linear light, multiplied by `veil`.
    veil: [size, size] float32 how much of each pixel it covers.
    shadow: [size, size] float32 share of the light that its shadow leaves to what is behind.
  """

  light: np.ndarray
  veil: np.ndarray
  shadow: np.ndarray


def paint(
  parts: list[list[Rod]], albedo: np.ndarray, lights: tuple[np.ndarray, np.ndarray]
) -> Painted:
  """Paints a hand.

  Args:
    parts: see `bones`.
    albedo: [3] linear.
    lights: see `camera.lights`.
  """
  size = 2 * poses.SIZE
  rods = np.array([[*start, *end, radius] for part in parts for start, end, radius in part])
  starts = np.cumsum([0, *map(len, parts)])
  light, veil = raster.paint_rods(
    size, rods.astype(np.float32), starts, albedo.astype(np.float32), *lights
  )
  # So soft a shadow needs few pixels.
  small = cv2.resize(veil, (size // 4, size // 4), interpolation=cv2.INTER_AREA)
  shadow = cv2.resize(cv2.GaussianBlur(small, (0, 0), 0.0075 * size), (size, size))
  return Painted(light, veil, 1 - np.float32(0.45) * shadow)


@dataclasses.dataclass(frozen=True)
class Lock:
  """A lock of hair that falls over an eye.

  Attributes:
    side: 1 before the eye on the face's left, -1 on its right.
    width: at its end, in eye distances.
    reach: how far below the eye it ends, in eye distances.
    density: opacity of its strands.
    seed: of what sets its strands apart.
  """

  side: int
  width: float
  reach: float
  density: float
  seed: int

  @property
  def name(self) -> str:
    """What a record calls it."""
    return f"hair over the {'left' if self.side > 0 else 'right'} eye"


def draw_lock(rng: np.random.Generator, setting: knobs.Occluders) -> Lock | None:
  """Draws whether hair falls over an eye, and how."""
  if rng.random() >= setting.lock:
    return None
  look = setting.fringe
  return Lock(
    side=1 if rng.random() < 0.5 else -1,
    width=float(look.width.draw(rng)),
    reach=float(look.reach.draw(rng)),
    density=float(look.density.draw(rng)),
    seed=int(rng.integers(2**31)),
  )


def strands(asset: assets.FaceAsset, rest: np.ndarray, lock: Lock) -> canvas.Mesh:
  """Lays a lock over a head: ribbons from the parting over the forehead and down past an eye.

  Args:
    asset: knows where the eyes are.
    rest: [vertices, 3] the head at rest.
    lock: which.

  Returns:
    A mesh of the head's frame.
  """
  rng = np.random.default_rng(lock.seed)
  left, right = (rest[eye].mean(0) for eye in asset.eyes)
  unit, middle = np.linalg.norm(left - right), (left + right)[:2] / 2
  # The lock's middle: from above the forehead, out over the eye, down the cheek.
  bend = np.array([[-0.25, 1.75], [0.5, 1.35], [0.5, -lock.reach]])
  along = np.linspace(0, 1, STEPS)
  share = np.stack([(1 - along) ** 2, 2 * along * (1 - along), along**2], 1)
  place = np.linspace(-0.5, 0.5, STRANDS) + rng.normal(0, 0.04, STRANDS)
  ends = 1 + rng.normal(0, 0.07, STRANDS) - 0.12 * np.abs(place) * 2
  # Strands lie apart across the lock, more so towards its end; some are shorter.
  line = np.stack([np.interp(along[None] * ends[:, None], along, c) for c in (share @ bend).T], -1)
  line[..., 0] += place[:, None] * lock.width * (0.55 + 0.45 * along)
  line[..., 1] += 0.35 * place[:, None] * (1 - along) ** 2
  line[..., 0] += 0.02 * np.sin(4 * along + rng.uniform(0, 6, (STRANDS, 1)))
  half = lock.width / STRANDS * 2.2 * (1.1 - 0.6 * along)
  edges = np.stack([line - np.stack([half, 0 * half], -1), line + np.stack([half, 0 * half], -1)])
  edges = middle + unit * edges * [lock.side, 1]
  depth = glasses.surface(rest, edges.mean(0).reshape(-1, 2), 0.16).reshape(STRANDS, STEPS)
  # Hair stands off the skin, and hangs over hollows rather than into them.
  depth = cv2.GaussianBlur(np.maximum(depth, depth.mean()), (0, 0), 1.5)
  depth = depth + 0.08 + rng.uniform(-0.03, 0.03, (STRANDS, 1))
  depth = np.stack([depth, depth + rng.uniform(-0.05, 0.05, (STRANDS, 1))])
  vertices = np.concatenate([edges, depth[..., None]], -1).astype(np.float32)
  number = np.arange(vertices[..., 0].size).reshape(2, STRANDS, STEPS)
  a, b = number[0, :, :-1].ravel(), number[1, :, :-1].ravel()
  c, d = number[1, :, 1:].ravel(), number[0, :, 1:].ravel()
  column = rng.uniform(0, 0.85, STRANDS)
  u, v = np.broadcast_arrays(np.stack([column, column + 0.15])[..., None], along)
  flat = np.stack([u, v], -1).reshape(-1, 2)
  triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]).astype(np.int32)
  texture = _hair_texture() * np.array([1, lock.density], np.float32)
  return vertices.reshape(-1, 3), triangles, flat[triangles].astype(np.float32), texture


@functools.cache
def _hair_texture(size: int = 128) -> np.ndarray:
  """Strands side by side, thinner at their ends: [size, size, 2] brightness and alpha."""
  rng = np.random.default_rng(0)
  shade = cv2.GaussianBlur(rng.random((1, size)), (0, 0), 0.8)[0]
  bright = np.clip(0.26 + 0.7 * (shade - shade.mean()), 0.12, 0.5) * np.ones((size, 1))
  along = np.linspace(0, 1, size)[:, None]
  end = 0.8 + 0.2 * rng.random(size)
  thin = cv2.GaussianBlur(rng.random((1, size)), (0, 0), 0.8)[0]
  alpha = np.clip((end - along) / 0.12, 0, 1) * np.clip(1.7 - 1.6 * thin * along, 0, 1)
  return np.ascontiguousarray(np.stack([bright, alpha], -1), np.float32)


def hidden(landmark_open: np.ndarray) -> tuple[int, ...]:
  """Numbers of the labelled units whose part of the face something stands before.

  Args:
    landmark_open: [68] bool, whether nothing does.
  """
  return tuple(
    unit for landmarks, units in REGIONS if landmark_open[landmarks].mean() < 0.5 for unit in units
  )
