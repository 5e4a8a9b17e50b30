"""Vision transformer: an image to a sequence of tokens, one for each patch."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from affjax.models import layers

# Width, depth, heads. Ti, S and B are DeiT's (Touvron et al., 2021, arXiv:2012.12877), L is of the
# paper below; mu is ours, about half a million parameters: enough for 48 to 64 pixels, and minutes
# of training on a CPU.
_SIZES = {
  "mu": (96, 4, 3),
  "Ti": (192, 12, 3),
  "S": (384, 12, 6),
  "B": (768, 12, 12),
  "L": (1024, 24, 16),
}
_PATCHES = (4, 6, 8, 12, 14, 16)
# Blocks, and layers of a stem at one resolution. What has more is no model but a mistake, or is
# meant to keep whoever opens it busy: they are built one by one, even where no array is made.
_DEEPEST = 64


class ViT(nnx.Module):
  """Vision transformer (Dosovitskiy et al., 2021, arXiv:2010.11929).

  Differs from the paper in that it gives all tokens and pools none (decoders do), and, unless it is
  told otherwise, has no class token and takes GELU in its tanh approximation.

  The sequence that the blocks see, and that attention maps are over, is [class token], patches in
  rows from the top left, [registers], [extra]. What comes out is the same without the registers.

  Attributes:
    width: channels of the tokens that come out.
    num_patches: how many patches there are.
    num_tokens: the same and the class token: the tokens that come out, the extra ones aside.
  """

  def __init__(
    self,
    *,
    image_size: int,
    variant: str = "mu/16",
    stem: str = "patch",
    stem_depth: int = 1,
    width: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    dropout_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    layer_scale: float = 0.0,
    class_token: bool = False,
    registers: int = 0,
    mask_rate: float = 0.0,
    gelu: str = "tanh",
    norm_epsilon: float = 1e-6,
    remat: bool = False,
    scan: bool = False,
    dtype: str | jnp.dtype = "float32",
    rngs: nnx.Rngs,
  ) -> None:
    """Builds the encoder.

    Args:
      image_size: height and width of the images in pixels; a multiple of the patch size.
      variant: "mu", "Ti", "S", "B" or "L", then "/" and the patch size in pixels, as in "S/16".
      stem: "patch" (one dense layer per patch), "conv" (`ConvStem`) or "residual" (`ResidualStem`).
      stem_depth: how much there is at each resolution of the latter two.
      width: channels; None = the variant's, as are the next two.
      depth: number of blocks.
      num_heads: attention heads; must divide `width`.
      dropout_rate: see `layers.Block`; also after adding the positions.
      drop_path_rate: that of the last block; it grows from 0 at the first in even steps.
      layer_scale: see `layers.Block`.
      class_token: whether a learned token, with a position of its own, comes first.
      registers: learned tokens that the image's can write to, and that are not given (Darcet et
        al., 2023, arXiv:2309.16588).
      mask_rate: share of the patches that each image loses while training, rounded to whole ones:
        others for every image and step, drawn from the stream of the dropout. The blocks do that
        much less work, decoders get fewer tokens, and what is lost is mid grey in the image too,
        as stems of convolutions look beyond a patch. 0: none; it is never on in evaluation.
      gelu: "tanh" or "exact", see `layers.MLP`.
      norm_epsilon: added to the variance in the layer norms.
      remat: whether the backward pass computes each block anew, from what went into it, instead of
        keeping all that happened inside: less memory, a third more work.
      scan: whether all blocks are one, whose parameters have the layer as their first axis, in a
        loop that is compiled once whatever the depth. `weights.fit` turns parameters of one form
        into the other.
      dtype: dtype of the activations; parameters are float32.
      rngs: source of the parameters' keys.

    Raises:
      ValueError: a variant, stem or GELU that does not exist, or sizes that do not fit.
    """
    sizes, self.patch_size = _parse(variant)
    given = (width, depth, num_heads)
    width, depth, num_heads = (s if g is None else g for g, s in zip(given, sizes, strict=True))
    _check_image_size(image_size, self.patch_size, variant)
    _check_sizes(width, depth, num_heads, registers)
    dtype = jnp.dtype(dtype)
    self.image_size, self.width = image_size, width
    self.num_patches = (image_size // self.patch_size) ** 2
    self.num_tokens = self.num_patches + class_token
    self.mask_rate, self.num_kept = mask_rate, _kept_patches(mask_rate, self.num_patches)
    self.remat, self.scan = remat, scan
    self.stem = _build_stem(stem, stem_depth, self.patch_size, width, dtype, rngs)
    # As large as the tokens: at the usual 0.02 a small set takes thousands of updates to find out
    # where things are.
    token_init = nnx.initializers.normal(1.0)
    self.positions = nnx.Param(token_init(rngs.params(), (1, self.num_tokens, width)))
    self.dropout = nnx.Dropout(dropout_rate)
    self.drop_path_rates = tuple(drop_path_rate * i / max(depth - 1, 1) for i in range(depth))
    block = dict(dropout_rate=dropout_rate, layer_scale=layer_scale, gelu=gelu)
    block |= dict(norm_epsilon=norm_epsilon, dtype=dtype, rngs=rngs)
    blocks = [
      layers.Block(width, num_heads, drop_path_rate=rate, **block) for rate in self.drop_path_rates
    ]
    self.blocks = _stack(blocks) if scan else nnx.List(blocks)
    self.norm = nnx.LayerNorm(width, epsilon=norm_epsilon, dtype=dtype, rngs=rngs)
    # The class token has a position, which is all that it needs to begin with.
    self.class_token = nnx.Param(jnp.zeros((1, 1, width))) if class_token else None
    shape = (1, registers, width)
    self.register_tokens = nnx.Param(token_init(rngs.params(), shape)) if registers else None

  def __call__(
    self,
    images: jax.Array,
    *,
    kept: jax.Array | None = None,
    extra: jax.Array | None = None,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    attention: bool = False,
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Encodes images.

    Args:
      images: [batch, height, width, 3] floats in [-1, 1].
      kept: [batch, count] numbers of the patches that go through the blocks, of each image others,
        in the order in which they come out (He et al., 2021, arXiv:2111.06377); None: all. A class
        token goes with them. Stems of convolutions look beyond a patch: what is not kept should
        not be in the images. In their place `mask_rate` says nothing.
      extra: [batch, n, width] tokens of the caller's that go through the blocks with the image's.
      train: whether masks, dropout and drop path are on.
      rngs: holds a "dropout" stream while training with a rate above 0.
      attention: whether to give the maps too.

    Returns:
      [batch, num_tokens + n, width] tokens after a last layer norm: the class token if there is
      one, the patches in rows from the top left (or those that are kept), the extra ones. With
      `attention` also the float32 maps [depth, batch, heads, length, length] over the whole
      sequence, registers included.

    Raises:
      ValueError: images or extra tokens of another size or type than the model was built for.
    """
    self._check(images, extra)
    if train and self.mask_rate and kept is None:
      kept = self._drawn(images.shape[0], rngs)
      images = _blanked(images, kept, self.patch_size)
    x = self.embed(images, train=train, rngs=rngs)
    x = x if kept is None else self._keep(x, kept)
    own = x.shape[1]
    parts = [x] if self.register_tokens is None else [x, _repeat(self.register_tokens, x)]
    parts += [] if extra is None else [extra.astype(x.dtype)]
    x = jnp.concatenate(parts, axis=1) if len(parts) > 1 else x
    run = self._scan if self.scan else self._loop
    x, maps = run(x, train=train, rngs=rngs, attention=attention)
    x = self.norm(x)
    if self.register_tokens is not None:
      x = jnp.concatenate([x[:, :own], x[:, own + self.register_tokens.shape[1] :]], axis=1)
    return (x, maps) if attention else x

  def embed(
    self, images: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
  ) -> jax.Array:
    """Gives [batch, num_tokens, width], the image's tokens before the first block."""
    x = self.stem(images)
    if self.class_token is not None:
      x = jnp.concatenate([_repeat(self.class_token, x), x], axis=1)
    x = x + self.positions[...].astype(x.dtype)
    return self.dropout(x, deterministic=not train, rngs=rngs)

  def _drawn(self, batch: int, rngs: nnx.Rngs | None) -> jax.Array:
    """[batch, num_kept] numbers of the patches that `mask_rate` leaves, the smallest first."""
    if rngs is None:
      raise ValueError(f"mask_rate {self.mask_rate} needs rngs with a dropout stream in training")
    noise = jax.random.uniform(rngs.dropout(), (batch, self.num_patches))
    return jnp.sort(jnp.argsort(noise, axis=1)[:, : self.num_kept], axis=1)

  def _keep(self, x: jax.Array, kept: jax.Array) -> jax.Array:
    """Of [batch, num_tokens, width] the class token, if there is one, and the patches kept."""
    before = self.num_tokens - self.num_patches
    patches = jnp.take_along_axis(x[:, before:], kept[..., None], axis=1)
    return jnp.concatenate([x[:, :before], patches], axis=1) if before else patches

  def _loop(
    self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None, attention: bool
  ) -> tuple[jax.Array, jax.Array | None]:
    """Lets [batch, length, width] pass the blocks one by one; gives the maps too."""

    def run(
      block: layers.Block, x: jax.Array, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None]:
      return block(x, train=train, rngs=rngs, attention=attention)

    run = nnx.remat(run) if self.remat else run
    maps = []
    for block in self.blocks:
      x, block_maps = run(block, x, rngs)
      maps.append(block_maps)
    return x, jnp.stack(maps) if attention else None

  def _scan(
    self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None, attention: bool
  ) -> tuple[jax.Array, jax.Array | None]:
    """Does what `_loop` does, with the same random numbers."""
    block, parameters = nnx.split(self.blocks)
    random, counts = nnx.split(rngs)
    # Subtracted in float64, as Dropout does with a rate that it knows.
    keep = 1 - np.asarray(self.drop_path_rates)
    keep = jnp.asarray(keep, jnp.float32) if any(self.drop_path_rates) else None

    def run(
      carry: tuple[jax.Array, nnx.State], layer: tuple[nnx.State, jax.Array | None]
    ) -> tuple[tuple[jax.Array, nnx.State], jax.Array | None]:
      x, counts = carry
      parameters, keep = layer
      rngs = nnx.merge(random, counts)
      options = dict(train=train, rngs=rngs, attention=attention, keep=keep)
      x, maps = nnx.merge(block, parameters)(x, **options)
      return (x, nnx.state(rngs)), maps

    run = jax.checkpoint(run, prevent_cse=False) if self.remat else run
    (x, counts), maps = jax.lax.scan(run, (x, counts), (parameters, keep))
    if rngs is not None:
      nnx.update(rngs, counts)
    return x, maps

  def _check(self, images: jax.Array, extra: jax.Array | None) -> None:
    expected = (self.image_size, self.image_size, 3)
    if images.shape[1:] != expected:
      raise ValueError(
        f"images of shape {images.shape} but the model was built for [batch, *{expected}]: resize"
        " them, or build it with their image_size"
      )
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise ValueError(f"images of dtype {images.dtype}: scale them to floats in [-1, 1]")
    if extra is not None and (extra.ndim, *extra.shape[::2]) != (3, images.shape[0], self.width):
      raise ValueError(
        f"extra tokens of shape {extra.shape}: they must be [{len(images)}, n, {self.width}], as"
        " the batch and the width of the encoder are"
      )


