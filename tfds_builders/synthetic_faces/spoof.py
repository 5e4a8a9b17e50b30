"""Faces that are not there: photographs on paper, screens, and cut-out masks held to a camera.

Cues of presentation attacks for learning liveness: what was rendered is shown again by a flat
thing, before a background of its own, and only then seen by the (faulty) camera. The face keeps
its place, for a detector would crop a picture of a face as it crops a face.
"""

import dataclasses

import cv2
import numpy as np

from tfds_builders.synthetic_faces import camera, knobs

KINDS = ("print", "screen", "cut-out")
PAPER = np.array([0.8, 0.79, 0.76], np.float32)
INK = np.array([0.045, 0.04, 0.045], np.float32)  # the darkest that print gets
EYES = (slice(36, 42), slice(42, 48))


@dataclasses.dataclass(frozen=True)
class Spoof:
  """How a face is shown again.

  Attributes:
    kind: one of `KINDS`.
    margins: [4] where the thing's edge lies: pixels from the picture's left, top, right and bottom
      edge; less than 0 is outside.
    tilt: of its edges, degrees.
    bend: of paper about an upright axis: largest shift of what it shows, in pixels.
    grain: strength of the halftone, or of a screen's pattern.
    pitch: pixels per dot of it.
    angle: of it, degrees.
    wash: how much paler than the original, in [0, 1].
    glare: [3] strength and place (x, y as shares of the picture) of a reflection.
    holes: whether a cut-out is a whole sheet with holes for living eyes.
    seed: of the background behind.
  """

  kind: str
  margins: np.ndarray
  tilt: float
  bend: float
  grain: float
  pitch: float
  angle: float
  wash: float
  glare: np.ndarray
  holes: bool
  seed: int


@dataclasses.dataclass(frozen=True)
class Shown:
  """A picture of a picture.

  Attributes:
    light: [112, 112, 3] float32 linear light.
    landmarks: [68, 2] float32 in pixels.
    inside: [68] bool, whether a landmark is on what is shown, within its edge.
    face: [28, 28] uint8 face mask, without what is cut off.
  """

  light: np.ndarray
  landmarks: np.ndarray
  inside: np.ndarray
  face: np.ndarray


def draw(rng: np.random.Generator, setting: knobs.Spoof) -> Spoof | None:
  """Draws whether the face is a spoof, and which."""
  chances = np.array([setting.print, setting.screen, setting.cut_out])
  kind = int(np.searchsorted(np.cumsum(chances), rng.random(), side="right"))
  if kind == len(KINDS):
    return None
  margins = setting.margin.draw(rng, 4)
  # Two sides at least show: else nothing tells paper or screen from a window.
  shown = rng.permutation(4)[:2]
  margins[shown] = np.abs(margins[shown]) + 1.5
  screen = KINDS[kind] == "screen"
  return Spoof(
    kind=KINDS[kind],
    margins=margins,
    tilt=float(setting.tilt.draw(rng)),
    bend=0.0 if screen else float(setting.bend.draw(rng)),
    grain=float((setting.moire if screen else setting.halftone).draw(rng)),
    pitch=float((setting.screen_pitch if screen else setting.print_pitch).draw(rng)),
    angle=float(rng.uniform(-20, 20) if screen else rng.choice([15, 45, 75])),
    wash=float(setting.wash.draw(rng)),
    glare=np.array([setting.glare.draw(rng), *rng.uniform(0, 1, 2)]),
    holes=bool(rng.random() < setting.holes),
    seed=int(rng.integers(2**31)),
  )


