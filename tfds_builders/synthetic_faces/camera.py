"""Light, background, and what goes wrong in a camera."""

import dataclasses

import cv2
import numpy as np
import simplejpeg

from tfds_builders.synthetic_faces import knobs

# What a drawn light is described by: degrees, degrees, ratio, ratio, kelvin; see `knobs.View`.
LIGHT = ("key_azimuth", "key_elevation", "key_to_fill", "ambient", "temperature")

# Shares of red, green and blue in grey (Rec. 601).
LUMA = np.array([0.299, 0.587, 0.114])
TURN = np.float32(2 * np.pi)


def draw_light(rng: np.random.Generator, view: knobs.View) -> np.ndarray:
  """Draws the light: [5] float64 in the order of `LIGHT`."""
  return np.array([getattr(view, name).draw(rng) for name in LIGHT])


def lights(light: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Sets up a main light, a weaker one opposite, and light from everywhere.

  Args:
    light: [5] in the order of `LIGHT`.

  Returns:
    [2, 6] float32 direction (right, up, towards the camera) and colour of each light, and [3]
    float32 colour of the ambient light. Together they light a face that looks at the camera by
    about 1, as a camera's exposure sees to.
  """
  azimuth, elevation, ratio, ambient, temperature = light.tolist()
  # White balance takes back most of the light's colour.
  tint = kelvin(temperature) ** 0.3
  directions = np.stack([_direction(azimuth, elevation), _direction(-0.8 * azimuth, 10)])
  strengths = np.array([1.0, 1 / ratio])
  frontal = (strengths * np.maximum(directions[:, 2], 0.35)).sum()
  strengths *= (1 - ambient) / frontal
  key = np.concatenate([directions[0], strengths[0] * tint])
  fill = np.concatenate([directions[1], [strengths[1]] * 3])
  level = 1.15 if ratio < 3 else 1.25
  both = np.stack([key, fill])
  both[:, 3:] *= level
  mixed = ambient * level * tint**0.5
  return both.astype(np.float32), mixed.astype(np.float32)


def _direction(azimuth: float, elevation: float) -> np.ndarray:
  a, e = np.deg2rad([azimuth, elevation])
  return np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])


def kelvin(temperature: float) -> np.ndarray:
  """Linear colour of a black body, green = 1, relative to 6,500 K.

  A fit of our own to three points of the Planckian locus (RECALL): 3,000, 5,000 and 8,000 K.
  """
  red = np.interp(1e4 / temperature, [1.25, 1.54, 2.0, 3.33], [0.86, 1.0, 1.2, 1.75])
  blue = np.interp(1e4 / temperature, [1.25, 1.54, 2.0, 3.33], [1.15, 1.0, 0.76, 0.33])
  return np.array([red, 1.0, blue])


def draw_background(rng: np.random.Generator, size: int) -> np.ndarray:
  """Draws a background: plain, gradient, blurred noise or stripes: [size, size, 3] linear light."""
  kind = rng.integers(4)
  colours = rng.uniform(0.05, 0.95, (2, 1)) ** 2.2 * rng.uniform(0.7, 1.3, (2, 3))
  if kind == 0:
    mix = np.zeros((size, size))
  else:
    angle = rng.uniform(0, np.pi)
    axis = np.arange(size, dtype=np.float32) / np.float32(size) - np.float32(0.5)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along = cosine * axis[None, :] + sine * axis[:, None]
    if kind == 1:
      mix = along + 0.5
    elif kind == 2:
      cells = int(rng.integers(3, 12))
      mix = cv2.resize(rng.random((cells, cells)), (size, size), interpolation=cv2.INTER_CUBIC)
    else:
      across = cosine * axis[:, None] - sine * axis[None, :]
      waves = rng.uniform(2, 12, 2).astype(np.float32)
      mix = 0.5 + 0.25 * np.sign(np.sin(TURN * waves[0] * along))
      mix = mix + 0.25 * np.sin(TURN * waves[1] * across)
      mix = cv2.GaussianBlur(mix, (0, 0), rng.uniform(0.6, 3))
  mix = np.clip(mix, 0, 1).astype(np.float32)
  return cv2.merge([a + (b - a) * mix for a, b in colours.T.astype(np.float32)])


def develop(picture: np.ndarray, exposure: float = 0.0) -> np.ndarray:
  """Turns linear light into sRGB values in [0, 1], with a soft shoulder; `exposure` in stops."""
  light = np.maximum(picture, 0) * np.float32(2.0**exposure)
  # Straight up to 0.7, then a curve that reaches 1 only far above it.
  over = np.maximum(light - 0.7, 0)
  light = np.minimum(light, 0.7) + 0.3 * over / (over + 0.3)
  return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@dataclasses.dataclass(frozen=True)
class Faults:
  """What a camera did to one picture, see `knobs.Camera`; each has a value that does nothing.

  Attributes:
    exposure: stops; 0.
    gamma: exponent; 1.
    red: gain; 1.
    green: gain; 1.
    blue: gain; 1.
    grey: 1 where the picture has no colour.
    blur: pixels; 0.
    motion: 1 where the blur is along a line.
    angle: of that line, radians clockwise from the right.
    resolution: pixels across that it was reduced to; its own size.
    noise: standard deviation; 0.
    jpeg: quality of a first compression; 100.
  """

  exposure: float = 0.0
  gamma: float = 1.0
  red: float = 1.0
  green: float = 1.0
  blue: float = 1.0
  grey: float = 0.0
  blur: float = 0.0
  motion: float = 0.0
  angle: float = 0.0
  resolution: float = 112.0
  noise: float = 0.0
  jpeg: float = 100.0

  @property
  def sharpness(self) -> float:
    """How many pixels across the picture still resolves, about."""
    return min(FAULTLESS.resolution / (1 + self.blur), self.resolution)


FAULTLESS = Faults()
FAULTS = tuple(field.name for field in dataclasses.fields(Faults))


def draw_faults(rng: np.random.Generator, camera: knobs.Camera) -> Faults:
  """Draws what goes wrong. Every fault draws its numbers whether it happens or not."""
  happens = dict(
    zip(
      ("exposure", "gamma", "cast", "blur", "noise", "jpeg"),
      rng.random(6) < camera.rate,
      strict=True,
    )
  )
  happens["resolution"] = rng.random() < camera.reduced_rate
  value = {name: float(getattr(camera, name).draw(rng)) for name in happens if name != "cast"}
  cast = camera.cast.draw(rng, 3).tolist()
  grey, motion = rng.random() < camera.grey_rate, rng.random() < 0.5
  angle = rng.uniform(0, np.pi)
  faults = {name: value[name] for name in value if happens[name]}
  if "resolution" in faults:
    faults["resolution"] = float(round(faults["resolution"]))
  if happens["cast"]:
    faults |= dict(zip(("red", "green", "blue"), cast, strict=True))
  if happens["blur"] and motion:
    faults |= {"motion": 1.0, "angle": angle}
  return Faults(grey=float(grey), **faults)


def spoil(rng: np.random.Generator, picture: np.ndarray, faults: Faults) -> np.ndarray:
  """Develops a picture with a camera's faults.

  Args:
    rng: where the noise comes from.
    picture: [size, size, 3] float32 linear light.
    faults: what goes wrong.

  Returns:
    [size, size, 3] uint8.
  """
  size = picture.shape[0]
  image = develop(picture, faults.exposure).astype(np.float32)
  if faults.gamma != 1:
    image = image ** np.float32(faults.gamma)
  gains = np.array([faults.red, faults.green, faults.blue])
  mix = np.tile(gains * LUMA, (3, 1)) if faults.grey else np.diag(gains)
  image = cv2.transform(image, mix.astype(np.float32))
  if faults.blur:
    image = cv2.filter2D(image, -1, _blur_kernel(faults.blur, faults.angle, bool(faults.motion)))
  if faults.resolution < size:
    small = (int(faults.resolution),) * 2
    image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
  if faults.noise:
    shape = (size, size, 1 if faults.grey else 3)
    image = image + np.float32(faults.noise) * rng.standard_normal(shape, np.float32)
  image = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
  if faults.jpeg < 100:
    content = simplejpeg.encode_jpeg(
      np.ascontiguousarray(image), quality=round(faults.jpeg), colorsubsampling="420"
    )
    image = simplejpeg.decode_jpeg(content)
  return image


def _blur_kernel(width: float, angle: float, motion: bool) -> np.ndarray:
  """A Gaussian of standard deviation `width`, or a line of half length `width`: [9, 9]."""
  axis = np.arange(-4, 5)
  x, y = axis[None, :], axis[:, None]
  if motion:
    along = np.abs(np.cos(angle) * x + np.sin(angle) * y)
    across = np.cos(angle) * y - np.sin(angle) * x
    kernel = np.clip(width + 0.5 - along, 0, 1) * np.exp(-2 * across**2)
  else:
    kernel = np.exp(-(x**2 + y**2) / (2 * max(width, 0.2) ** 2))
  return (kernel / kernel.sum()).astype(np.float32)
