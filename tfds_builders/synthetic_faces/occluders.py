"""A hand before the face: rounded fingers and a palm, painted over the picture.

It has the person's skin tone, is lit as the face is, throws a soft shadow, and goes along with the
face: it is placed by the landmarks and sized by the distance of the eyes.
"""

import dataclasses

import cv2
import numpy as np

from tfds_builders.synthetic_faces import knobs

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
  place = lambda x, y: (
    target + unit * (turn @ ((x - start[0]) * along + (y - start[1]) * across)).astype(float)
  )
  parts = [
    [(place(WRIST, 0.6 * y), place(-0.12, 0.95 * y), PALM_RADIUS * unit) for _, y in FINGERS]
  ]
  thumb = [place(*point) for point in THUMB]
  parts.append(
    [(a, b, 1.15 * FINGER_RADIUS * unit) for a, b in zip(thumb[:-1], thumb[1:], strict=True)]
  )
  for length, y in FINGERS:
    lean = np.tan(np.deg2rad(hand.spread) * y / 0.45)
    middle, end = 0.5 * length, length * (1 - 0.35 * hand.curl)
    joints = [place(x, y + lean * x) for x in (-0.12, middle, end)]
    radii = (1.08 * FINGER_RADIUS, FINGER_RADIUS)
    parts.append(
      [(a, b, radius * unit) for a, b, radius in zip(joints[:-1], joints[1:], radii, strict=True)]
    )
  return parts


def paint(
  picture: np.ndarray,
  parts: list[list[Rod]],
  albedo: np.ndarray,
  lights: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
  """Paints a hand over a picture, in place.

  Args:
    picture: [size, size, 3] float32 linear light, multiplied by its coverage.
    parts: see `bones`.
    albedo: [3] linear.
    lights: see `camera.lights`.

  Returns:
    [size, size] float32, how much of each pixel is covered.
  """
  size = len(picture)
  cover = np.zeros((size, size), np.float32)
  colour = np.zeros_like(picture)
  for rods in parts:
    ends, widest = np.stack([end for rod in rods for end in rod[:2]]), rods[0][2] + 2
    low = np.maximum(np.floor(ends.min(0) - widest), 0).astype(int)
    high = np.minimum(np.ceil(ends.max(0) + widest), size).astype(int)
    if (low >= high).any():
      continue
    box = (slice(low[1], high[1]), slice(low[0], high[0]))
    alpha, shade = _part(rods, low, high, lights)
    colour[box] += alpha[..., None] * (albedo * shade - colour[box])
    cover[box] = alpha + (1 - alpha) * cover[box]
  shadow = cv2.GaussianBlur(cover, (0, 0), 0.03 * size)
  picture *= (1 - 0.45 * shadow)[..., None]
  # `colour` began black under the first rod's soft edge, as light times coverage does.
  picture *= (1 - cover)[..., None]
  picture += colour
  return cover


def _part(
  rods: list[Rod], low: np.ndarray, high: np.ndarray, lights: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
  """Rods in the box from `low` to `high`: coverage, and light [rows, columns, 3]."""
  both, ambient = lights
  x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
  point = np.stack([x, y], -1)
  distance, away = np.full(x.shape, np.inf), np.zeros((*x.shape, 2))
  for start, end, radius in rods:
    axis = end - start
    along = np.clip((point - start) @ axis / max(axis @ axis, 1e-6), 0, 1)
    here = (point - start - along[..., None] * axis) / radius
    length = np.linalg.norm(here, axis=-1)
    nearer = length < distance
    distance = np.where(nearer, length, distance)
    away = np.where(nearer[..., None], here, away)
  alpha = np.clip((1 - distance) * rods[0][2] / 1.5 + 0.5, 0, 1)
  distance = np.minimum(distance, 1)
  # Flatter than a cylinder, as fingers are; normals in the camera's axes: right, up, towards it.
  away = 0.8 * away / np.maximum(np.linalg.norm(away, axis=-1, keepdims=True), 1)
  out = np.sqrt(1 - (away**2).sum(-1))
  normal = np.stack([away[..., 0], -away[..., 1], out], -1)
  # Between fingers little light arrives.
  sky = (1 - 0.55 * distance**4)[..., None]
  light = ambient * sky
  for lamp in both:
    light = light + np.maximum(normal @ lamp[:3] + 0.3, 0)[..., None] / 1.3 * sky * lamp[3:]
  return alpha.astype(np.float32), light.astype(np.float32)


def hidden(landmark_open: np.ndarray) -> tuple[int, ...]:
  """Numbers of the labelled units whose part of the face something stands before.

  Args:
    landmark_open: [68] bool, whether nothing does.
  """
  return tuple(
    unit for landmarks, units in REGIONS if landmark_open[landmarks].mean() < 0.5 for unit in units
  )