def show(spoof: Spoof, light: np.ndarray, points: np.ndarray, face: np.ndarray) -> Shown:
  """Shows a rendered face again.

  Args:
    spoof: how.
    light: [112, 112, 3] float32 linear light.
    points: [68, 2] float32 landmarks, in pixels.
    face: [28, 28] uint8 face mask.

  Returns:
    What the camera sees. Paper that bends moves landmarks and mask along.
  """
  size = len(light)
  rng = np.random.default_rng(spoof.seed)
  behind = cv2.GaussianBlur(camera.draw_background(rng, size), (0, 0), 1.5)
  shift = spoof.bend * _bow(np.arange(size) + 0.5, size)
  bent = _shift_rows(light, shift)
  shown = _screen(spoof, bent) if spoof.kind == "screen" else _print(spoof, bent)
  moved = points + _moved(spoof, points, size)
  sheet, border = _sheet(spoof, size)
  if spoof.kind == "cut-out" and not spoof.holes:
    sheet, border = _outline(moved, size)
  edge = np.array([0.006, 0.006, 0.007], np.float32) if spoof.kind == "screen" else PAPER
  seen = shown + (edge - shown) * border[..., None]
  shadow = cv2.GaussianBlur(sheet, (0, 0), 3)
  seen = behind * (1 - 0.5 * shadow)[..., None] * (1 - sheet[..., None]) + seen * sheet[..., None]
  if spoof.kind == "cut-out" and spoof.holes:
    seen = _living_eyes(seen, bent, moved)
  kept = sheet * (1 - border)
  column, row = np.clip(np.floor(moved), 0, size - 1).astype(int).T
  face = _shift_rows(face.astype(np.float32), shift[2::4] / 4)
  face = face * cv2.resize(kept, face.shape[::-1], interpolation=cv2.INTER_AREA)
  return Shown(
    light=seen.astype(np.float32),
    landmarks=moved.astype(np.float32),
    inside=kept[row, column] > 0.5,
    face=np.round(face).astype(np.uint8),
  )


def _bow(x: np.ndarray, size: int) -> np.ndarray:
  """How far paper bent about its middle shifts what it shows, from -1 to 1, along the picture."""
  return np.sin(2 * np.pi * (x / size - 0.5)).astype(np.float32)


def _moved(spoof: Spoof, points: np.ndarray, size: int) -> np.ndarray:
  """Shift of points by the bend: [points, 2]; the inverse of `_shift_rows`, by two steps."""
  x = points[:, 0]
  for _ in range(4):
    x = points[:, 0] - spoof.bend * _bow(np.clip(x, 0, size), size)
  return np.stack([x - points[:, 0], np.zeros_like(x)], 1)


def _shift_rows(image: np.ndarray, shift: np.ndarray) -> np.ndarray:
  """Reads each column `shift` pixels further to the right."""
  size = len(image)
  x = np.broadcast_to(np.arange(size, dtype=np.float32) + shift, (size, size))
  y = np.broadcast_to(np.arange(size, dtype=np.float32)[:, None], (size, size))
  return cv2.remap(
    image,
    np.ascontiguousarray(x, np.float32),
    np.ascontiguousarray(y),
    cv2.INTER_LINEAR,
    borderMode=cv2.BORDER_REPLICATE,
  )


