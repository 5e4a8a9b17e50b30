"""What convolutional encoders share: a layer, products channel by channel, a map as tokens."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

NORMS = ("batch", "group", "none")
# Of a batch norm: as the authors of EfficientNet have them.
MOMENTUM, EPSILON = 0.99, 1e-3


class Convolution(nnx.Module):
  """A convolution with zeros around, its norm and bias, and what comes of the sum.

  A batch norm that is folded into kernel and bias is norm "none".
  """

  def __init__(
    self,
    shape: tuple[int, ...],
    *,
    stride: int = 1,
    norm: str,
    activation: Callable[[jax.Array], jax.Array] | None = None,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the layer.

    Args:
      shape: of the kernel: [rows, columns, inner, outer], [rows, columns, channels] (of each
        channel alone), or [inner, outer] (at each place alone).
      stride: in both directions.
      norm: "batch" (`nnx.BatchNorm`), "group" (`nnx.GroupNorm`, groups of 8 channels) or "none".
      activation: of the sum; None: the sum itself.
      dtype: dtype of the activations.
      rngs: source of the parameters' keys.
    """
    self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), shape))
    self.bias = nnx.Param(jnp.zeros(shape[-1]))
    self.norm = _norm(norm, shape[-1], dtype, rngs)
    self.stride, self._activation, self._dtype = stride, activation, dtype

  def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps [batch, height, width, inner] to [batch, height / stride, width / stride, outer]."""
    kernel, bias = (p[...].astype(self._dtype) for p in (self.kernel, self.bias))
    if kernel.ndim == 2:
      x = x @ kernel
    elif kernel.ndim == 3:
      x = depthwise(x, kernel, self.stride)
    else:
      x = jax.lax.conv_general_dilated(
        x, kernel, (self.stride,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
      )
    if isinstance(self.norm, nnx.BatchNorm):
      x = self.norm(x, use_running_average=not train)
    elif self.norm is not None:
      x = self.norm(x)
    x = x + bias.reshape(1, 1, 1, -1)
    return x if self._activation is None else self._activation(x)


def relu6(x: jax.Array) -> jax.Array:
  """ReLU cut off at 6."""
  return jax.lax.clamp(jnp.zeros((), x.dtype), x, jnp.full((), 6, x.dtype))


def _norm(
  norm: str, channels: int, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.BatchNorm | nnx.GroupNorm | None:
  common = dict(use_bias=False, dtype=dtype, rngs=rngs)
  if norm == "batch":
    return nnx.BatchNorm(channels, momentum=MOMENTUM, epsilon=EPSILON, **common)
  return nnx.GroupNorm(channels, num_groups=channels // 8, **common) if norm == "group" else None


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
