"""VGG16: an image to a grid of tokens, or to one token, by small convolutions and nothing else."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.models.convolutions import NORMS, Convolution, Encoder

# Channels of each stage at multiplier 1, and how many convolutions (table 1 of the paper, D).
_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
# Of batch norms, which the paper has not: as in torchvision.
_EPSILON, _MOMENTUM = 1e-5, 0.9


class VGG(Encoder):
  """VGG16 (Simonyan & Zisserman, 2014, arXiv:1409.1556): its last map gives the tokens.

  The convolutions have 14,714,688 parameters; with `dense=(4096, 4096)` for images of 224 pixels
  and a classifier of 1000 classes there are 138,357,544.

  Differs from the paper in that it can be narrower, can stop after any stage, can normalise, and
  gives its last map averaged into a grid of tokens, which a decoder pools, where it has no fully
  connected layers.

  Attributes:
    epsilon: of its norms.
  """

  epsilon = _EPSILON

  def __init__(
    self,
    *,
    image_size: int,
    stages: int = 5,
    multiplier: float = 1.0,
    dense: Sequence[int] = (),
    dropout_rate: float = 0.5,
    grid: int = 1,
    norm: str = "none",
    centre: Sequence[float] = (0.0, 0.0, 0.0),
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the encoder.

    Args:
      image_size: this, `grid`, `centre` and `dtype` as in `convolutions.Encoder`.
      stages: how many of the five stages are built, each of which halves the map.
      multiplier: of the channels of all convolutions; they stay multiples of 8.
      dense: sizes of fully connected layers of the whole last map, each followed by ReLU and
        dropout, such as the paper's (4096, 4096): the last gives the one token. (): the map's grid.
      dropout_rate: after each of these.
      grid: see there; with `dense` there is one token.
      norm: "none" (biases alone, as in the paper), "batch" (`nnx.BatchNorm`) or "group"
        (`nnx.GroupNorm`, groups of 8 channels).
      centre: see there.
      dtype: see there.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a norm, size or number of stages that cannot be, or too many tokens.
    """
    if norm not in NORMS:
      raise ValueError(f"norm {norm!r} of a VGG: use one of {list(NORMS)}")
    if not 1 <= stages <= len(_STAGES):
      raise ValueError(f"stages {stages} of a VGG: it has 1 to {len(_STAGES)}")
    if any(size < 1 for size in dense):
      raise ValueError(f"dense {tuple(dense)} of a VGG: use sizes of 1 or more, or ()")
    super().__init__(image_size=image_size, grid=grid, centre=centre, dtype=dtype)
    layer = dict(norm=norm, epsilon=self.epsilon, momentum=_MOMENTUM, activation=jax.nn.relu)
    inner, layers, side = 3, [], image_size
    self._counts = tuple(count for _, count in _STAGES[:stages])
    for width, count in _STAGES[:stages]:
      outer, side = max(8, round(width * multiplier / 8) * 8), side // 2
      for _ in range(count):
        shape = (3, 3, inner, outer)
        layers.append(Convolution(shape, **layer, dtype=self._dtype, rngs=rngs))
        inner = outer
    self.stem, self.blocks = layers[0], nnx.List(layers[1:])
    self.finish(inner, side)
    sizes = (side**2 * inner, *dense)
    common = dict(dtype=self._dtype, rngs=rngs)
    self.dense = nnx.List([nnx.Linear(*pair, **common) for pair in zip(sizes, dense, strict=False)])
    self.dropout = nnx.Dropout(dropout_rate)
    if dense:
      self.finish(sizes[-1], 1)

  def trunk(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    """See `convolutions.Encoder`; what fully connected layers give is a map of one place."""
    layers = iter((self.stem, *self.blocks))
    for count in self._counts:
      for _ in range(count):
        x = next(layers)(x, train=train)
      x = nnx.max_pool(x, (2, 2), (2, 2))
    for layer in self.dense:
      x = jax.nn.relu(layer(x.reshape(x.shape[0], 1, 1, -1)))
      x = self.dropout(x, deterministic=not train, rngs=rngs)
    return x
