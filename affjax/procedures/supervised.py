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

    def loss_of(params: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
      model = nnx.merge(self.graphdef, params["model"], state.model_state["model"])
      outputs = model(images, train=True, rngs=nnx.Rngs(dropout=dropout))
      parts = {t: loss(outputs[t], labels[t], mask[t]) for t, loss in self._losses.items()}
      total, weights = losses.uncertainty_weighted(
        parts,
        {t: losses.labelled(mask[t]) for t in parts},
        params["log_variance"],
        self._weighting,
      )
      _, _, rest = nnx.split(model, nnx.Param, ...)
      metrics = {f"loss/{t}": parts[t] for t in parts} | {f"weight/{t}": weights[t] for t in parts}
      return total, (metrics, {"model": nnx.to_pure_dict(rest)})

    (loss, (metrics, model_state)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
      state.params
    )
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
