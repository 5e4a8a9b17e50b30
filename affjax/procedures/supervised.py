"""Supervised learning of any set of tasks, each labelled in some of the images."""

import copy
import functools
import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from affjax import augment, losses
from affjax.build import bind
from affjax.state import TrainState, start, update_ema

Metrics = dict[str, jax.Array]

DIMENSIONS = ("valence", "arousal")  # of the task "va"
# What a loss may take besides prediction, target and mask, by the name of its argument.
EXTRAS = ("log_variance", "key")
# What `weighting="kendall"` can weigh.
_LIKELIHOODS = (losses.mean_squared_error, losses.cross_entropy, losses.binary_cross_entropy)


class Supervised:
  """Minimises the tasks' losses, weighted by learned uncertainties.

  The three functions are pure and meant for `jax.jit`; randomness comes from (seed, step) alone.
  Parameters are `{"model": ..., "log_variance": {task: scalar, or [2] of valence and arousal}}`.

  A task has one kind of uncertainty: learned for all images alike, or predicted for each. A model
  whose outputs hold "va/log_variance" predicts it, and a loss with an argument `log_variance` (such
  as `losses.gaussian_nll`) takes it; that task then enters at weight 1 and has no log variance of
  its own here: its loss may be negative, and a learned weight would grow without end.

  Batches are of images, or of clips: their arrays have a second dimension, time, and in `index` -1
  where there is no frame. To the losses all frames of all clips are one batch.

  Attributes:
    graphdef: of the model.
    input_shape: of an image without the batch, as the model takes it.
  """

  def __init__(
    self,
    *,
    make_model: Callable[[nnx.Rngs], nnx.Module],
    image_size: int,
    losses: Mapping[str, Mapping[str, Any]],
    optimizer: tuple[optax.GradientTransformation, optax.Schedule, Callable[[Any], Any]],
    augment: Mapping[str, Any],
    seed: int,
    weighting: str = "simple",
    per_dimension: bool = False,
    sam_radius: float = 0.0,
    ema_decay: float = 0.0,
    mixup_alpha: float = 0.0,
    accumulate: int = 1,
  ) -> None:
    """Builds the functions; no array is made.

    Args:
      make_model: builds the model from random keys.
      image_size: the model's input, pixels.
      losses: task -> section naming a loss (`losses.ccc_loss`) and its further arguments. A loss
        with an argument named in EXTRAS is given the log variances that the model predicts for its
        task, and a random key of its own.
      optimizer: an `affjax.optim.Optimizer`: transformation, learning rate, what is frozen.
      augment: arguments of `affjax.augment.augment`.
      seed: of initialisation, augmentation and dropout.
      weighting: `kind` of `affjax.losses.uncertainty_weighted`; "equal": plain sum.
      per_dimension: whether valence and arousal have a log variance each, or share the task's.
      sam_radius: Sharpness-Aware Minimisation (Foret et al., 2021, arXiv:2010.01412), rho: the
        gradient is that of where the loss is highest, to first order, within this distance of the
        model's parameters; 0: off. Costs a second pass over the batch, of the same view and
        dropout. Losses, log variances and batch statistics are those of the parameters themselves.
      ema_decay: of the parameters' moving average; 0: none is kept.
      mixup_alpha: see `affjax.augment.mixup`; 0: off.
      accumulate: micro-batches that a batch is cut into, to save memory; must divide it. Loss and
        gradient stay those of the whole batch. Only batch statistics see micro-batches.

    Raises:
      ValueError: options that do not go together; it says what does.
    """
    if not (isinstance(sam_radius, numbers.Real) and 0 <= sam_radius < float("inf")):
      raise ValueError(f"config.procedure.sam_radius={sam_radius!r}: use a number >= 0 (0: off)")
    self._make_model = make_model
    self._image_size = image_size
    self._losses = {task: bind(section, "affjax.losses", 3) for task, section in losses.items()}
    self._tx, self._learning_rate, self._frozen, self._starts = optimizer
    self._augment = dict(augment)
    self._seed = seed
    self._weighting = weighting
    self._sam_radius = sam_radius
    self._ema_decay = ema_decay
    self._mixup_alpha = mixup_alpha
    self._accumulate = accumulate
    model = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
    self._graphdefs = {}
    for step in reversed(self._starts):  # the further back, the more is frozen
      hold_statistics(model, functools.partial(self._frozen, step=step))
      self._graphdefs[step] = nnx.split(model, nnx.Param, ...)[0]
    self.graphdef = self._graphdefs[self._starts[-1]]
    self.input_shape = getattr(model, "input_shape", (image_size, image_size, 3))
    image = jax.ShapeDtypeStruct((1, *self.input_shape), jnp.float32)
    outputs = nnx.eval_shape(lambda model, image: model(image), model, image)
    self._extras = _extras(self._losses, outputs)
    self._learned = _learned(self._losses, self._extras, weighting)
    self._by_dimension = {"va": DIMENSIONS} if per_dimension else {}
    _check_dimensions(self._by_dimension, self._learned, outputs)

  def init(self) -> TrainState:
    """The state before the first update; a function of the seed."""
    _, params, rest = nnx.split(self._make_model(nnx.Rngs(self._seed)), nnx.Param, ...)
    params = {"model": nnx.to_pure_dict(params)}
    if self._learned:
      params["log_variance"] = {
        task: jnp.zeros(len(self._by_dimension[task]) if task in self._by_dimension else ())
        for task in self._learned
      }
    model_state = {"model": nnx.to_pure_dict(rest)}
    return start(params, model_state, self._tx.init(params), average=bool(self._ema_decay))

  def view(self, batch: Mapping[str, Any], step: jax.Array) -> tuple[jax.Array, Any, Any]:
    """What the network sees at a step: augmented images with their labels and masks."""
    place, mix = jax.random.split(self._key(step, "augment"))
    images = augment.augment(batch["image"], place, self._image_size, **self._augment)
    return augment.mixup(images, batch["labels"], batch["mask"], mix, self._mixup_alpha)

  def train_step(self, state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
    """One update; deterministic in (seed, step, batch)."""
    updates = [self._from(step)._update for step in self._starts]
    if len(updates) == 1:
      return updates[0](state, batch)
    begun = (state.step >= jnp.asarray(self._starts[1:])).sum()
    return jax.lax.switch(begun, updates, state, batch)

  def _from(self, step: int) -> "Supervised":
    """The same procedure, with what is frozen from this step on until some of it thaws."""
    stage = copy.copy(self)
    stage.graphdef = self._graphdefs[step]
    stage._frozen = functools.partial(self._frozen, step=step)
    return stage

  def _update(self, state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
    """One update of the stage that this is."""
    images, labels, mask = self.view(batch, state.step)
    clips = images.ndim > len(self.input_shape) + 1
    present = {"present": batch["index"] >= 0} if clips else {}
    keys = {stream: self._key(state.step, stream) for stream in ("dropout", "noise")}
    differentiate = functools.partial(
      self._whole if self._accumulate == 1 else self._in_micro_batches,
      inputs={"images": images, **present},
      labels=labels,
      mask=mask,
      keys=keys,
    )
    loss, metrics, gradient, model_state = differentiate(state)
    if self._sam_radius:
      climbed = state.replace(params=self._climbed(state.params, gradient))
      _, _, above, _ = differentiate(climbed)
      gradient = gradient | {"model": above["model"]}
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
    self, params: Any, model_state: Any, inputs: Mapping[str, jax.Array], dropout: jax.Array
  ) -> tuple[dict[str, jax.Array], Any]:
    """Outputs while training, and the model's state after them."""
    model = nnx.merge(self.graphdef, params["model"], model_state["model"])
    outputs = model(**inputs, train=True, rngs=nnx.Rngs(dropout=dropout))
    _, _, rest = nnx.split(model, nnx.Param, ...)
    return outputs, {"model": nnx.to_pure_dict(rest)}

  def _learning(self, params: Any) -> Any:
    """The parameters that learn, None in the place of frozen ones: no gradient is made of those."""
    return jax.tree.map(lambda p, frozen: None if frozen else p, params, self._frozen(params))

  def _climbed(self, params: Any, gradient: Any) -> Any:
    """Parameters with the model's moved by the radius in the direction of their gradient.

    Log variances stay: they are the loss's, and its sharpness in them says nothing of the network.
    (optax.contrib.sam as it is would move them. It also either calls a perturbed step a step, so
    that checkpoints, averages and schedules see it, or calls the gradient from inside the update,
    where metrics and batch statistics cannot get out.)
    """
    norm = optax.global_norm(gradient["model"])
    scale = self._sam_radius / jnp.maximum(norm, 1e-12)  # no gradient, no step
    moved = jax.tree.map(lambda p, g: p + scale * g, params["model"], gradient["model"])
    return params | {"model": moved}

  def _loss(
    self, outputs: Mapping[str, jax.Array], params: Any, labels: Any, mask: Any, noise: jax.Array
  ) -> tuple[jax.Array, Metrics]:
    """The loss of a whole batch, given the model's outputs for it."""
    if next(iter(labels.values())).ndim == 3:
      frames = lambda x: x.reshape(-1, *x.shape[2:])
      outputs, labels, mask = jax.tree.map(frames, (dict(outputs), labels, mask))
    parts, labelled = {}, {}
    for task, loss in self._losses.items():
      loss = functools.partial(loss, **self._extra(task, outputs, noise))
      by_dimension = task in self._by_dimension
      loss = losses.per_dimension(loss) if by_dimension else loss
      parts[task] = loss(outputs[task], labels[task], mask[task])
      labelled[task] = losses.labelled(mask[task], 0 if by_dimension else None)
    learned = {task: parts[task] for task in parts if task in self._learned}
    others = {task: parts[task] for task in parts if task not in self._learned}
    log_variances = params.get("log_variance", {})
    total, weights = losses.uncertainty_weighted(
      learned, labelled, log_variances, self._weighting, _gaussian(self._losses)
    )
    plain, of_others = losses.uncertainty_weighted(others, labelled, {}, "equal")
    return total + plain, {
      **self._by_name("loss", parts, labelled),
      **self._by_name("weight", weights | of_others, labelled),
      **self._sigmas(outputs),
    }

  def _extra(
    self, task: str, outputs: Mapping[str, jax.Array], noise: jax.Array
  ) -> dict[str, jax.Array]:
    """What a task's loss takes of EXTRAS."""
    offered = {
      "log_variance": lambda: outputs[f"{task}/log_variance"],
      "key": lambda: jax.random.fold_in(noise, sorted(self._losses).index(task)),
    }
    return {name: offered[name]() for name in self._extras[task]}

  def _by_name(self, kind: str, values: Metrics, labelled: Metrics) -> Metrics:
    """A number for each task, of dimensions the mean over the labelled ones and each of them."""
    named = {}
    for task in self._losses:
      value = values[task]
      if task in self._by_dimension:
        dimensions = zip(self._by_dimension[task], value, strict=True)
        named |= {f"{kind}/{task}/{dimension}": x for dimension, x in dimensions}
        value = value.sum() / jnp.maximum(labelled[task].sum(), 1.0)
      named[f"{kind}/{task}"] = value
    return named

  def _sigmas(self, outputs: Mapping[str, jax.Array]) -> Metrics:
    """Mean over the batch of the standard deviations that the model predicts."""
    named = {}
    for task in self._losses:
      if "log_variance" in self._extras[task]:
        limit = losses.LOG_VARIANCE_LIMIT
        sigma = jnp.exp(0.5 * jnp.clip(outputs[f"{task}/log_variance"], -limit, limit))
        named[f"sigma/{task}"] = sigma.mean()
        if task == "va":
          named |= {f"sigma/va/{n}": x for n, x in zip(DIMENSIONS, sigma.mean(0), strict=True)}
    return named

  def _whole(
    self, state: TrainState, inputs: Any, labels: Any, mask: Any, keys: dict[str, jax.Array]
  ) -> tuple[jax.Array, Metrics, Any, Any]:
    """Loss, metrics, gradient and the model's state, from the batch in one piece."""

    def loss_of(learning: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
      params = _fill(learning, state.params)
      outputs, model_state = self._forward(params, state.model_state, inputs, keys["dropout"])
      total, metrics = self._loss(outputs, params, labels, mask, keys["noise"])
      return total, (metrics, model_state)

    (loss, (metrics, model_state)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
      self._learning(state.params)
    )
    return loss, metrics, _fill(gradient, state.params, jnp.zeros_like), model_state

  def _in_micro_batches(
    self, state: TrainState, inputs: Any, labels: Any, mask: Any, keys: dict[str, jax.Array]
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
    dropout = jax.vmap(lambda part: jax.random.fold_in(keys["dropout"], part))
    micro = (jax.tree.map(cut, inputs), dropout(jnp.arange(parts)))

    forward = lambda part: self._forward(state.params, state.model_state, *part)[0]
    outputs = jax.tree.map(joined, jax.lax.map(forward, micro))
    learning = self._learning(state.params)
    loss_of = lambda outputs, learning: self._loss(
      outputs, _fill(learning, state.params), labels, mask, keys["noise"]
    )
    (loss, metrics), (slopes, gradient) = jax.value_and_grad(loss_of, (0, 1), has_aux=True)(
      outputs, learning
    )

    def pull_back(sums: tuple[Any, Any], part: tuple[Any, Any]) -> tuple[tuple[Any, Any], None]:
      gradient, model_state = sums
      piece, slope = part
      of_params = lambda learning: self._forward(_fill(learning, state.params), model_state, *piece)
      _, pull, model_state = jax.vjp(of_params, learning, has_aux=True)
      return (jax.tree.map(jnp.add, gradient, pull(slope)[0]), model_state), None

    (gradient, model_state), _ = jax.lax.scan(
      pull_back, (gradient, state.model_state), (micro, jax.tree.map(cut, slopes))
    )
    return loss, metrics, _fill(gradient, state.params, jnp.zeros_like), model_state

  def predict(
    self,
    params: Any,
    model_state: Any,
    images: jax.Array,
    present: jax.Array | None = None,
    attention: bool = False,
  ) -> dict[str, Any]:
    """The model's outputs for images as they are.

    Args:
      params: as in `TrainState`: the parameters or their moving average.
      model_state: as in `TrainState`.
      images: [batch, height, width, 3] uint8, of clips [batch, time, height, width, 3]; features of
        images, where the model takes those, [batch, width] or [batch, time, width] floats.
      present: of clips, [batch, time] bool: which frames there are.
      attention: return attention maps too, where the model has them.

    Returns:
      Task -> float32 outputs (`va` values, the others logits), [batch, size], of clips [batch,
      time, size].
    """
    model = nnx.merge(self.graphdef, params["model"], model_state["model"])
    kwargs: dict[str, Any] = {} if present is None else {"present": present}
    kwargs |= {"attention": True} if attention else {}
    return model(augment.preprocess(images, self._image_size), **kwargs)

  def features(
    self, params: Any, model_state: Any, images: jax.Array, present: jax.Array | None = None
  ) -> dict[str, jax.Array]:
    """What `predict` gives, and "features": see `affect.AffectModel.features`."""
    model = nnx.merge(self.graphdef, params["model"], model_state["model"])
    return model.features(augment.preprocess(images, self._image_size), present)

  def _key(self, step: jax.Array, stream: str) -> jax.Array:
    # jax.random.key(seed) itself made the parameters.
    number = 1 + ("augment", "dropout", "noise").index(stream)
    base = jax.random.fold_in(jax.random.key(self._seed), number)
    return jax.random.fold_in(base, step)


def _fill(tree: Any, params: Any, of: Callable[[Any], Any] = lambda p: p) -> Any:
  """The tree, with `of` each parameter where it has None."""
  one = lambda x, p: of(p) if x is None else x
  return jax.tree.map(one, tree, params, is_leaf=lambda x: x is None)


def _gaussian(bound: Mapping[str, Callable[..., jax.Array]]) -> list[str]:
  """The tasks whose loss is a mean squared error."""
  return [task for task, loss in bound.items() if loss.func is losses.mean_squared_error]


def hold_statistics(model: nnx.Module, frozen: Callable[[Any], Any]) -> None:
  """Has the batch norms whose own parameters are frozen keep their statistics, and go by them.

  Args:
    model: is changed.
    frozen: see `affjax.optim.Optimizer`.
  """
  still = frozen({"model": nnx.to_pure_dict(nnx.state(model, nnx.Param))})["model"]
  for path, module in nnx.iter_modules(model):
    own = functools.reduce(lambda tree, key: tree.get(key, {}), path, still)
    if isinstance(module, nnx.BatchNorm) and own and all(jax.tree.leaves(own)):
      module.use_running_average = True


def _extras(
  bound: Mapping[str, Callable[..., jax.Array]], outputs: Mapping[str, Any]
) -> dict[str, list[str]]:
  """Task -> which of EXTRAS its loss takes; checks that log variances come where they are used."""
  extras = {
    task: [name for name in EXTRAS if name in inspect.signature(loss.func).parameters]
    for task, loss in bound.items()
  }
  takes = [task for task in bound if "log_variance" in extras[task]]
  gives = [task for task in bound if f"{task}/log_variance" in outputs]
  for task in takes:
    if task not in gives:
      raise ValueError(
        f"config.losses.{task}={_name(bound[task])} needs the log variance of each image, which the"
        " model does not give: set config.model.decoder.heteroscedastic=True, or use another loss"
      )
  if gives and not takes:
    raise ValueError(
      f"the model gives log variances of {', '.join(gives)} and no loss uses them: set"
      " config.model.decoder.heteroscedastic=False, or use losses.gaussian_nll (va),"
      " losses.heteroscedastic_cross_entropy (expression) or"
      " losses.heteroscedastic_binary_cross_entropy (au)"
    )
  return extras


def _learned(
  bound: Mapping[str, Callable[..., jax.Array]], extras: Mapping[str, list[str]], weighting: str
) -> list[str]:
  """The tasks that have a learned log variance; checks that their losses can be weighted so."""
  if weighting not in losses.WEIGHTINGS:
    raise ValueError(
      f"config.procedure.weighting={weighting!r}: use one of {', '.join(losses.WEIGHTINGS)}"
    )
  if weighting == "equal":
    return []
  learned = [task for task in bound if "log_variance" not in extras[task]]
  for task in learned if weighting == "kendall" else ():
    if bound[task].func not in _LIKELIHOODS:
      raise ValueError(
        f"config.procedure.weighting='kendall' with config.losses.{task}={_name(bound[task])}: that"
        " is no likelihood. Use"
        f" {', '.join(f'losses.{f.__name__}' for f in _LIKELIHOODS)} or a loss with log variances,"
        " or weighting 'simple', 'liebel' or 'equal'"
      )
  return learned


def _check_dimensions(
  by_dimension: Mapping[str, tuple[str, ...]], learned: list[str], outputs: Mapping[str, Any]
) -> None:
  for task, names in by_dimension.items():
    if task not in learned:
      raise ValueError(
        f"config.procedure.per_dimension=True, but {task} has no learned weight: it needs"
        f" config.losses.{task} without predicted log variances and a weighting other than 'equal'"
      )
    if outputs[task].shape[-1] != len(names):
      raise ValueError(
        f"config.procedure.per_dimension=True needs config.labels.{task} to be {', '.join(names)},"
        f" not {outputs[task].shape[-1]} of them"
      )


def _name(loss: Callable[..., jax.Array]) -> str:
  return f"losses.{loss.func.__name__}"