def resize_positions(
  positions: jax.Array, grid: tuple[int, int], *, class_token: bool = False
) -> jax.Array:
  """Learned positions of a square grid of patches, for another grid.

  Bicubic (Keys, a = -0.5), and smoothed first where the new grid is coarser: as timm does (torch's
  `interpolate` with antialias), unlike `transformers`, which takes a = -0.75 and smooths nothing.

  Args:
    positions: [1, class_token + side * side, width] in rows from the top left, as in `ViT`.
    grid: rows and columns of the new one.
    class_token: whether the first is a class token's, which stays as it is.

  Returns:
    [1, class_token + rows * columns, width]; the very input where the grid is the same.

  Raises:
    ValueError: the positions are not those of a square.
  """
  first, patches = positions[:, : int(class_token)], positions[:, int(class_token) :]
  count, width = patches.shape[1:]
  side = round(count**0.5)
  if side**2 != count:
    raise ValueError(
      f"positions of shape {positions.shape} with class_token={class_token} are no square grid's"
    )
  if tuple(grid) == (side, side):
    return positions
  patches = jnp.asarray(patches).reshape(1, side, side, width)
  patches = jax.image.resize(patches, (1, *grid, width), "cubic", antialias=True)
  return jnp.concatenate([first, patches.reshape(1, -1, width)], axis=1)


