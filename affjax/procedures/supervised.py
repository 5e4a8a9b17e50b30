"""Supervised learning of any set of tasks, each labelled in some of the images."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from affjax import augment, losses
from affjax.build import bind
from affjax.state import TrainState, update_ema

Metrics = dict[str, jax.Array]


class Supervised:
  """Minimises the tasks' losses, weighted by learned uncertainties.

  The three functions are pure and meant for `jax.jit`; randomness comes from (seed, step) alone.
  Parameters are `{"model": ..., "log_variance": {task: scalar}}`.
  """

  def __init__(
    self,
    *,
    make_model: Callable[[nnx.Rngs], nnx.Module],
    image_size: int,
    losses: Mapping[str, Mapping[str, Any]],
    optimizer: tuple[optax.GradientTransformation, optax.Schedule],
    augment: Mapping[str, Any],
    seed: int,
    weighting: str = "simple",
    ema_decay: float = 0.0,
    mixup_alpha: float = 0.0,
    accumulate: int = 1,
  ) -> None:
    """Builds the functions; no array is made.

    Args:
      make_model: builds the model from random keys.
      image_size: the model's input, pixels.
      losses: task -> section naming a loss (`losses.ccc_loss`) and its further arguments.
      optimizer: transformation and its learning rate.
      augment: arguments of `affjax.augment.augment`.
      seed: of initialisation, augmentation and dropout.
      weighting: see `affjax.losses.uncertainty_weighted`.
      ema_decay: of the parameters' moving average; 0: none is kept.
      mixup_alpha: see `affjax.augment.mixup`; 0: off.
      accumulate: micro-batches that a batch is cut into, to save memory; must divide it. Loss and
        gradient stay those of the whole batch. Only batch statistics see micro-batches.
    """
    self._make_model = make_model
    self._image_size = image_size
    self._losses = {task: bind(section, "affjax", 3) for task, section in losses.items()}
    self._tx, self._learning_rate = optimizer
    self._augment = dict(augment)
    self._seed = seed
    self._weighting = weighting
    self._ema_decay = ema_decay
    self._mixup_alpha = mixup_alpha
    self._accumulate = accumulate
    model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
    self.graphdef, _, _ = nnx.split(model, nnx.Param, ...)

  def init(self) -> TrainState:
    """The state before the first update; a function of the seed."""
    _, params, rest = nnx.split(self._make_model(nnx.Rngs(self._seed)), nnx.Param, ...)
    params = {
      "model": nnx.to_pure_dict(params),
      "log_variance": {task: jnp.zeros(()) for task in self._losses},
    }
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      model_state={"model": nnx.to_pure_dict(rest)},
      opt_state=self._tx.init(params),
      # A copy: the same buffer twice in a donated state would be donated twice.
      ema=jax.tree.map(jnp.copy, params) if self._ema_decay else None,
    )

  def view(self, batch: Mapping[str, Any], step: jax.Array) -> tuple[jax.Array, Any, Any]:
    """What the network sees at a step: augmented images with their labels and masks."""
    place, mix = jax.random.split(self._key(step, "augment"))
    images = augment.augment(batch["image"], place, self._image_size, **self._augment)
    return augment.mixup(images, batch["labels"], batch["mask"], mix, self._mixup_alpha)

  def train_step(self, state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
    """One update; deterministic in (seed, step, batch)."""
    images, labels, mask = self.view(batch, state.step)
    dropout = self._key(state.step, "dropout")
    differentiate = self._whole if self._accumulate == 1 else self._in_micro_batches
    loss, metrics, gradient, model_state = differentiate(state, images, labels, mask, dropout)
    updates, opt_state = self._tx.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics |= {
      "loss": loss,
      "gradient_norm": optax.global_norm(gradient),
      "learning_rate": jnp.asarray(self._learning_rate(state.step), jnp.float32),
    }
    return (
      state.replace(
        step=state.step + 1,
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        ema=update_ema(state.ema, params, state.step, self._ema_decay),
      ),
      metrics,
    )

  def _forward(
    self, params: Any, model_state: Any, images: jax.Array, dropout: jax.Array
  ) -> tuple[dict[str, jax.Array], Any]:
    """Outputs while training, and the model's state after them."""
    model = nnx.merge(self.graphdef, params["model"], model_state["model"])
    outputs = model(images, train=True, rngs=nnx.Rngs(dropout=dropout))
    _, _, rest = nnx.split(model, nnx.Param, ...)
    return outputs, {"model": nnx.to_pure_dict(rest)}

  def _loss(
    self, outputs: Mapping[str, jax.Array], params: Any, labels: Any, mask: Any
  ) -> tuple[jax.Array, Metrics]:
    """The loss of a whole batch, given the model's outputs for it."""
    parts = {t: loss(outputs[t], labels[t], mask[t]) for t, loss in self._losses.items()}
    total, weights = losses.uncertainty_weighted(
      parts,
      {t: losses.labelled(mask[t]) for t in parts},
      params["log_variance"],
      self._weighting,
    )
    metrics = {f"loss/{t}": parts[t] for t in parts} | {f"weight/{t}": weights[t] for t in parts}
    return total, metrics

  def _whole(
    self, state: TrainState, images: jax.Array, labels: Any, mask: Any, dropout: jax.Array
  ) -> tuple[jax.Array, Metrics, Any, Any]:
    """Loss, metrics, gradient and the model's state, from the batch in one piece."""

    def loss_of(params: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
      outputs, model_state = self._forward(params, state.model_state, images, dropout)
      total, metrics = self._loss(outputs, params, labels, mask)
      return total, (metrics, model_state)

    (loss, (metrics, model_state)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
      state.params
    )
    return loss, metrics, gradient, model_state

  def _in_micro_batches(
    self, state: TrainState, images: jax.Array, labels: Any, mask: Any, dropout: jax.Array
  ) -> tuple[jax.Array, Metrics, Any, Any]:
    """The same, with the activations of one micro-batch in memory at a time.

    A CCC or a mean over labelled entries is no mean of those of its parts. So all parts go forward
    first, the loss of all outputs gives its slope at each, and that is pulled back through one
    part after the other, which goes forward once more (Gao et al., 2021, arXiv:2101.06983, who do
    so for contrastive losses). Both times a part has the same dropout; only the second time do
    batch statistics move.
    """
    parts = self._accumulate
    # Rows i, i + parts, ...: of a batch that is split over devices each device keeps its own rows.
    cut = lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
    joined = lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    keys = jax.vmap(lambda part: jax.random.fold_in(dropout, part))(jnp.arange(parts))
    micro = (cut(images), keys)

    forward = lambda part: self._forward(state.params, state.model_state, *part)[0]
    outputs = jax.tree.map(joined, jax.lax.map(forward, micro))
    (loss, metrics), (slopes, gradient) = jax.value_and_grad(self._loss, (0, 1), has_aux=True)(
      outputs, state.params, labels, mask
    )

    def pull_back(sums: tuple[Any, Any], part: tuple[Any, Any]) -> tuple[tuple[Any, Any], None]:
      gradient, model_state = sums
      inputs, slope = part
      of_params = lambda params: self._forward(params, model_state, *inputs)
      _, pull, model_state = jax.vjp(of_params, state.params, has_aux=True)
      return (jax.tree.map(jnp.add, gradient, pull(slope)[0]), model_state), None

    (gradient, model_state), _ = jax.lax.scan(
      pull_back, (gradient, state.model_state), (micro, jax.tree.map(cut, slopes))
    )
    return loss, metrics, gradient, model_state

  def predict(
    self, params: Any, model_state: Any, images: jax.Array, attention: bool = False
  ) -> dict[str, Any]:
    """The model's outputs for images as they are.

    Args:
      params: as in `TrainState`: the parameters or their moving average.
      model_state: as in `TrainState`.
      images: [batch, height, width, 3] uint8.
      attention: return attention maps too, where the model has them.

    Returns:
      Task -> float32 outputs (`va` values, the others logits).
    """
    model = nnx.merge(self.graphdef, params["model"], model_state["model"])
    kwargs = {"attention": True} if attention else {}
    return model(augment.preprocess(images, self._image_size), **kwargs)

  def _key(self, step: jax.Array, stream: str) -> jax.Array:
    # jax.random.key(seed) itself made the parameters.
    base = jax.random.fold_in(jax.random.key(self._seed), 1 + ("augment", "dropout").index(stream))
    return jax.random.fold_in(base, step)
