"""Images to network input, inside the jitted step: pure functions of (images, keys).

uint8 comes in and float32 in [-1, 1] goes out; 0 is mid grey and fills what a shift or an erased
rectangle leaves empty. What comes in as floats is features, no pixels, and goes out as it is.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def normalise(images: jax.Array) -> jax.Array:
  """[..., 3] uint8 in [0, 255] -> float32 in [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1


def preprocess(images: jax.Array, size: int) -> jax.Array:
  """What evaluation and prediction do: normalise, and resize to the model's input.

  Args:
    images: [batch, height, width, 3] uint8, of clips [batch, time, height, width, 3].
    size: the model's input size in pixels.

  Returns:
    [batch, size, size, 3] float32 in [-1, 1], of clips [batch, time, size, size, 3].
  """
  if _features(images):
    return images
  images = normalise(images)
  if images.shape[-3:-1] != (size, size):
    images = jax.image.resize(images, (*images.shape[:-3], size, size, 3), "linear")
  return images


def _features(images: jax.Array) -> bool:
  """Whether these are vectors that an encoder gave for images."""
  return jnp.issubdtype(images.dtype, jnp.floating)


def row_keys(key: jax.Array, rows: int) -> jax.Array:
  """One key per row of the global batch: what a row gets does not depend on the sharding."""
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def _uniform(key: jax.Array, half_width: float, shape: tuple[int, ...] = ()) -> jax.Array:
  return jax.random.uniform(key, shape, minval=-half_width, maxval=half_width)


def _turn(image: jax.Array, key: jax.Array, rotation: float) -> jax.Array:
  """Turns about the centre; what comes in from outside is mid grey."""
  angle = 2 * jnp.pi * _uniform(key, rotation)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  centre = [(size - 1) / 2 for size in image.shape[:2]]
  y, x = (jnp.arange(size) - middle for size, middle in zip(image.shape[:2], centre, strict=True))
  y, x = jnp.meshgrid(y, x, indexing="ij")
  at = [cos * y - sin * x + centre[0], sin * y + cos * x + centre[1]]
  one = lambda channel: jax.scipy.ndimage.map_coordinates(channel, at, order=1)
  return jax.vmap(one, -1, -1)(image)


def _place(image: jax.Array, key: jax.Array, size: int, scale: float, shift: float) -> jax.Array:
  """Zoom, aspect and shift in one separable resampling (two matrix products: fast everywhere)."""
  keys = jax.random.split(key, 3)
  zoom = jnp.exp(_uniform(keys[0], jnp.log1p(scale)))
  aspect = jnp.exp(_uniform(keys[1], jnp.log1p(scale / 3)))
  full = jnp.array([size / image.shape[0], size / image.shape[1]])
  scales = full * zoom * jnp.stack([aspect, 1 / aspect])
  # Scaled about the centre, then moved by a share of the image.
  centre = (1 - scales / full) * size / 2
  translation = centre + size * _uniform(keys[2], shift, (2,))
  return jax.image.scale_and_translate(
    image, (size, size, 3), (0, 1), scales, translation, method="linear"
  )


def _colour(
  image: jax.Array, key: jax.Array, brightness: float, contrast: float, cast: float
) -> jax.Array:
  keys = jax.random.split(key, 3)
  mean = image.mean()
  image = (image - mean) * (1 + _uniform(keys[0], contrast)) + mean
  tint = jnp.broadcast_to(_uniform(keys[2], cast, (1, 1, 3)), image.shape)
  return jnp.clip(image + _uniform(keys[1], brightness) + tint, -1, 1)


def _drop_channels(image: jax.Array, key: jax.Array, rate: float) -> jax.Array:
  """Makes each colour channel black with this probability."""
  dropped = jax.random.uniform(key, (1, 1, image.shape[-1])) < rate
  return jnp.where(jnp.broadcast_to(dropped, image.shape), -1.0, image)


def _erase(image: jax.Array, key: jax.Array, rate: float, area: float) -> jax.Array:
  """Random erasing (Zhong et al., 2017, arXiv:1708.04896): one rectangle becomes mid grey."""
  keys = jax.random.split(key, 4)
  height, width = image.shape[:2]
  share = jax.random.uniform(keys[0], minval=0.02, maxval=area)
  aspect = jnp.exp(_uniform(keys[1], jnp.log(3.0)))
  extent = jnp.sqrt(share * jnp.stack([aspect, 1 / aspect])) * jnp.array([height, width])
  corner = jax.random.uniform(keys[2], (2,)) * jnp.array([height, width]) - extent / 2
  y = jnp.arange(height)[:, None, None]
  x = jnp.arange(width)[None, :, None]
  inside = (y >= corner[0]) & (y < corner[0] + extent[0])
  inside = inside & ((x >= corner[1]) & (x < corner[1] + extent[1]))
  return jnp.where(inside & (jax.random.uniform(keys[3]) < rate), 0.0, image)


def augment(
  images: jax.Array,
  key: jax.Array,
  size: int,
  *,
  flip_rate: float = 0.5,
  scale: float = 0.15,
  shift: float = 0.05,
  brightness: float = 0.2,
  contrast: float = 0.2,
  cast: float = 0.05,
  grey_rate: float = 0.0,
  erase_rate: float = 0.25,
  erase_area: float = 0.2,
  rotation: float = 0.0,
  channel_drop_rate: float = 0.0,
) -> jax.Array:
  """Random views of a batch; every label used here survives a mirror.

  A clip is seen through one view: all its frames are moved, coloured and erased alike.

  Args:
    images: [batch, height, width, 3] uint8, of clips [batch, time, height, width, 3]; the global
      batch.
    key: of this step; row i draws from `fold_in(key, i)`.
    size: output size in pixels.
    flip_rate: probability of mirroring.
    scale: zoom between 1 / (1 + scale) and 1 + scale, aspect by a third of that.
    shift: at most this share of the image in each direction.
    brightness: at most this is added (the range is 2 wide).
    contrast: differences from the mean are scaled by 1 +- this.
    cast: at most this is added to each colour channel.
    grey_rate: probability that colour is dropped.
    erase_rate: probability of erasing a rectangle.
    erase_area: its largest share of the image.
    rotation: turned by at most this share of a full turn in either direction; 0: off.
    channel_drop_rate: probability that a colour channel becomes black, of each on its own; 0: off.

  Returns:
    [batch, size, size, 3] float32 in [-1, 1], of clips [batch, time, size, size, 3].
  """
  if _features(images):
    return images

  def one(image: jax.Array, key: jax.Array) -> jax.Array:
    keys = jax.random.split(key, 5)
    # So that runs without these see the views that they saw before there were any.
    later = lambda number: jax.random.fold_in(key, number)
    image = normalise(image)
    image = jnp.where(jax.random.uniform(keys[0]) < flip_rate, image[:, ::-1], image)
    image = _turn(image, later(5), rotation) if rotation else image
    image = _place(image, keys[1], size, scale, shift)
    image = _colour(image, keys[2], brightness, contrast, cast)
    grey = jnp.broadcast_to(image.mean(-1, keepdims=True), image.shape)
    image = jnp.where(jax.random.uniform(keys[3]) < grey_rate, grey, image)
    image = _drop_channels(image, later(6), channel_drop_rate) if channel_drop_rate else image
    return _erase(image, keys[4], erase_rate, erase_area)

  rows = jax.vmap(one, (0, None)) if images.ndim == 5 else one
  return jax.vmap(rows)(images, row_keys(key, images.shape[0]))


def mixup(
  images: jax.Array,
  labels: Mapping[str, jax.Array],
  mask: Mapping[str, jax.Array],
  key: jax.Array,
  alpha: float,
) -> tuple[jax.Array, dict[str, Any], dict[str, Any]]:
  """Mixup (Zhang et al., 2017, arXiv:1710.09412) of each row with its mirror row of the batch.

  Differs from the paper in that each row draws its own share and that a mixed label counts only
  where both rows have one.

  Args:
    images: [batch, height, width, 3] float32.
    labels: task -> [batch, ...].
    mask: task -> as `labels`, or [batch] for expression.
    key: of this step.
    alpha: of the Beta distribution that shares are drawn from; 0: off.

  Returns:
    Mixed images, labels and masks.
  """
  if not alpha:
    return images, dict(labels), dict(mask)
  beta = jax.vmap(lambda k: jax.random.beta(k, alpha, alpha))(row_keys(key, images.shape[0]))
  share = jnp.maximum(beta, 1 - beta)  # the row itself stays the larger part

  def mix(x: jax.Array) -> jax.Array:
    s = jnp.broadcast_to(share.reshape(-1, *[1] * (x.ndim - 1)), x.shape)
    return s * x + (1 - s) * x[::-1]

  return mix(images), jax.tree.map(mix, dict(labels)), {t: m * m[::-1] for t, m in mask.items()}
