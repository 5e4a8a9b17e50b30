"""Masked CoTEX: two networks that see other parts of a face, and agree on its expression.

After Li, Sun, Liu, Han & Shan (2022, arXiv:2207.11679), who learn from synthetic data so: two ViTs
that masked autoencoding has taught what faces are, each without most of the patches of an image
while training, and all of it in evaluation. What they give is averaged. What is known of each field
stands behind it: CODE (theirs), ABSTRACT, RECALL or INFERRED.

Six expressions: a face of another teaches nothing, and is not read. In place of the authors'
synthetic data are renders; with the licensed data at hand, `data=lsd`.

  python -m affjax.main --config=configs/cotex.py                  # synthetic faces, minutes
  python -m affjax.main --config=configs/cotex.py:networks=1       # the single twin
  python -m affjax.main --config=configs/cotex.py --config.procedure.agreement=0
  python -m affjax.main --config=configs/cotex.py:data=lsd,variant=paper --mode=check --noopen_data

By default the networks start from random numbers. What learnt without labels is named by `start`,
both start from it, and only their outputs are new:

  python -m affjax.main --config=configs/mae.py
  python -m affjax.main --config=configs/cotex.py:start=runs/mae

Arguments after the colon: data (synthetic_faces, lsd, ferplus, or one of them and its config:
synthetic_faces/lsd), networks (2; 1: a network by itself), mask_rate (share of the patches that are
not seen while training; 0: all are), start (folder of a run with one encoder, or a file of
weights), variant (reduced: small, learns in minutes; paper: as published), steps, batch_size, debug
(one CPU, under a minute; the smallest data set of that kind).
"""

import math

import ml_collections

from configs import common, lsd

