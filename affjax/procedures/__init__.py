"""How parameters learn: a procedure is three functions, `init`, `train_step` and `predict`."""

from collections.abc import Mapping
from typing import Any

import jax

from affjax.build import bind, build


def activation_dtype(name: str) -> str:
  """Resolves "auto": float32 on CPU, which has no bfloat16 units, bfloat16 on accelerators."""
  allowed = ("auto", "float32", "bfloat16")
  if name not in allowed:
    raise ValueError(f"config.dtype={name!r}: use one of {', '.join(allowed)}")
  if name == "auto":
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
  return name


def from_config(config: Mapping[str, Any]) -> Any:
  """Builds a run's procedure; no array is made.

  Raises:
    ValueError: a section names what does not exist, or gives arguments that it does not take.
  """
  unknown = set(config["losses"]) ^ set(config["labels"])
  if unknown:
    raise ValueError(f"config.losses and config.labels must name the same tasks, not {unknown}")
  outputs = {task: len(names) for task, names in config["labels"].items()}
  # What learns without labels has neither.
  losses, outputs = ({"losses": config["losses"]}, {"outputs": outputs}) if outputs else ({}, {})
  dtype = activation_dtype(config["dtype"])
  optimizer = config["optimizer"]
  # What the procedure gives to it at each step is looked at now.
  bind({"name": "augment.augment", **config["augment"]}, "affjax.augment", given=3)
  procedure = build(
    config["procedure"],
    "affjax.procedures",
    make_model=lambda rngs: build(
      config["model"],
      "affjax.models",
      **outputs,
      image_size=config["image_size"],
      dtype=dtype,
      rngs=rngs,
    ),
    image_size=config["image_size"],
    **losses,
    optimizer=build(optimizer, "affjax.optim", steps=config["steps"]),
    augment=config["augment"],
    seed=config["seed"],
    accumulate=config.get("accumulate", 1),  # absent from the configs of earlier runs
  )
  if optimizer.get("groups") or optimizer.get("layer_decay", 1.0) != 1:
    jax.eval_shape(procedure.init)  # what does not fit the parameters is said before they are there
  return procedure