def _waves(angle: float, pitch: float, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Phases of a grid of dots: along and across `angle`, [size, size] each."""
  axis = np.arange(size) + 0.5
  turn = np.deg2rad(angle)
  along = np.cos(turn) * axis[None, :] + np.sin(turn) * axis[:, None]
  across = np.cos(turn) * axis[:, None] - np.sin(turn) * axis[None, :]
  return 2 * np.pi * along / pitch, 2 * np.pi * across / pitch


def _print(spoof: Spoof, light: np.ndarray) -> np.ndarray:
  """Ink on paper: few tones, pale colours, a halftone, and the shade of its bend."""
  values = camera.develop(light)
  grey = values.mean(-1, keepdims=True)
  values = values + spoof.wash * (0.45 * (grey - values) + 0.2 * (0.62 - values))
  # Each ink has its own screen, turned by 30 degrees.
  dots = np.stack(
    [
      np.cos(a) * np.cos(b)
      for a, b in (_waves(spoof.angle + turn, spoof.pitch, len(light)) for turn in (0, 30, 60))
    ],
    -1,
  )
  # Dots show most where half of the paper is covered.
  values = values + spoof.grain * dots * 4 * values * (1 - values)
  paper = INK + (PAPER - INK) * np.clip(values, 0, 1) ** 2.2
  turned = np.cos(2 * np.pi * (np.arange(len(light)) / len(light) - 0.5))
  paper = paper * (1 + 0.06 * spoof.bend * turned)[None, :, None]
  return (paper + _glare(spoof, 0.35)).astype(np.float32)


def _screen(spoof: Spoof, light: np.ndarray) -> np.ndarray:
  """A display: its pixels beat with the camera's, blacks glow, white is bluish, glass mirrors."""
  size = len(light)
  light = light * (1 - 0.3 * spoof.wash) + 0.05 * spoof.wash
  along, across = _waves(spoof.angle, spoof.pitch, size)
  # The lens bends the beat's fringes.
  axis = (np.arange(size) + 0.5) / size - 0.5
  bow = 2.5 * (axis[None, :] ** 2 + axis[:, None] ** 2)
  # Red, green and blue lie side by side: their fringes are a third apart.
  fringes = [
    0.7 * np.cos(along + bow + 2 * np.pi * k / 3) + 0.3 * np.cos(across - bow) for k in range(3)
  ]
  glow = light * (1 + spoof.grain * np.stack(fringes, -1))
  return (glow * np.array([0.86, 0.98, 1.2]) + _glare(spoof, 0.9)).astype(np.float32)


def _glare(spoof: Spoof, share: float) -> np.ndarray:
  """A lamp or window that the surface mirrors: [112, 112, 1] light."""
  size = 112
  axis = np.arange(size) / size
  x, y = axis[None, :] - spoof.glare[1], axis[:, None] - spoof.glare[2]
  window = np.clip(8 * (0.16 - np.abs(x + 0.3 * y)), 0, 1) * np.clip(8 * (0.22 - np.abs(y)), 0, 1)
  soft = np.exp(-(x**2 + y**2) / 0.12)
  return (share * spoof.glare[0] * (0.5 * window + 0.5 * soft))[..., None].astype(np.float32)


def _sheet(spoof: Spoof, size: int) -> tuple[np.ndarray, np.ndarray]:
  """Where paper or device is, and its border within: [size, size] float32 each."""
  left, top, right, bottom = spoof.margins
  frame = 7.0 if spoof.kind == "screen" else 3.0  # bezel; the white edge of a photograph
  axis = np.arange(size) + 0.5 - size / 2
  turn = np.deg2rad(spoof.tilt)
  x = np.cos(turn) * axis[None, :] + np.sin(turn) * axis[:, None] + size / 2
  y = np.cos(turn) * axis[:, None] - np.sin(turn) * axis[None, :] + size / 2
  y = y + 0.5 * spoof.bend * np.cos(2 * np.pi * (x / size - 0.5))  # a bent edge bows
  inside = np.minimum(
    np.minimum(x - left, size - right - x), np.minimum(y - top, size - bottom - y)
  )
  soft = lambda distance: np.clip(distance + 0.5, 0, 1).astype(np.float32)
  return soft(inside), soft(frame - inside)


def _outline(points: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
  """The cut along jaw and forehead, and the white rim that careless scissors leave."""
  jaw, brows = points[:17], points[17:27]
  middle = points[27:31].mean(0)
  up = brows.mean(0) - points[8]
  forehead = brows + 0.42 * up + 0.12 * (brows - middle) * [1, 0]
  hull = cv2.convexHull(np.concatenate([jaw, forehead]).astype(np.float32))[:, 0]
  grown = hull.mean(0) + (hull - hull.mean(0)) * 1.06
  mask = np.zeros((4 * size, 4 * size), np.uint8)
  cv2.fillPoly(mask, [np.round(4 * grown).astype(np.int32)], 255)
  distance = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
  small = lambda image: cv2.resize(
    image.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA
  )
  return small(mask / 255), small(np.clip((8 - distance) / 2, 0, 1))


def _living_eyes(seen: np.ndarray, light: np.ndarray, points: np.ndarray) -> np.ndarray:
  """Cuts holes for the eyes, through which the living ones look, in the shade of the sheet."""
  size = len(seen)
  mask = np.zeros((4 * size, 4 * size), np.uint8)
  for eye in EYES:
    six = points[eye]
    radius = np.ptp(six[:, 0]) / 2
    axes = (max(int(4 * 1.25 * radius), 8), max(int(4 * 0.85 * radius), 8))
    centre = np.round(4 * six.mean(0)).astype(int).tolist()
    cv2.ellipse(mask, centre, axes, 0, 0, 360, 255, -1)
  hole = cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA)[..., None] / 255.0
  # The sheet stands off the face: its shadow falls on what is seen through the holes.
  depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
  shade = cv2.resize(np.clip(depth / 12, 0, 1), (size, size), interpolation=cv2.INTER_AREA)
  return seen + (light * (0.35 + 0.5 * shade)[..., None] - seen) * hole
