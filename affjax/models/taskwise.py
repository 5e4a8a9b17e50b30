"""The multi-task transformer as its authors' code has it: a decoder of the map of a CNN."""

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from affjax.models import layers
from affjax.models.decoders import Heads, check_sizes, read_layout

Maps = dict[str, jax.Array]


class TaskwiseTransformer(nnx.Module):
  """Self-attention over the image's tokens, then task tokens that look at each other and at these.

  Tallec et al. (2022, arXiv:2208.03506) call their tokens taskwise. All that is here and not marked
  is CODE: what their repository of the previous challenge does (gtallec/DL_ISIR_ABAW3), for action
  units alone. `decoders.TaskTokens` is our variant of it; what differs:

  - The image's tokens get learned positions from N(0, 0.02) and a self-attention layer, on top of
    any encoder. Theirs is InceptionV3, whose map has 8 x 8 places of 2,048 channels.
  - All blocks have their layer norm behind the sum (`PostBlock`), and one dropout more.
  - A token is its row of a table from N(0, 1) and a bias that all share.
  - There is no norm before the heads, as each block ends in one; neither are there a bias of
    attention by place and a reading of the whole image.
  - GELU is exact.

  Layouts and heads are those of `decoders.TaskTokens`, as is what is INFERRED of them: by default
  one token for each number and one dense layer of one output for all. Also INFERRED: heads start
  from N(0, 0.02), theirs as Keras has it.

  Attributes:
    token_names: as in `decoders.TaskTokens`.
    num_extra: 0, the encoder carries none of the tokens.
    by_place: True, it needs the image's token of every place.
  """

  num_extra = 0
  by_place = True

  def __init__(
    self,
    *,
    outputs: Mapping[str, int],
    input_width: int,
    input_length: int,
    width: int = 128,
    image_depth: int = 1,
    depth: int = 2,
    num_heads: int = 8,
    layout: str = "elementary",
    token_attention: bool = True,
    shared_head: bool | None = None,
    heteroscedastic: bool = False,
    dropout_rate: float = 0.1,
    temperature: float = 1.0,
    va_activation: str = "tanh",
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the decoder.

    Args:
      outputs: this, `input_width` and `input_length` as in `decoders.TaskTokens`.
      input_width: see there.
      input_length: see there.
      width: channels of all tokens.
      image_depth: layers of the image's tokens.
      depth: layers of the task tokens.
      num_heads: attention heads; must divide `width`.
      layout: "elementary", "mixed" or "task", see `decoders.TaskTokens`.
      token_attention: whether the tokens look at each other; False is the ablation: layers of
        attention to the image alone, so that no token knows of another.
      shared_head: see there.
      heteroscedastic: see there.
      dropout_rate: probability of dropping a unit, at four places of a block.
      temperature: > 0, what the logits of all attention are divided by.
      va_activation: see there.
      dtype: dtype of the activations; parameters and heads are float32.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a layout or activation that does not exist, sizes that do not divide, or a shared
        head where each token has an output of another size.
    """
    check_sizes(width, depth, num_heads)
    check_sizes(width, image_depth, num_heads)
    if not 0 < temperature < float("inf"):
      raise ValueError(f"temperature {temperature}: use a number above 0")
    self.spans, shared_head = read_layout(outputs, layout, shared_head)
    self.token_names = tuple(name for span in self.spans for name in span.names)
    dtype = jnp.dtype(dtype)
    options = dict(dropout_rate=dropout_rate, temperature=temperature, dtype=dtype, rngs=rngs)
    blocks = lambda count: nnx.List(PostBlock(width, num_heads, **options) for _ in range(count))
    self.project = nnx.Linear(input_width, width, dtype=dtype, rngs=rngs)
    near_zero = nnx.initializers.normal(0.02)
    self.positions = nnx.Param(near_zero(rngs.params(), (input_length, width)))
    self.image_blocks = blocks(image_depth)
    table = nnx.initializers.normal(1.0)
    self.tokens = nnx.Linear(len(self.token_names), width, kernel_init=table, rngs=rngs)
    self.self_blocks = blocks(depth if token_attention else 0)
    self.cross_blocks = blocks(depth)
    heads = dict(shared=shared_head, heteroscedastic=heteroscedastic)
    self.heads = Heads(self.spans, width, va_activation, **heads, rngs=rngs)

  def __call__(
    self,
    tokens: jax.Array,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> dict[str, jax.Array] | tuple[dict[str, jax.Array], Maps]:
    """Decodes every task.

    Args:
      tokens: [batch, input_length, input_width] of the encoder.
      train: whether dropout is on.
      rngs: holds a "dropout" stream while training with a rate above 0.
      attention: whether to give the maps too.

    Returns:
      What `decoders.TaskTokens` gives. With `attention` also its "tokens", where they look at each
      other, and "image", all rows summing to 1.
    """
    options = dict(train=train, rngs=rngs, attention=attention)
    image = self.project(tokens)
    image = image + self.positions[...].astype(image.dtype)[None]
    for block in self.image_blocks:
      image, _ = block(image, **options)
    # Rows of the table: what the layer gives for those of the identity.
    x = self.tokens.kernel[...] + self.tokens.bias[...][None]
    x = jnp.broadcast_to(x, (tokens.shape[0], *x.shape)).astype(image.dtype)
    maps = {"tokens": [], "image": []}
    for self_block, cross_block in itertools.zip_longest(self.self_blocks, self.cross_blocks):
      if self_block is not None:
        x, token_maps = self_block(x, **options)
        maps["tokens"].append(token_maps)
      x, image_maps = cross_block(x, image, **options)
      maps["image"].append(image_maps)
    outputs = self.heads(x)
    if attention:
      return outputs, {name: jnp.stack(of_layers) for name, of_layers in maps.items() if of_layers}
    return outputs


class PostBlock(nnx.Module):
  """Post-LN transformer block: attention, then MLP, each added to its input and then normed.

  As in the first transformer (Vaswani et al., 2017, arXiv:1706.03762), with a GELU. Attention has
  one module whether it is within a stream or to another, and so has its parameters.
  """

  def __init__(
    self,
    width: int,
    num_heads: int,
    *,
    dropout_rate: float = 0.0,
    temperature: float = 1.0,
    dtype: jnp.dtype = jnp.float32,
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the block; arguments as in `layers.Block` and `layers.CrossAttention`.

    Units are dropped of what attention adds, behind each dense layer of the MLP, and once more of
    what that adds.
    """
    common = dict(dtype=dtype, rngs=rngs)
    norm = dict(epsilon=1e-6, dtype=jnp.float32, rngs=rngs)
    self.attention = layers.CrossAttention(width, num_heads, temperature=temperature, **common)
    self.attention_norm = nnx.LayerNorm(width, **norm)
    self.mlp = layers.MLP(width, dropout_rate=dropout_rate, gelu="exact", **common)
    self.mlp_norm = nnx.LayerNorm(width, **norm)
    self.dropout = nnx.Dropout(dropout_rate)

  def __call__(
    self,
    x: jax.Array,
    context: jax.Array | None = None,
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Maps [batch, queries, width] to the same, in float32.

    Args:
      x: what looks.
      context: [batch, keys, width], what it looks at; None: at itself.
      train: whether dropout is on.
      rngs: holds a "dropout" stream while training with a rate above 0.
      attention: whether to give the maps.

    Returns:
      What `layers.CrossBlock` gives.
    """
    random = dict(deterministic=not train, rngs=rngs)
    y, maps = self.attention(x, x if context is None else context, attention=attention)
    x = self.attention_norm(x + self.dropout(y, **random))
    y = self.mlp(x, train=train, rngs=rngs)
    return self.mlp_norm(x + self.dropout(y, **random)), maps
