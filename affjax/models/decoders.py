"""Decoders: from the tokens of an encoder to one output per task."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.models import layers

_VA_ACTIVATIONS = {"tanh": jnp.tanh, "identity": lambda x: x}
_LAYOUTS = ("task",)
# Spread of the first biases: at 2, half of a head's attention is on about a tenth of the places.
_POSITION_BIAS = 2.0


class TaskTokens(nnx.Module):
  """Learned tokens, one per task, that look at each other and at the image.

  The taskwise-token transformer of Tallec et al. (2022, arXiv:2208.03506), whose full text and
  code we have not seen. CODE is what their repository of the previous challenge does
  (gtallec/DL_ISIR_ABAW3, action units alone); INFERRED is our choice.

  - Width 128, 8 heads, 2 layers, MLP 4 times as wide, dropout 0.1 after attention and after each
    dense layer: CODE. They add one more dropout on the output of each block.
  - A layer is attention among the tokens, then from the tokens to the image, each with its own
    MLP; the image tokens are the same for all layers: CODE.
  - Tokens start from N(0, 1): CODE (there with a shared bias, which adds nothing).
  - Layer norm before attention and MLP, and once before the heads: INFERRED. They put it after the
    sums, which needs a more careful warm-up.
  - The image tokens are projected to the width where it differs: CODE. There they also pass a
    self-attention layer with positions; here the encoder is a transformer and has both: INFERRED.
  - One token and one head per task: INFERRED. There each unit has a token and all share one head.
  - `position_bias`: each head of each layer starts by looking at places of its own, which it then
    learns, as a bias of its attention to the image. Without it attention starts out as a plain
    mean over the image, and the flagship needs thousands of updates to leave it: INFERRED.
  - tanh on valence and arousal: INFERRED.
  """

  def __init__(
    self,
    *,
    outputs: Mapping[str, int],
    input_width: int,
    input_length: int,
    width: int = 128,
    depth: int = 2,
    num_heads: int = 8,
    layout: str = "task",
    dropout_rate: float = 0.1,
    va_activation: str = "tanh",
    position_bias: bool = True,
    readout: int = 0,
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the decoder.

    Args:
      outputs: task -> size of its output, such as {"va": 2, "expression": 8, "au": 12}.
      input_width: channels of the encoder's tokens.
      input_length: their number.
      width: channels of the task tokens.
      depth: number of layers.
      num_heads: attention heads; must divide `width`.
      layout: "task", one token for each task.
      dropout_rate: probability of dropping a unit of what attention or MLP adds.
      va_activation: "tanh" keeps the output "va" in (-1, 1); "identity" leaves it free.
      position_bias: whether attention to the image has a learned bias per head, token and place.
      readout: channels of every image token that one dense layer reads all at once, each task's
        token starting from what it gives; 0: tokens start alike for every image.
      dtype: dtype of the activations; parameters and heads are float32.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a layout or activation that does not exist, or sizes that do not divide.
    """
    if layout not in _LAYOUTS:
      raise ValueError(f"layout {layout!r} of task tokens: use one of {list(_LAYOUTS)}")
    dtype = jnp.dtype(dtype)
    same = input_width == width
    self.project = None if same else nnx.Linear(input_width, width, dtype=dtype, rngs=rngs)
    token_init = nnx.initializers.normal(1.0)
    self.tokens = nnx.Param(token_init(rngs.params(), (len(outputs), width)))
    bias_init = nnx.initializers.normal(_POSITION_BIAS)
    bias_shape = (depth, num_heads, len(outputs), input_length)
    self.position_bias = nnx.Param(bias_init(rngs.params(), bias_shape)) if position_bias else None
    sizes = dict(channels=readout, input_length=input_length, num_tokens=len(outputs))
    self.readout = Readout(input_width, width, **sizes, dtype=dtype, rngs=rngs) if readout else None
    block = dict(dropout_rate=dropout_rate, dtype=dtype, rngs=rngs)
    self.self_blocks = nnx.List(layers.Block(width, num_heads, **block) for _ in range(depth))
    self.cross_blocks = nnx.List(layers.CrossBlock(width, num_heads, **block) for _ in range(depth))
    self.norm = nnx.LayerNorm(width, dtype=jnp.float32, rngs=rngs)
    self.heads = Heads(outputs, width, va_activation, rngs=rngs)

  def __call__(
    self,
    tokens: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> dict[str, jax.Array] | tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Decodes every task.

    Args:
      tokens: [batch, length, input_width] of the encoder.
      train: whether dropout is on.
      rngs: holds a "dropout" stream while training with a rate above 0.
      attention: whether to give the maps too.

    Returns:
      Task -> [batch, size] float32; with `attention` also "tokens" [depth, batch, heads, tasks,
      tasks] and "image" [depth, batch, heads, tasks, length], tasks in the order of `outputs`.
    """
    options = dict(train=train, rngs=rngs, attention=attention)
    image = tokens if self.project is None else self.project(tokens)
    x = jnp.broadcast_to(self.tokens[...], (len(tokens), *self.tokens.shape)).astype(image.dtype)
    if self.readout is not None:
      x = x + self.readout(tokens)
    maps = {"tokens": [], "image": []}
    blocks = zip(self.self_blocks, self.cross_blocks, strict=True)
    for layer, (self_block, cross_block) in enumerate(blocks):
      bias = None if self.position_bias is None else self.position_bias[layer]
      x, token_maps = self_block(x, **options)
      x, image_maps = cross_block(x, image, bias, **options)
      maps["tokens"].append(token_maps)
      maps["image"].append(image_maps)
    outputs = self.heads(self.norm(x))
    if attention:
      return outputs, {name: jnp.stack(of_layers) for name, of_layers in maps.items()}
    return outputs


class Readout(nnx.Module):
  """A few channels of every image token, then one dense layer of all of them: ours.

  Aligned faces have each feature in its place, so that a linear model of the pixels does well at
  once; attention has to find the places first.
  """

  def __init__(
    self,
    input_width: int,
    width: int,
    *,
    channels: int,
    input_length: int,
    num_tokens: int,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the layers."""
    self.num_tokens = num_tokens
    self.reduce = nnx.Linear(input_width, channels, dtype=dtype, rngs=rngs)
    self.dense = nnx.Linear(channels * input_length, num_tokens * width, dtype=dtype, rngs=rngs)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """[batch, length, input_width] -> [batch, num_tokens, width]."""
    batch = tokens.shape[0]
    return self.dense(self.reduce(tokens).reshape(batch, -1)).reshape(batch, self.num_tokens, -1)


class Linear(nnx.Module):
  """The mean of the encoder's tokens and one dense layer per task: the baseline."""

  def __init__(
    self,
    *,
    outputs: Mapping[str, int],
    input_width: int,
    input_length: int,
    va_activation: str = "tanh",
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the decoder; arguments as in `TaskTokens`. It is float32 whatever `dtype` is."""
    del dtype, input_length
    self.heads = Heads(outputs, input_width, va_activation, rngs=rngs)

  def __call__(
    self,
    tokens: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> dict[str, jax.Array] | tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """Decodes every task as `TaskTokens` does; it has no maps to give."""
    del train, rngs
    pooled = tokens.astype(jnp.float32).mean(axis=1, keepdims=True)
    outputs = self.heads(jnp.repeat(pooled, len(self.heads.tasks), axis=1))
    return (outputs, {}) if attention else outputs


class Heads(nnx.Module):
  """One float32 dense layer per task: softmax and CCC need digits that bfloat16 lacks."""

  def __init__(
    self, outputs: Mapping[str, int], width: int, va_activation: str, *, rngs: nnx.Rngs
  ) -> None:
    """Builds the heads; see `TaskTokens`."""
    if va_activation not in _VA_ACTIVATIONS:
      raise ValueError(f"va_activation {va_activation!r}: use one of {list(_VA_ACTIVATIONS)}")
    self.tasks, self.va_activation = tuple(outputs), va_activation
    # Small, so that training starts from near-uniform answers whatever the encoder gives.
    init = nnx.initializers.normal(0.02)
    self.dense = nnx.Dict(
      {task: nnx.Linear(width, size, kernel_init=init, rngs=rngs) for task, size in outputs.items()}
    )

  def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
    """Maps [batch, tasks, width] to task -> [batch, size] float32 logits; "va" is activated."""
    x = x.astype(jnp.float32)
    outputs = {task: self.dense[task](x[:, index]) for index, task in enumerate(self.tasks)}
    if "va" in outputs:
      outputs["va"] = _VA_ACTIVATIONS[self.va_activation](outputs["va"])
    return outputs