EXPRESSIONS = lsd.CLASSES[1:]  # CODE: the six, without neutral
# The encoders are those of configs/mae.py, so that a run can start from one of its.
# fmt: off
DATA = {
  "synthetic_faces": dict(
    data=dict(
      image_size=112, train="train:labelled", select="validation:labelled",
      report=("test:labelled",),
    ),
    augment=dict(
      flip_rate=0.5, scale=0.03, shift=0.02, brightness=0.1, contrast=0.1, cast=0.03,
      grey_rate=0.05, erase_rate=0.0, erase_area=0.15,
    ),
    encoder=dict(variant="mu/16", stem="residual", layer_scale=0.02),
  ),
  "lsd": dict(
    data=dict(image_size=112, train="train", select="validation", report=()),
    augment=dict(
      flip_rate=0.5, scale=0.1, shift=0.05, brightness=0.15, contrast=0.2, cast=0.05,
      grey_rate=0.1, erase_rate=0.0, erase_area=0.15,
    ),
    encoder=dict(variant="mu/16", stem="residual", layer_scale=0.02),
  ),
  "ferplus": dict(
    data=dict(
      image_size=48, train="train:labelled", select="dev:labelled",
      report=("validation:labelled",),
    ),
    augment=dict(
      flip_rate=0.5, scale=0.15, shift=0.08, brightness=0.1, contrast=0.25, cast=0.0,
      grey_rate=0.0, erase_rate=0.0, erase_area=0.15,
    ),
    encoder=dict(variant="mu/8", stem="conv", layer_scale=0.0),
    metric="expression/strict/f1",
  ),
}
# fmt: on
IMAGES = 277_251  # CODE: of the licensed training set
EPOCHS = 6  # CODE
BATCH = 400  # INFERRED: 100 in each of 4 micro-batches, as of EMMA's (CODE)


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Returns the config; see the module's docstring for the argument."""
  given = common.parse(
    argument, data="synthetic_faces", networks=2, mask_rate="", start="", variant="reduced",
    steps=0, batch_size=0, debug=False,
  )  # fmt: skip
  name, _, builder_config = given["data"].partition("/")
  kind = DATA[common.one_of("data", name, DATA)]
  paper = common.one_of("variant", given["variant"], ("reduced", "paper")) == "paper"
  debug = given["debug"]
  if debug:
    builder_config = builder_config or ("tiny" if name == "synthetic_faces" else "")
  # ABSTRACT: most patches are hidden. INFERRED: as many as by masked autoencoding; fewer of a small
  # image, of which a quarter are a dozen patches.
  mask_rate = _rate(given["mask_rate"]) if given["mask_rate"] else 0.75 if paper else 0.5

  config = ml_collections.ConfigDict()
  common.training(config)
  # CODE: the batch grows by what masks leave free.
  batch_size = 4 * round(BATCH / 4 / (1 - mask_rate)) if paper else 32
  config.batch_size = given["batch_size"] or (16 if debug else batch_size)
  epochs = max(EPOCHS * IMAGES // config.batch_size, 1)
  config.steps = given["steps"] or (20 if debug else epochs if paper else 2500)
  config.accumulate = 4 if paper else 1  # CODE
  config.image_size = 224 if paper else kind["data"]["image_size"]  # INFERRED: 224
  config.labels = dict(expression=EXPRESSIONS)
  config.data = dict(
    name=name,
    config=builder_config,
    workers=0,
    threads=2,
    placement="auto",
    records="auto",
    sampling="uniform",
    unreadable="error",
    view=dict(noise="clean", masks="none"),
    **kind["data"],
  )
  config.augment = dict(kind["augment"])  # INFERRED
  config.model = dict(
    name="ensembles.Ensemble",
    members=given["networks"],  # CODE: 2
    network="affect.AffectModel",
    encoder=dict(
      name="vit.ViT",
      mask_rate=mask_rate,
      dropout_rate=0.0,
      drop_path_rate=0.1 if paper else 0.0,  # INFERRED: as of EMMA's (CODE)
      class_token=False,
      gelu="tanh",
      remat=False,
      scan=False,
      **kind["encoder"],
    ),
    # INFERRED: from the mean of all tokens.
    decoder=dict(name="decoders.Linear", heteroscedastic=False, va_activation="tanh"),
  )
  if debug:
    config.model.encoder.depth = 1
  if paper:
    config.model.encoder.update(
      variant="B/16",  # CODE
      stem="patch",  # CODE
      layer_scale=0.0,  # RECALL: none
      class_token=True,  # CODE: of EMMA's
      gelu="exact",  # RECALL
    )
  config.losses = dict(expression=dict(name="losses.cross_entropy", label_smoothing=0.0))
  config.procedure = dict(
    name="co_training.CoTraining",
    agreement=100 / len(EXPRESSIONS),  # CODE: 100 times a mean over the classes
    weighting="equal",  # CODE
    ema_decay=0.0 if paper else 0.998,  # INFERRED: none
    mixup_alpha=0.0,
  )
  config.optimizer = _optimizer(paper, config.steps)
  _begin(config, given["start"])

  every = 10 if debug else max(config.steps // 5, 1)
  config.evaluate = dict(every=every, batch_size=64 if debug else 256, probe=False)
  config.checkpoint.every = 5 if debug else max(every // 2, 1)
  config.checkpoint.metric = kind.get("metric", "expression/f1")
  config.log_every = 5 if debug else 50
  return config


def _rate(text: str) -> float:
  try:
    rate = float(text)
  except ValueError:
    rate = math.nan
  if not 0 <= rate < 1:
    raise ValueError(
      f"config argument mask_rate={text!r}: use a number from 0 up to 1, such as 0.5"
    )
  return rate


def _optimizer(paper: bool, steps: int) -> dict:
  if not paper:
    return common.adamw(warmup_steps=min(200, steps // 10))
  return common.adamw(
    learning_rate=5e-4,  # CODE
    warmup_steps=steps * 5 // EPOCHS,  # CODE: 5 epochs of the 6
    final_fraction=1e-6 / 5e-4,  # INFERRED: as of EMMA's (CODE), down a cosine
    weight_decay=0.05,  # INFERRED: as of EMMA's (CODE)
    clip_norm=0.05,  # CODE
    layer_decay=0.65,  # CODE
  )


def _begin(config: ml_collections.ConfigDict, start: str) -> None:
  """Has every network start from one encoder."""
  if not start:
    return
  into = lambda i: dict(
    source=start,
    checkpoint="best",
    weights="ema",
    include=".*",
    exclude="decoder",
    rename=(("^model/", f"model/members/{i}/"),),
  )
  config.initialise.update(into(0))
  rest = range(1, config.model.members)
  config.initialise.more = {f"network{i}": into(i) for i in rest}
