"""What convolutional encoders share: a layer, products channel by channel, a map as tokens."""

import abc
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

NORMS = ("batch", "group", "none")
# Of a batch norm: as the authors of EfficientNet have them.
MOMENTUM, EPSILON = 0.99, 1e-3


class Encoder(nnx.Module):
  """An encoder of `affjax.models.affect`, whose last map becomes tokens, from the top left.

  A subclass hands its options to this constructor, makes its layers, and then tells `finish` what
  comes of them. `trunk` is what it does with images.

  Attributes:
    image_size: height and width of the images in pixels.
    width: channels of the tokens that come out.
    num_tokens: how many there are.
    epsilon: of its batch norms, which folding them needs.
  """

  epsilon = EPSILON

  def __init__(
    self, *, image_size: int, grid: int, centre: Sequence[float], dtype: str | jnp.dtype
  ) -> None:
    """Keeps what every encoder has.

    Args:
      image_size: height and width of the images in pixels.
      grid: tokens in a row and in a column, means over the cells of the last map; 0: the map as it
        is, each place a token.
      centre: red, green and blue that are subtracted from the images, in [-1, 1]. Padding is 0
        after that, so weights that were trained with a mean image need theirs.
      dtype: dtype of the activations; parameters are float32.
    """
    self.image_size, self.grid = image_size, grid
    self._dtype, self._centre = jnp.dtype(dtype), tuple(centre)

  def finish(self, width: int, side: int) -> None:
    """Takes the size of the last map: channels, and rows or columns.

    Raises:
      ValueError: it has fewer places than the grid, or none.
    """
    if side < 1 or not 0 <= self.grid <= side:
      name, size = type(self).__name__, self.image_size
      use = "use larger images (config.image_size)" if side < 1 else f"use a grid from 0 to {side}"
      raise ValueError(
        f"grid {self.grid} of {name}: its last map of {size} x {size} pixels is {side} x {side}:"
        f" {use}"
      )
    self.width, self.num_tokens = width, (self.grid or side) ** 2

  @abc.abstractmethod
  def trunk(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    """Maps centred images [batch, height, width, 3] to [batch, side, side, width]."""

  def __call__(
    self,
    images: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> jax.Array | tuple[jax.Array, dict[str, jax.Array]]:
    """Encodes images.

    Args:
      images: [batch, height, width, 3] floats in [-1, 1].
      train: whether batch norms take, and follow, the batch's statistics, and what drops is on.
      rngs: holds a "dropout" stream while training with a rate above 0.
      attention: whether to give maps too; there are none.

    Returns:
      [batch, num_tokens, width], in rows from the top left; with `attention` also {}.
    """
    centre = jnp.array(self._centre, images.dtype).reshape(1, 1, 1, 3)
    x = self.trunk((images - centre).astype(self._dtype), train=train, rngs=rngs)
    tokens = cells(x, self.grid) if self.grid else x.reshape(x.shape[0], -1, x.shape[-1])
    return (tokens, {}) if attention else tokens


class Convolution(nnx.Module):
  """A convolution, its norm and bias, and what comes of the sum.

  A batch norm that is folded into kernel and bias is norm "none".
  """

  def __init__(
    self,
    shape: tuple[int, ...],
    *,
    stride: int = 1,
    padding: str | int = "same",
    norm: str,
    epsilon: float = EPSILON,
    momentum: float = MOMENTUM,
    activation: Callable[[jax.Array], jax.Array] | None = None,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the layer.

    Args:
      shape: of the kernel: [rows, columns, inner, outer], [rows, columns, channels] (of each
        channel alone), or [inner, outer] (at each place alone).
      stride: in both directions.
      padding: zeros around: "same" (as many as make the map size / stride; of an odd number the
        last side gets more), "valid" (none), or so many on each side, as PyTorch has it.
      norm: "batch" (`nnx.BatchNorm`), "group" (`nnx.GroupNorm`, groups of 8 channels) or "none".
      epsilon: of the norm, added to the variance.
      momentum: of a batch norm, the share of its statistics that an update keeps.
      activation: of the sum; None: the sum itself.
      dtype: dtype of the activations.
      rngs: source of the parameters' keys.
    """
    self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape))
    self.bias = nnx.Param(jnp.zeros(shape[-1]))
    self.norm = norm_of(norm, shape[-1], epsilon=epsilon, momentum=momentum, dtype=dtype, rngs=rngs)
    self.stride, self._activation, self._dtype = stride, activation, dtype
    self._padding = padding.upper() if isinstance(padding, str) else [(padding, padding)] * 2

  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps [batch, height, width, inner] to [batch, height / stride, width / stride, outer].

    That is the size with padding "same".
    """
    kernel, bias = (p[...].astype(self._dtype) for p in (self.kernel, self.bias))
    if kernel.ndim == 2:
      x = x[:, :: self.stride, :: self.stride] @ kernel
    elif kernel.ndim == 3:
      x = depthwise(x, kernel, self.stride)
    else:
      x = jax.lax.conv_general_dilated(
        x, kernel, (self.stride,) * 2, self._padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
      )
    x = normalise(self.norm, x, train=train)
    x = x + bias.reshape(1, 1, 1, -1)
    return x if self._activation is None else self._activation(x)


class Gate(nnx.Module):
  """Squeeze and excitation (Hu et al., 2017, arXiv:1709.01507): a factor for each channel."""

  def __init__(
    self,
    channels: int,
    inside: int,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
    *,
    activation: Callable[[jax.Array], jax.Array] = jax.nn.swish,
    use_bias: bool = True,
  ) -> None:
    """Builds the layer.

    Args:
      channels: of the map.
      inside: how many numbers the means of the channels are reduced to.
      dtype: dtype of the activations.
      rngs: source of the parameters' keys.
      activation: of those numbers.
      use_bias: whether the two products have biases.
    """
    common = dict(use_bias=use_bias, dtype=dtype, rngs=rngs)
    self.reduce = nnx.Linear(channels, inside, **common)
    self.expand = nnx.Linear(inside, channels, **common)
    self._activation = activation

  def __call__(self, x: jax.Array) -> jax.Array:
    """Scales [batch, height, width, channels]."""
    inside = self._activation(self.reduce(x.mean((1, 2), keepdims=True)))
    return x * jax.nn.sigmoid(self.expand(inside))


def relu6(x: jax.Array) -> jax.Array:
  """ReLU cut off at 6."""
  return jax.lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), 6, x.dtype))


