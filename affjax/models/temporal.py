"""Temporal models: what the frames beside a frame say of it.

All map [batch, time, input_width] to [batch, time, width], one vector a frame, and are told which
frames are `present`. What stands in the place of one that is not has no influence on the others,
and what comes out there means nothing. Times are the places in the window: a gap takes its time.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from affjax.models import layers

_DEEPEST = 64  # layers; see `affjax.models.vit`


class GRU(nnx.Module):
  """Gated recurrent units (Cho et al., 2014, arXiv:1406.1078), layer upon layer.

  With the reset gate applied behind the recurrent product, as in cuDNN and PyTorch. A frame that is
  not present leaves the state as it is. States are float32 always.

  Attributes:
    width: channels that come out.
  """

  def __init__(
    self,
    *,
    input_width: int,
    width: int = 128,
    depth: int = 2,
    bidirectional: bool = True,
    dropout_rate: float = 0.0,
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the layers.

    Args:
      input_width: channels that come in.
      width: channels that each layer gives.
      depth: number of layers.
      bidirectional: whether half of the channels come from the other end of the window.
      dropout_rate: probability of dropping a unit of what comes into a layer above the first.
      dtype: dtype of the products.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: sizes that do not divide, or too many layers.
    """
    _check_sizes(width, depth)
    directions = 2 if bidirectional else 1
    if width % directions:
      raise ValueError(f"width {width}: use an even one, or bidirectional=False")
    self.width, self.dtype = width, jnp.dtype(dtype)
    cell = lambda size: nnx.GRUCell(size, width // directions, dtype=self.dtype, rngs=rngs)
    sizes = [input_width, *[width] * (depth - 1)]
    self.layers = nnx.List(nnx.List(cell(size) for _ in range(directions)) for size in sizes)
    self.dropout = nnx.Dropout(dropout_rate)

  def __call__(
    self,
    x: jax.Array,
    present: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> jax.Array:
    """Reads the frames one after the other.

    Args:
      x: [batch, time, input_width].
      present: [batch, time] bool.
      train: whether dropout is on.
      rngs: holds a "dropout" stream while training with a rate above 0.

    Returns:
      [batch, time, width].
    """
    for number, cells in enumerate(self.layers):
      x = self.dropout(x, deterministic=not train, rngs=rngs) if number else x
      ways = [_recur(cell, x, present, reverse=i == 1) for i, cell in enumerate(cells)]
      x = jnp.concatenate(ways, axis=-1)
    return x.astype(self.dtype)


def _recur(cell: nnx.GRUCell, x: jax.Array, present: jax.Array, *, reverse: bool) -> jax.Array:
  """A cell's states over time, [batch, time, channels] float32.

  `nnx.RNN` would let gaps into the state. Here the products with the inputs are one for all times,
  too, where a cell that is called makes them time by time.
  """
  inputs = cell.dense_i(x).astype(jnp.float32)

  def step(state: jax.Array, now: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    reset_in, update_in, new_in = jnp.split(now[0], 3, axis=-1)
    recurrent = cell.dense_h(state).astype(jnp.float32)
    reset_state, update_state, new_state = jnp.split(recurrent, 3, axis=-1)
    update = jax.nn.sigmoid(update_in + update_state)
    new = jnp.tanh(new_in + jax.nn.sigmoid(reset_in + reset_state) * new_state)
    state = jnp.where(now[1][:, None], (1 - update) * new + update * state, state)
    return state, state

  first = jnp.zeros((x.shape[0], cell.hidden_features), jnp.float32)
  over_time = (inputs.swapaxes(0, 1), present.swapaxes(0, 1))
  return jax.lax.scan(step, first, over_time, reverse=reverse)[1].swapaxes(0, 1)


class Transformer(nnx.Module):
  """A transformer over the frames of a window (Vaswani et al., 2017, arXiv:1706.03762).

  Sine and cosine of the place are added to what comes in; layer norm stands before each part, see
  `layers.Block`, and once at the end.

  Attributes:
    width: channels that come out.
  """

  def __init__(
    self,
    *,
    input_width: int,
    width: int = 128,
    depth: int = 2,
    num_heads: int = 4,
    dropout_rate: float = 0.1,
    causal: bool = False,
    reach: int = 0,
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the layers.

    Args:
      input_width: channels that come in.
      width: channels of the blocks; must be even.
      depth: number of blocks.
      num_heads: attention heads; must divide `width`.
      dropout_rate: probability of dropping a unit of what attention or MLP adds.
      causal: whether a frame looks at none that comes after it.
      reach: how many frames away a block looks at most; 0: at the whole window.
      dtype: dtype of the activations.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: sizes that do not divide or are out of their range.
    """
    _check_sizes(width, depth)
    if width % 2 or num_heads < 1 or reach < 0:
      raise ValueError(
        f"width {width}, num_heads {num_heads}, reach {reach}: use an even width, 1 or more heads,"
        " a reach of 0 or more"
      )
    self.width, self.causal, self.reach = width, causal, reach
    self.project = nnx.Linear(input_width, width, dtype=jnp.dtype(dtype), rngs=rngs)
    options = dict(dropout_rate=dropout_rate, dtype=jnp.dtype(dtype), rngs=rngs)
    self.blocks = nnx.List(layers.Block(width, num_heads, **options) for _ in range(depth))
    self.norm = nnx.LayerNorm(width, dtype=jnp.float32, rngs=rngs)

  def __call__(
    self,
    x: jax.Array,
    present: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> jax.Array:
    """Lets frames look at each other; arguments and what comes out as in `GRU`."""
    x = self.project(x)
    time = x.shape[1]
    x = x + jnp.asarray(positions(time, self.width), x.dtype)[None]
    away = np.arange(time)[:, None] - np.arange(time)[None]
    near = np.abs(away) <= (self.reach or time)
    near &= (away >= 0) | (not self.causal)
    # Each looks at itself at least: one that looks at nothing would give no number.
    seen = (present[:, None] & near[None]) | (away == 0)[None]
    for block in self.blocks:
      x, _ = block(x, train=train, rngs=rngs, mask=seen)
    return self.norm(x)


def positions(time: int, width: int) -> np.ndarray:
  """[time, width] float32 sines and cosines of the place (Vaswani et al., 2017).

  Wavelengths from 2 pi to 10,000 times that: the first half of the channels has the sines.
  """
  rates = 1e-4 ** (np.arange(width // 2) / (width // 2))
  angles = np.arange(time)[:, None] * rates[None]
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


class FrameWise(nnx.Module):
  """The twin of the others that sees each frame alone: what time is worth is what it lacks.

  Dense layer, then blocks of layer norm and MLP that are added to what comes in, and a layer norm:
  `Transformer` without attention and positions. At the same width a block has two thirds of the
  parameters of one of those.

  Attributes:
    width: channels that come out.
  """

  def __init__(
    self,
    *,
    input_width: int,
    width: int = 128,
    depth: int = 3,
    dropout_rate: float = 0.1,
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the layers; arguments as in `Transformer`."""
    _check_sizes(width, depth)
    self.width = width
    self.project = nnx.Linear(input_width, width, dtype=jnp.dtype(dtype), rngs=rngs)
    norm = lambda: nnx.LayerNorm(width, dtype=jnp.float32, rngs=rngs)
    options = dict(dropout_rate=dropout_rate, dtype=jnp.dtype(dtype), rngs=rngs)
    self.norms = nnx.List(norm() for _ in range(depth))
    self.blocks = nnx.List(layers.MLP(width, **options) for _ in range(depth))
    self.norm = norm()

  def __call__(
    self,
    x: jax.Array,
    present: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
  ) -> jax.Array:
    """Maps each frame; arguments and what comes out as in `GRU`."""
    del present
    x = self.project(x)
    for norm, block in zip(self.norms, self.blocks, strict=True):
      x = x + block(norm(x), train=train, rngs=rngs)
    return self.norm(x)


def _check_sizes(width: int, depth: int) -> None:
  if width < 1 or not 1 <= depth <= _DEEPEST:
    raise ValueError(f"width {width}, depth {depth}: use a width of 1 or more, 1 to {_DEEPEST}")
