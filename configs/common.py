"""What configs share. Nothing of affjax is imported here, so a config can be read anywhere."""

import difflib
import re
from typing import Any

import ml_collections
from ml_collections import config_dict


def parse(argument: str, **defaults: Any) -> dict[str, Any]:
  """Parses what stands after the colon of `--config=FILE:data=ferplus,variant=S/16,debug`.

  Args:
    argument: comma-separated `key=value`; a key alone is True.
    **defaults: key -> default; values take the type of the default. Numbers are whole and from 1
      on, or from 0 where the default is 0.

  Raises:
    ValueError: a key that is not among the defaults, or a value of another type.
  """
  values = dict(defaults)
  for part in filter(None, argument.split(",")):
    key, given, text = part.partition("=")
    if key not in defaults:
      close = difflib.get_close_matches(key, defaults, 1)
      hint = f"did you mean {close[0]!r}? " if close else ""
      raise ValueError(f"config argument {key!r}: {hint}use {', '.join(defaults)}")
    values[key] = _read(key, text, defaults[key]) if given else True
    if type(values[key]) is not type(defaults[key]):
      raise ValueError(f"config argument {key!r} needs a value: {key}={defaults[key]}")
  return values


def _read(key: str, text: str, default: bool | int | str) -> bool | int | str:
  if isinstance(default, bool):
    if text.lower() not in ("true", "false", "1", "0"):
      raise ValueError(f"config argument {key}={_shown(text)}: use true or false")
    return text.lower() in ("true", "1")
  if isinstance(default, str):
    return text
  # More digits are more than the step of a run can count.
  if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
    raise ValueError(f"config argument {key}={_shown(text)}: not int, or over nine digits")
  if int(text) < min(default, 1):
    raise ValueError(f"config argument {key}={text}: use at least {min(default, 1)}")
  return int(text)


def _shown(text: str) -> str:
  """The text, escaped where it would not be one line."""
  return text if text.isprintable() else repr(text)


def one_of(key: str, value: str, allowed: Any) -> str:
  """Returns `value`, or raises ValueError naming what is allowed."""
  if value not in allowed:
    raise ValueError(f"config argument {key}={_shown(value)}: use one of {', '.join(allowed)}")
  return value


def training(config: ml_collections.ConfigDict) -> None:
  """Fields of every training run, with their defaults."""
  config.seed = 0
  config.accumulate = 1  # micro-batches that a batch is cut into where memory is short
  config.dtype = "auto"  # of activations: float32 on CPU, bfloat16 on accelerators
  config.log_every = 10  # steps
  config.nonfinite = "stop"  # or "skip": of an update whose loss or gradient is not finite
  config.profile = 0  # steps that are traced, once they are warm: DIR/profile, for TensorBoard
  config.draw_report = True  # report.html at the end
  # A project at Weights & Biases that gets the numbers, too: see affjax/monitor.py. None: none.
  config.wandb = config_dict.placeholder(str)
  config.mesh = dict(
    data=-1,  # -1: every device that is left
    model=1,
    rules="replicated",  # where the state lives: also fsdp, hybrid, or see affjax/sharding
  )
  config.checkpoint = dict(
    every=100,  # steps; each evaluation saves too
    keep_last=2,
    keep_best=1,
    metric="p_mtl",  # larger is better; on config.data.select
  )
  # What the parameters start from: the name of imported weights (python scripts/import_weights.py
  # --list), or a source as below. None: what is below.
  config.init = config_dict.placeholder(str)
  # The same in full, by name: see affjax/initialise.py.
  config.initialise = dict(
    source=config_dict.placeholder(str),  # another run's folder or an .npz; None: random
    checkpoint="best",
    weights="ema",
    include=".*",
    exclude="",
    rename=(),  # (pattern, replacement) pairs, from the source's names to this run's
    more=dict(),  # name -> the same fields: further sources, each of parameters of its own
  )


def adamw(**changes: Any) -> dict[str, Any]:
  """The section of an optimiser, with all that can be set; see affjax/optim.py."""
  section = dict(
    name="optim.adamw",
    learning_rate=1e-3,
    schedule="cosine",
    final_fraction=0.0,  # of the learning rate, what is left at the end
    warmup_steps=0,
    weight_decay=0.05,
    clip_norm=1.0,
    layer_decay=1.0,  # factor on the learning rate for each block below the last; 1: none
    groups=dict(),  # name -> dict(pattern=..., freeze=True or another learning_rate, ...)
  )
  return section | changes
