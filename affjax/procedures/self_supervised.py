"""Learning without labels: masked autoencoding."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from affjax import augment
from affjax.state import TrainState, start, update_ema

Metrics = dict[str, jax.Array]

RECONSTRUCTION = "reconstruction"  # what `predict` gives


class MaskedAutoencoding:
  """Learns to paint those patches of an image that are hidden (He et al., 2021, arXiv:2111.06377).

  The three functions are pure and meant for `jax.jit`; randomness comes from (seed, step) alone.
  Parameters are `{"model": ...}`; those of the encoder have the names that they have in a
  supervised run, which can start from them: `config.initialise.source`.

  Differs from the paper in that hidden patches are mid grey in the images too: stems of
  convolutions would see them otherwise. To the paper's own stem that is the same.

  Attributes:
    graphdef: of the model.
    input_shape: of an image without the batch.
  """

  def __init__(
    self,
    *,
    make_model: Callable[[nnx.Rngs], nnx.Module],
    image_size: int,
    optimizer: tuple[optax.GradientTransformation, optax.Schedule, Callable[[Any], Any]],
    augment: Mapping[str, Any],
    seed: int,
    mask_rate: float = 0.75,
    normalise: bool = True,
    ema_decay: float = 0.0,
    accumulate: int = 1,
  ) -> None:
    """Builds the functions; no array is made.

    Args:
      make_model: builds the model, a `masked.MaskedAutoencoder`, from random keys.
      image_size: the model's input, pixels.
      optimizer: an `affjax.optim.Optimizer`: transformation, learning rate, what is frozen.
      augment: arguments of `affjax.augment.augment`.
      seed: of initialisation, augmentation, masks and dropout.
      mask_rate: share of the patches that is hidden, in (0, 1), rounded to whole patches.
      normalise: whether what is painted is each patch's pixels less their mean, divided by their
        standard deviation, or the pixels as they are.
      ema_decay: of the parameters' moving average; 0: none is kept.
      accumulate: micro-batches that a batch is cut into, to save memory; must divide it. The
        gradient stays that of the whole batch.

    Raises:
      ValueError: the rate hides no patch, or all.
    """
    model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
    self.graphdef, _, _ = nnx.split(model, nnx.Param, ...)
    self.input_shape = model.input_shape
    self._make_model = make_model
    self._image_size = image_size
    self._patch_size, self._patches = model.patch_size, model.num_patches
    self._tx, self._learning_rate, self._frozen = optimizer[:3]
    self._augment = dict(augment)
    self._seed = seed
    self._normalise = normalise
    self._ema_decay = ema_decay
    self._accumulate = accumulate
    self._count = round((1 - mask_rate) * self._patches) if 0 < mask_rate < 1 else 0
    if not 0 < self._count < self._patches:
      raise ValueError(
        f"config.procedure.mask_rate={mask_rate}: use a share of the {self._patches} patches that"
        " hides one at least and leaves one at least"
      )

  def init(self) -> TrainState:
    """The state before the first update; a function of the seed."""
    _, params, rest = nnx.split(self._make_model(nnx.Rngs(self._seed)), nnx.Param, ...)
    params = {"model": nnx.to_pure_dict(params)}
    model_state = {"model": nnx.to_pure_dict(rest)}
    return start(params, model_state, self._tx.init(params), average=bool(self._ema_decay))

  def view(self, batch: Mapping[str, Any], step: jax.Array) -> tuple[jax.Array, Any, Any]:
    """What the network sees at a step: augmented images, in part; there are no labels."""
    images, kept = self._drawn(batch["image"], step)
    return blanked(images, hidden(kept, self._patches), self._patch_size), {}, {}

  def train_step(self, state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
    """One update; deterministic in (seed, step, batch)."""
    images, kept = self._drawn(batch["image"], state.step)
    # What could not be read is no image.
    there = (batch["index"] >= 0).astype(jnp.float32)
    share = there / jnp.maximum(there.sum(), 1.0)

    def loss_of(params: Any, part: tuple[jax.Array, ...], dropout: jax.Array) -> jax.Array:
      images, kept, share = part
      model = nnx.merge(self.graphdef, params["model"], state.model_state["model"])
      rngs = nnx.Rngs(dropout=dropout)
      return (share * self._errors(model, images, kept, train=True, rngs=rngs)[0]).sum()

    dropout = self._key(state.step, "dropout")
    loss, gradient = self._differentiated(loss_of, state.params, (images, kept, share), dropout)
    gradient = jax.tree.map(
      lambda g, frozen: jnp.zeros_like(g) if frozen else g, gradient, self._frozen(state.params)
    )
    updates, opt_state = self._tx.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
      "loss": loss,
      "gradient_norm": optax.global_norm(gradient),
      "learning_rate": jnp.asarray(self._learning_rate(state.step), jnp.float32),
    }
    return (
      state.replace(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        ema=update_ema(state.ema, params, state.step, self._ema_decay),
      ),
      metrics,
    )

  def predict(
    self, params: Any, model_state: Any, images: jax.Array, index: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    """How well hidden patches are painted.

    Args:
      params: as in `TrainState`: the parameters or their moving average.
      model_state: as in `TrainState`.
      images: [batch, height, width, 3] uint8.
      index: [batch] their rows in the split, from which it follows what is hidden, in every run
        alike; None: they are the first.

    Returns:
      "reconstruction" -> [batch, 2] float32: mean squared error over the hidden pixels, and that of
      painting all of them 0 (which normalised is each patch's own mean).
    """
    model = nnx.merge(self.graphdef, params["model"], model_state["model"])
    images, kept = self._fixed(images, index)
    return {RECONSTRUCTION: jnp.stack(self._errors(model, images, kept), axis=1)}

  def painted(
    self, params: Any, model_state: Any, images: jax.Array, index: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Images with the hidden patches grey, and with what is painted in their places.

    A model of normalised patches says nothing of their means and deviations: those are the images'.

    Args:
      params: as for `predict`, as are the rest.
      model_state: likewise.
      images: likewise.
      index: likewise.

    Returns:
      Both [batch, image_size, image_size, 3] float32 in [-1, 1].
    """
    model = nnx.merge(self.graphdef, params["model"], model_state["model"])
    images, kept = self._fixed(images, index)
    unseen = hidden(kept, self._patches)
    seen = blanked(images, unseen, self._patch_size)
    patches = cut(images, self._patch_size)
    given = model(seen, kept)
    if self._normalise:
      mean, deviation = _moments(patches)
      given = mean + deviation * given
    joined = jnp.where(unseen[..., None], jnp.clip(given, -1, 1), patches)
    return seen, assembled(joined, self._patch_size)

  def _errors(
    self, model: nnx.Module, images: jax.Array, kept: jax.Array, **options: Any
  ) -> tuple[jax.Array, jax.Array]:
    """[batch] squared errors, means over the hidden pixels, of the model and of painting 0."""
    unseen = hidden(kept, self._patches)
    target = cut(images, self._patch_size)
    if self._normalise:
      mean, deviation = _moments(target)
      target = (target - mean) / deviation
    given = model(blanked(images, unseen, self._patch_size), kept, **options)
    return unseen_error(given, target, unseen), unseen_error(0 * target, target, unseen)

  def _differentiated(
    self,
    loss_of: Callable[..., jax.Array],
    params: Any,
    inputs: tuple[jax.Array, ...],
    dropout: jax.Array,
  ) -> tuple[jax.Array, Any]:
    """Loss and gradient of a batch: the sums of those of its parts."""
    of_part = jax.value_and_grad(loss_of)
    if self._accumulate == 1:
      return of_part(params, inputs, dropout)
    # Rows i, i + parts, ...: of a batch that is split over devices each device keeps its own rows.
    split = lambda x: x.reshape(-1, self._accumulate, *x.shape[1:]).swapaxes(0, 1)
    number = jnp.arange(self._accumulate)
    keys = jax.vmap(lambda part: jax.random.fold_in(dropout, part))(number)

    def add(sums: Any, part: tuple[Any, jax.Array]) -> tuple[Any, None]:
      return jax.tree.map(jnp.add, sums, of_part(params, *part)), None

    nothing = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
    sums, _ = jax.lax.scan(add, nothing, (jax.tree.map(split, inputs), keys))
    return sums

  def _drawn(self, images: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Augmented images of a step, and which patches of each are kept: each row's own draw."""
    key = self._key(step, "augment")
    images = augment.augment(images, key, self._image_size, **self._augment)
    return images, self._kept(augment.row_keys(self._key(step, "mask"), images.shape[0]))

  def _fixed(self, images: jax.Array, index: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Images as they are, and which patches of each are kept: a function of its row alone."""
    index = jnp.arange(images.shape[0]) if index is None else index
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), row))(index)
    return augment.preprocess(images, self._image_size), self._kept(keys)

  def _kept(self, keys: jax.Array) -> jax.Array:
    """[batch, count] numbers of the patches that each image's key leaves, the smallest first."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, (self._patches,)))(keys)
    return jnp.sort(jnp.argsort(noise, axis=1)[:, : self._count], axis=1)

  def _key(self, step: jax.Array, stream: str) -> jax.Array:
    # jax.random.key(seed) itself made the parameters.
    number = 1 + ("augment", "dropout", "mask").index(stream)
    base = jax.random.fold_in(jax.random.key(self._seed), number)
    return jax.random.fold_in(base, step)


def cut(images: jax.Array, size: int) -> jax.Array:
  """[batch, height, width, 3] -> [batch, patches, size * size * 3], in rows from the top left."""
  batch, height, width, channels = images.shape
  x = images.reshape(batch, height // size, size, width // size, size, channels).swapaxes(2, 3)
  return x.reshape(batch, -1, size**2 * channels)


def assembled(patches: jax.Array, size: int) -> jax.Array:
  """[batch, side * side, size * size * 3] -> [batch, side * size, side * size, 3]: undoes `cut`."""
  batch, count = patches.shape[:2]
  side = round(count**0.5)
  x = patches.reshape(batch, side, side, size, size, -1).swapaxes(2, 3)
  return x.reshape(batch, side * size, side * size, -1)


def hidden(kept: jax.Array, patches: int) -> jax.Array:
  """[batch, count] numbers of the patches that are kept -> [batch, patches] bool of the others."""
  return jax.vmap(lambda numbers: jnp.ones(patches, bool).at[numbers].set(False))(kept)


def blanked(images: jax.Array, unseen: jax.Array, size: int) -> jax.Array:
  """Images with some patches mid grey.

  Args:
    images: [batch, height, width, 3] floats in [-1, 1].
    unseen: [batch, patches] bool.
    size: height and width of a patch, pixels.
  """
  return assembled(jnp.where(unseen[..., None], 0.0, cut(images, size)), size)


def unseen_error(given: jax.Array, target: jax.Array, unseen: jax.Array) -> jax.Array:
  """[batch] mean squared error over what is not seen.

  Args:
    given: [batch, patches, pixels].
    target: likewise.
    unseen: [batch, patches] bool; one patch at least of each image.
  """
  errors = ((given - target) ** 2).mean(axis=-1)
  return jnp.where(unseen, errors, 0.0).sum(axis=1) / unseen.sum(axis=1)


def _moments(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Means and standard deviations of the pixels of patches, [batch, patches, 1] each."""
  variance = patches.var(axis=-1, keepdims=True)
  return patches.mean(axis=-1, keepdims=True), jnp.sqrt(variance + 1e-6)
