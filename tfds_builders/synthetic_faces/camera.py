"""Light, background, and what goes wrong in a camera."""

import cv2
import numpy as np
import simplejpeg

from tfds_builders.synthetic_faces import knobs


def draw_lights(rng: np.random.Generator, view: knobs.View) -> tuple[np.ndarray, np.ndarray]:
  """Draws a main light, a weaker one opposite, and light from everywhere.

  Args:
    rng: where the choices come from.
    view: distributions of the choices.

  Returns:
    [2, 6] float32 direction (right, up, towards the camera) and colour of each light, and [3]
    float32 colour of the ambient light. Together they light a face that looks at the camera by
    about 1, as a camera's exposure sees to.
  """
  azimuth = view.key_azimuth.draw(rng)
  elevation = view.key_elevation.draw(rng)
  ratio = view.key_to_fill.draw(rng)
  ambient = view.ambient.draw(rng)
  # White balance takes back most of the light's colour.
  tint = kelvin(float(view.temperature.draw(rng))) ** 0.3
  directions = np.stack([_direction(azimuth, elevation), _direction(-0.8 * azimuth, 10)])
  strengths = np.array([1.0, 1 / ratio])
  frontal = (strengths * np.maximum(directions[:, 2], 0.35)).sum()
  strengths *= (1 - ambient) / frontal
  key = np.concatenate([directions[0], strengths[0] * tint])
  fill = np.concatenate([directions[1], [strengths[1]] * 3])
  level = 1.15 if ratio < 3 else 1.25
  lights = np.stack([key, fill])
  lights[:, 3:] *= level
  mixed = ambient * level * tint**0.5
  return lights.astype(np.float32), mixed.astype(np.float32)


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
    axis = np.arange(size) / size - 0.5
    along = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    if kind == 1:
      mix = along + 0.5
    elif kind == 2:
      cells = int(rng.integers(3, 12))
      mix = cv2.resize(rng.random((cells, cells)), (size, size), interpolation=cv2.INTER_CUBIC)
    else:
      across = np.cos(angle) * axis[:, None] - np.sin(angle) * axis[None, :]
      waves = rng.uniform(2, 12, 2)
      mix = 0.5 + 0.25 * np.sign(np.sin(2 * np.pi * waves[0] * along))
      mix = mix + 0.25 * np.sin(2 * np.pi * waves[1] * across)
      mix = cv2.GaussianBlur(mix, (0, 0), rng.uniform(0.6, 3))
  mix = np.clip(mix, 0, 1)[..., None]
  return (colours[0] + (colours[1] - colours[0]) * mix).astype(np.float32)


def develop(picture: np.ndarray, exposure: float = 0.0) -> np.ndarray:
  """Turns linear light into sRGB values in [0, 1], with a soft shoulder; `exposure` in stops."""
  light = np.maximum(picture, 0) * np.float32(2.0**exposure)
  # Straight up to 0.7, then a curve that reaches 1 only far above it.
  over = np.maximum(light - 0.7, 0)
  light = np.minimum(light, 0.7) + 0.3 * over / (over + 0.3)
  return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def spoil(
  rng: np.random.Generator, picture: np.ndarray, camera: knobs.Camera
) -> tuple[np.ndarray, float]:
  """Develops a picture with a camera's faults.

  Args:
    rng: where the choices come from.
    picture: [size, size, 3] float32 linear light.
    camera: distributions of the faults.

  Returns:
    [size, size, 3] uint8, and how many pixels across it still resolves, about.
  """
  size = picture.shape[0]
  # Every fault draws its numbers whether it happens or not: a knob turned leaves the rest alone.
  happens = rng.random(7) < camera.rate
  values = {
    name: getattr(camera, name).draw(rng)
    for name in ("exposure", "gamma", "blur", "resolution", "noise", "jpeg")
  }
  cast = camera.cast.draw(rng, 3)
  grey, motion = rng.random() < camera.grey_rate, rng.random() < 0.5
  angle, noise = rng.uniform(0, np.pi), rng.standard_normal(picture.shape, np.float32)
  sharp = float(size)
  image = develop(picture, values["exposure"] if happens[0] else 0.0).astype(np.float32)
  if happens[1]:
    image = image ** np.float32(values["gamma"])
  if happens[2]:
    image = image * cast.astype(np.float32)
  if grey:
    image = np.repeat((image @ np.array([0.299, 0.587, 0.114], np.float32))[..., None], 3, -1)
  if happens[3]:
    image = cv2.filter2D(image, -1, _blur_kernel(values["blur"], angle, motion))
    sharp = min(sharp, size / (1 + values["blur"]))
  if happens[4]:
    small = round(float(values["resolution"]))
    image = cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA)
    image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    sharp = min(sharp, small)
  if happens[5]:
    image = image + np.float32(values["noise"]) * noise
  image = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
  if happens[6]:
    content = simplejpeg.encode_jpeg(
      np.ascontiguousarray(image), quality=round(float(values["jpeg"])), colorsubsampling="420"
    )
    image = simplejpeg.decode_jpeg(content)
  return image, sharp


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
