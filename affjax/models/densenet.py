"""DenseNet: an image to a grid of tokens by layers that each see what all before them have made."""

import collections
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.models.convolutions import Convolution, Encoder, norm_of, normalise

# Depth -> layers of each block (table 1 of the paper).
_DEPTHS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
_GROWTH = 32
_INSIDE = 4  # times the growth: channels inside a layer
# Of batch norms, as in torchvision; Keras has 1.001e-5 and 0.99.
_EPSILON, _MOMENTUM = 1e-5, 0.9


class DenseNet(Encoder):
  """DenseNet (Huang et al., 2016, arXiv:1608.06993): what follows its last block gives the tokens.

  The variant with narrow layers and half the channels between blocks ("DenseNet-BC"). Maps of
  images of 224 pixels, and channels of depth 121: 56 x 56, 256 after the first block; 28 x 28, 512;
  14 x 14, 1024; 7 x 7, 1024 after the last. With a classifier of 1000 classes depth 121 has
  7,978,856 parameters.

  Differs from the paper in that it can stop after any block, and averages the map into a grid of
  tokens, which a decoder pools. A norm comes before its convolution, so none can be folded.

  A frame that is not there still counts in a batch's statistics.
  """

  def __init__(
    self,
    *,
    image_size: int,
    depth: int = 121,
    stages: int = 4,
    multiplier: float = 1.0,
    grid: int = 1,
    centre: Sequence[float] = (0.0, 0.0, 0.0),
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the encoder.

    Args:
      image_size: this, `grid`, `centre` and `dtype` as in `convolutions.Encoder`.
      depth: 121, 169 or 201.
      stages: how many of the four blocks are built; norm and ReLU follow the last.
      multiplier: of the 32 channels that each layer adds, and so of all.
      grid: see there.
      centre: see there.
      dtype: see there.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a depth that does not exist, or too many blocks or tokens.
    """
    if depth not in _DEPTHS:
      raise ValueError(f"depth {depth} of a DenseNet: use one of {list(_DEPTHS)}")
    if not 1 <= stages <= 4:
      raise ValueError(f"stages {stages} of a DenseNet: it has 1 to 4")
    super().__init__(image_size=image_size, grid=grid, centre=centre, dtype=dtype)
    layer = dict(dtype=self._dtype, rngs=rngs)
    growth = max(1, round(_GROWTH * multiplier))
    inner, side = 2 * growth, -(-image_size // 4)
    self.stem = Convolution(
      (7, 7, 3, inner), stride=2, padding=3, norm="batch", epsilon=_EPSILON, momentum=_MOMENTUM,
      activation=jax.nn.relu, **layer,
    )  # fmt: skip
    blocks, transitions = [], []
    for index, repeats in enumerate(_DEPTHS[depth][:stages]):
      if index:
        transitions.append(Preactivated(inner, inner // 2, 1, **layer))
        inner, side = inner // 2, side // 2
      widths = range(inner, inner + repeats * growth, growth)
      blocks.append(nnx.List([Dense(width, growth, **layer) for width in widths]))
      inner += repeats * growth
    self.blocks, self.transitions = nnx.List(blocks), nnx.List(transitions)
    self.norm = _norm(inner, **layer)
    self.finish(inner, side)

  def trunk(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    """See `convolutions.Encoder`; there is no dropout."""
    del rngs
    x = self.stem(x, train=train)
    x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for index, block in enumerate(self.blocks):
      if index:
        x = nnx.avg_pool(self.transitions[index - 1](x, train=train), (2, 2), (2, 2))
      for layer in block:
        x = jnp.concatenate([x, layer(x, train=train)], axis=-1)
    return jax.nn.relu(normalise(self.norm, x, train=train))


class Dense(nnx.Module):
  """What one layer adds: few channels, made of all before it."""

  def __init__(self, inner: int, growth: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
    """Builds the layer: `inner` channels come in, `growth` come out."""
    self.reduce = Preactivated(inner, _INSIDE * growth, 1, dtype=dtype, rngs=rngs)
    self.grow = Preactivated(_INSIDE * growth, growth, 3, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [batch, height, width, inner] to [batch, height, width, growth]."""
    return self.grow(self.reduce(x, train=train), train=train)


class Preactivated(nnx.Module):
  """A batch norm, ReLU, and a convolution without a bias."""

  def __init__(
    self, inner: int, outer: int, size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> None:
    """Builds the layer: `inner` channels to `outer`, by kernels of `size` rows and columns."""
    self.norm = _norm(inner, dtype=dtype, rngs=rngs)
    common = dict(use_bias=False, kernel_init=nnx.initializers.he_normal(), dtype=dtype, rngs=rngs)
    if size == 1:
      self.mix = nnx.Linear(inner, outer, **common)
    else:
      self.mix = nnx.Conv(inner, outer, (size, size), **common)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps [batch, height, width, inner] to [batch, height, width, outer]."""
    return self.mix(jax.nn.relu(normalise(self.norm, x, train=train)))


def _norm(channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
  sizes = dict(epsilon=_EPSILON, momentum=_MOMENTUM)
  return norm_of("batch", channels, use_bias=True, dtype=dtype, rngs=rngs, **sizes)


def depth_of(names: Iterable[str]) -> int:
  """The depth of a network whose arrays have these names; ValueError: there is none."""
  layers = {tuple(name.split("/")[1:3]) for name in names if name.startswith("blocks/")}
  counts = collections.Counter(block for block, _ in layers)
  found = [counts[block] for block in sorted(counts)]
  for depth, repeats in _DEPTHS.items():
    if list(repeats) == found:
      return depth
  raise ValueError(f"no DenseNet of {list(_DEPTHS)} has blocks of {found} layers")