Norm = nnx.BatchNorm | nnx.GroupNorm | None


def norm_of(
  norm: str,
  channels: int,
  *,
  epsilon: float = EPSILON,
  momentum: float = MOMENTUM,
  use_bias: bool = False,
  dtype: jnp.dtype,
  rngs: nnx.Rngs,
) -> Norm:
  """A norm by its name; see `Convolution`, which has the bias that this has not."""
  common = dict(use_bias=use_bias, epsilon=epsilon, dtype=dtype, rngs=rngs)
  if norm == "batch":
    return nnx.BatchNorm(channels, momentum=momentum, **common)
  return nnx.GroupNorm(channels, num_groups=channels // 8, **common) if norm == "group" else None


def normalise(norm: Norm, x: jax.Array, *, train: bool) -> jax.Array:
  """Applies a norm; a batch norm by its statistics unless it trains and is not held still."""
  if isinstance(norm, nnx.BatchNorm):
    return norm(x, use_running_average=norm.use_running_average or not train)
  return x if norm is None else norm(x)


def depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
  """A convolution of each channel alone, as shifted products and their sum.

  On a CPU several times as fast as a grouped convolution.

  Args:
    x: [batch, height, width, channels].
    kernel: [size, size, channels].
    stride: in both directions.

  Returns:
    [batch, height / stride, width / stride, channels], with zeros around as "SAME" means it.
  """
  size = len(kernel)
  ends, pads = [], [(0, 0)]
  for extent in x.shape[1:3]:
    last = (-(-extent // stride) - 1) * stride
    total = max(last + size - extent, 0)
    ends.append(last + 1)
    pads.append((total // 2, total - total // 2))
  x = jnp.pad(x, (*pads, (0, 0)))
  shifted = lambda i, j: x[:, i : i + ends[0] : stride, j : j + ends[1] : stride]
  weight = lambda i, j: kernel[i, j].reshape(1, 1, 1, -1)
  return sum(shifted(i, j) * weight(i, j) for i in range(size) for j in range(size))


def cells(x: jax.Array, grid: int) -> jax.Array:
  """[batch, height, width, channels] -> [batch, grid * grid, channels] means over equal cells.

  Where the cells do not divide the map, the places on an edge count for both sides in parts.
  """
  for axis in (1, 2):
    size = x.shape[axis]
    edges = jnp.arange(grid + 1) * size / grid
    place = jnp.arange(size)[None]
    inside = jnp.minimum(edges[1:, None], place + 1) - jnp.maximum(edges[:-1, None], place)
    share = jnp.clip(inside, 0, 1).astype(x.dtype) * (grid / size)
    x = jnp.moveaxis(jnp.tensordot(share, x, (1, axis)), 0, axis)
  return x.reshape(x.shape[0], grid * grid, x.shape[-1])