class PatchStem(nnx.Module):
  """Maps every patch to a token with one dense layer: a strided convolution as a product."""

  def __init__(self, patch_size: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
    """Builds the stem."""
    self.patch_size = patch_size
    self.dense = nnx.Linear(3 * patch_size**2, width, dtype=dtype, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps [batch, height, width, 3] images to [batch, patches, width] tokens."""
    patches = _patches(images, self.patch_size)
    return self.dense(patches.reshape(images.shape[0], -1, patches.shape[-1]))


class ConvStem(nnx.Module):
  """Halves the image by 3x3 convolutions down to the patch size, then a 1x1 to the width.

  After Xiao et al. (2021, arXiv:2106.14881), who find that it makes a ViT easier to optimise.
  Differs in that it normalises over groups of channels of one image (GroupNorm) instead of over the
  batch, doubles the channels up to exactly the width whatever the patch size, leaves the number of
  transformer blocks as it is, where they take one away, and can be deeper: `depth` convolutions at
  each resolution, those after the first as residuals.
  """

  def __init__(
    self, patch_size: int, width: int, depth: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> None:
    """Builds the stem; `patch_size` must be a power of two."""
    num_stages = patch_size.bit_length() - 1
    if patch_size != 2**num_stages:
      raise ValueError(f"stem 'conv' needs a patch size of 4, 8 or 16, not {patch_size}")
    channels = [3, *(max(width >> (num_stages - 1 - index), 8) for index in range(num_stages))]
    layer = lambda inner, outer, strides: ConvLayer(inner, outer, strides, dtype=dtype, rngs=rngs)
    self.stages = nnx.List(
      nnx.List([layer(inner, outer, 2), *(layer(outer, outer, 1) for _ in range(depth - 1))])
      for inner, outer in zip(channels[:-1], channels[1:], strict=True)
    )
    self.dense = nnx.Linear(channels[-1], width, dtype=dtype, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps [batch, height, width, 3] images to [batch, patches, width] tokens."""
    x = images
    for halve, *residuals in self.stages:
      x = halve(x)
      for layer in residuals:
        x = x + layer(x)
    return self.dense(x.reshape(x.shape[0], -1, x.shape[-1]))


class ResidualStem(nnx.Module):
  """Patches of half the size, then whole ones, and at both resolutions residual convolutions.

  Ours. Where a product with a patch's pixels halves nothing in small steps, no convolution has
  fewer than `width` / 2 channels: on a CPU those run at the speed of matrix products, 3x3
  convolutions of the first few channels at a tenth of it.
  """

  def __init__(
    self, patch_size: int, width: int, depth: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> None:
    """Builds the stem; `patch_size` and `width` must be even."""
    if patch_size % 2 or width % 2:
      raise ValueError(f"stem 'residual': patch size {patch_size} or width {width} is not even")
    layer = dict(dtype=dtype, rngs=rngs)
    self.stages = nnx.List(
      nnx.List(
        [PatchLayer(patch, *sizes, **layer), *(ResBlock(sizes[1], **layer) for _ in range(depth))]
      )
      for patch, sizes in ((patch_size // 2, (3, width // 2)), (2, (width // 2, width)))
    )

  def __call__(self, images: jax.Array) -> jax.Array:
    """Maps [batch, height, width, 3] images to [batch, patches, width] tokens."""
    x = images
    for stage in self.stages:
      for part in stage:
        x = part(x)
    return x.reshape(x.shape[0], -1, x.shape[-1])


class PatchLayer(nnx.Module):
  """One dense layer per patch, GroupNorm, ReLU; keeps the image's two dimensions."""

  def __init__(
    self, patch_size: int, inner: int, outer: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> None:
    """Builds the layer."""
    self.patch_size = patch_size
    self.dense = nnx.Linear(inner * patch_size**2, outer, use_bias=False, dtype=dtype, rngs=rngs)
    self.norm = Norm(outer, dtype, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[batch, height, width, inner] -> [batch, height / patch, width / patch, outer]."""
    return nnx.relu(self.norm(self.dense(_patches(x, self.patch_size))))


class ResBlock(nnx.Module):
  """Two 3x3 convolutions added to their input (He et al., 2015, arXiv:1512.03385)."""

  def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
    """Builds the block."""
    conv = dict(use_bias=False, dtype=dtype, rngs=rngs)
    self.first, self.second = (nnx.Conv(width, width, (3, 3), **conv) for _ in range(2))
    self.first_norm, self.second_norm = (Norm(width, dtype, rngs) for _ in range(2))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, height, width, channels] to the same."""
    y = nnx.relu(self.first_norm(self.first(x)))
    return nnx.relu(x + self.second_norm(self.second(y)))


class ConvLayer(nnx.Module):
  """3x3 convolution, GroupNorm in groups of 8 or more channels, ReLU."""

  def __init__(
    self, inner: int, outer: int, strides: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
  ) -> None:
    """Builds the layer."""
    options = dict(strides=strides, use_bias=False, dtype=dtype, rngs=rngs)
    self.convolution = nnx.Conv(inner, outer, (3, 3), **options)
    self.norm = Norm(outer, dtype, rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[batch, height, width, inner] -> [batch, height / strides, width / strides, outer]."""
    return nnx.relu(self.norm(self.convolution(x)))


class Norm(nnx.GroupNorm):
  """GroupNorm in up to 8 groups of 8 or more channels, in float32 whatever comes and goes.

  So the gradients of scale and bias are sums in float32, which a TPU takes where what they are sums
  of is made; in bfloat16 they took it another pass each.
  """

  def __init__(self, channels: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
    """Builds the layer, which gives `dtype`."""
    groups = max(g for g in (8, 4, 2, 1) if channels % g == 0 and channels // g >= 8)
    super().__init__(channels, num_groups=groups, dtype=jnp.float32, rngs=rngs)
    self.given = dtype

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [batch, height, width, channels] to the same."""
    return super().__call__(x).astype(self.given)


def _patches(x: jax.Array, size: int) -> jax.Array:
  """[batch, height, width, channels] -> [batch, height / size, width / size, all of a patch]."""
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // size, size, width // size, size, channels).swapaxes(2, 3)
  return x.reshape(batch, height // size, width // size, size**2 * channels)


def _blanked(images: jax.Array, kept: jax.Array, size: int) -> jax.Array:
  """[batch, height, width, 3] images, mid grey but for the patches [batch, count] kept."""
  rows, columns = (n // size for n in images.shape[1:3])
  seen = jax.vmap(lambda numbers: jnp.zeros(rows * columns, bool).at[numbers].set(True))(kept)
  seen = seen.reshape(-1, rows, columns, 1).repeat(size, axis=1).repeat(size, axis=2)
  return jnp.where(seen, images, 0)


_STEMS = {"conv": ConvStem, "residual": ResidualStem}


def _build_stem(
  stem: str, stem_depth: int, patch_size: int, width: int, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Module:
  if not 1 <= stem_depth <= _DEEPEST:
    raise ValueError(f"stem_depth {stem_depth}: use 1 to {_DEEPEST}")
  if stem == "patch":
    return PatchStem(patch_size, width, dtype=dtype, rngs=rngs)
  if stem not in _STEMS:
    raise ValueError(f"stem {stem!r}: use one of {['patch', *_STEMS]}")
  return _STEMS[stem](patch_size, width, stem_depth, dtype=dtype, rngs=rngs)


def _stack(blocks: list[layers.Block]) -> layers.Block:
  """One block with the parameters of all, stacked; in all else it is the last."""
  states = [nnx.state(block) for block in blocks]
  return nnx.merge(nnx.graphdef(blocks[-1]), jax.tree.map(lambda *x: jnp.stack(x), *states))


def _repeat(token: nnx.Param, x: jax.Array) -> jax.Array:
  """[1, n, width] -> [batch, n, width], for the batch and in the dtype of `x`."""
  # Cast last, so that the gradient is summed over the batch in float32.
  return jnp.broadcast_to(token[...], (x.shape[0], *token.shape[1:])).astype(x.dtype)


def _check_image_size(image_size: int, patch_size: int, variant: str) -> None:
  if image_size < 1 or image_size % patch_size:
    nearest = max(round(image_size / patch_size), 1) * patch_size
    raise ValueError(
      f"image_size {image_size} is not a multiple of the patch size {patch_size} of variant"
      f" {variant!r}: use image_size {nearest} or another of the patch sizes {_PATCHES}"
    )


def _check_sizes(width: int, depth: int, num_heads: int, registers: int) -> None:
  for name, size in (("width", width), ("num_heads", num_heads)):
    if size < 1:
      raise ValueError(f"{name} {size}: use 1 or more")
  if not 1 <= depth <= _DEEPEST:
    raise ValueError(f"depth {depth}: use 1 to {_DEEPEST}")
  if registers < 0:
    raise ValueError(f"registers {registers}: use 0 or more")


def _kept_patches(mask_rate: float, patches: int) -> int:
  kept = round((1 - mask_rate) * patches) if 0 <= mask_rate < 1 else 0
  if not 0 < kept < patches + (mask_rate == 0):
    raise ValueError(
      f"config.model.encoder.mask_rate={mask_rate} of {patches} patches: use 0 (none), or a share"
      " that hides one at least and leaves one at least"
    )
  return kept


def _parse(variant: str) -> tuple[tuple[int, int, int], int]:
  size, _, patch = variant.partition("/")
  if size not in _SIZES or patch not in map(str, _PATCHES):
    raise ValueError(
      f"variant {variant!r}: use one of {list(_SIZES)}, '/', and one of the patch sizes {_PATCHES}"
    )
  return _SIZES[size], int(patch)
