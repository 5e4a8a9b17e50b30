"""The flagship: a ViT with one token per task and uncertainty-weighted losses.

After Tallec, Yvinec, Dapogny & Bailly (2022, arXiv:2208.03506): valence-arousal, expression and
action units from one image, each task a learned token of a transformer, the losses weighted by
learned uncertainties. What is known of the paper and what is our reading:
`affjax/models/decoders.py`. Here the tokens go through the ViT itself; in the code of the paper's
authors they have a decoder of their own: `--config.model.decoder.position=decoder`.

  python -m affjax.main --config=configs/vit_mtl.py                   # synthetic faces, minutes
  python -m affjax.main --config=configs/vit_mtl.py:data=ferplus      # photographs, expression only
  python -m affjax.main --config=configs/vit_mtl.py:data=s_aff_wild2  # the licensed data
  python -m affjax.main --config=configs/vit_mtl.py:data=image_folder/my_set,metric=expression/f1
  python -m affjax.main --config=configs/vit_mtl.py:variant=S/16      # a larger encoder
  python -m affjax.main --config=configs/vit_mtl.py --config.model.decoder.layout=elementary
  python -m affjax.main --config=configs/vit_mtl.py:plain=true        # without tokens, to compare

Arguments after the colon: data (synthetic_faces, ferplus, s_aff_wild2, aff_wild2, affectnet,
raf_db, expw, raf_au, image_folder, or one of them and its config: aff_wild2/va), variant (mu, Ti,
S, B / patch size), steps, batch_size, metric (the score that chooses the checkpoint), plain (the
twin that has no task tokens: the mean of the encoder's tokens, a linear head for each task, equal
weights of the losses), auxiliary (a second data set, or it and its config, a fifth of every
training batch), debug (one CPU, under a minute; one block of the encoder, by default the
smallest, and the smallest data set of that kind).
"""

import ml_collections
from ml_collections import config_dict

from configs import common

EXPRESSIONS = (
  "neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise", "other",
)  # fmt: skip
AUS = (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)

# fmt: off
IN_COLOUR = dict(
  flip_rate=0.5, scale=0.1, shift=0.05, brightness=0.15, contrast=0.2, cast=0.05,
  grey_rate=0.1, erase_rate=0.15, erase_area=0.15,
)
# Faces cropped by a template have each feature in its place: small shifts, no rectangles.
ALIGNED = dict(
  flip_rate=0.5, scale=0.03, shift=0.02, brightness=0.1, contrast=0.1, cast=0.03,
  grey_rate=0.05, erase_rate=0.0, erase_area=0.15,
)
# What the first thousand updates need in order not to be spent on finding out where features are:
# convolutions that keep the grid, blocks that add little at first, a reading of the whole image
# beside what the tokens find.
QUICK = dict(
  encoder=dict(stem="residual", layer_scale=0.02), decoder=dict(readout=16, dropout_rate=0.0)
)
# What depends on the data: image size, encoder, length, splits (choices are made on `select`).
DATA = {
  "synthetic_faces": dict(
    data=dict(image_size=112, train="train", select="validation", report=("test",)),
    masks="s_aff_wild2",  # people lack tasks as the videos of the licensed data do
    variant="mu/16",
    model=QUICK,
    expression=dict(logit_adjustment="prior"),
    au=dict(positive_weight="balanced"),
    batch_size=32,
    steps=2500,
    drop_path_rate=0.05,
    evaluate_every=500,
    metric="p_mtl",
    augment=ALIGNED,
  ),
  "ferplus": dict(
    data=dict(image_size=48, train="train", select="dev", report=("validation",)),
    variant="mu/8",
    batch_size=32,  # learning starts after a number of updates, whatever their size
    steps=20_000,
    drop_path_rate=0.1,
    evaluate_every=1000,
    metric="expression/strict/accuracy",
    augment=dict(
      flip_rate=0.5, scale=0.15, shift=0.08, brightness=0.1, contrast=0.25, cast=0.0,
      grey_rate=0.0, erase_rate=0.25, erase_area=0.15,
    ),
  ),
  # INFERRED, all of it: the paper's schedule is not known to us, and the data are not here to try.
  "s_aff_wild2": dict(
    data=dict(image_size=112, train="train", select="validation", report=()),
    variant="S/16",
    batch_size=256,
    steps=11_000,  # 20 epochs
    learning_rate=5e-4,
    warmup_steps=500,
    drop_path_rate=0.1,
    evaluate_every=1100,
    metric="p_mtl",
    augment=IN_COLOUR,
  ),
  # INFERRED likewise. Half of the frames have no expression: only what is labelled is read.
  "aff_wild2": dict(
    data=dict(
      image_size=112, train="train:labelled", select="validation:labelled", report=(),
    ),
    variant="S/16",
    batch_size=256,
    steps=20_000,
    learning_rate=5e-4,
    warmup_steps=500,
    drop_path_rate=0.1,
    evaluate_every=2000,
    config="all",
    metric="p_mtl",
    metrics={"va": "va/ccc", "expression": "expression/f1", "au": "au/f1"},
    augment=IN_COLOUR,
  ),
  # Sets of photographs, 15 epochs or so each: INFERRED, the data are not here to try.
  "affectnet": dict(
    data=dict(image_size=112, train="train", select="validation", report=()),
    variant="S/16", batch_size=256, steps=17_000, learning_rate=5e-4, warmup_steps=500,
    drop_path_rate=0.1, evaluate_every=1700, metric="expression/f1", augment=IN_COLOUR,
  ),
  "raf_db": dict(
    # It has no validation split, and a test set is not to be chosen by.
    data=dict(
      image_size=96, train="train:not_fold=0/10", select="train:fold=0/10", report=("test",)
    ),
    variant="S/16", batch_size=64, steps=6000, learning_rate=5e-4, warmup_steps=300,
    drop_path_rate=0.1, evaluate_every=600, metric="expression/accuracy", augment=IN_COLOUR,
  ),
  "expw": dict(
    data=dict(image_size=112, train="train", select="validation", report=("test",)),
    variant="S/16", batch_size=128, steps=9000, learning_rate=5e-4, warmup_steps=500,
    drop_path_rate=0.1, evaluate_every=900, metric="expression/f1", augment=IN_COLOUR,
  ),
  "raf_au": dict(
    data=dict(image_size=96, train="train", select="validation", report=("test",)),
    variant="S/16", batch_size=32, steps=2000, learning_rate=5e-4, warmup_steps=200,
    drop_path_rate=0.1, evaluate_every=200, metric="au/f1", augment=IN_COLOUR,
  ),
  "image_folder": dict(  # of any size: set steps
    data=dict(image_size=112, train="train", select="validation", report=("test",)),
    variant="mu/16",
    batch_size=32,
    steps=3000,
    drop_path_rate=0.05,
    evaluate_every=300,
    metric="p_mtl",  # where all three tasks are labelled; else the scores there are are listed
    augment=IN_COLOUR,
  ),
}
# fmt: on


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Returns the config; see the module's docstring for the argument."""
  given = common.parse(
    argument, data="synthetic_faces", variant="", steps=0, batch_size=0, metric="", plain=False,
    auxiliary="", debug=False,
  )  # fmt: skip
  name, _, builder_config = given["data"].partition("/")
  kind = DATA[common.one_of("data", name, DATA)]
  builder_config = builder_config or kind.get("config", "")
  debug = given["debug"]
  if debug:
    builder_config = builder_config or ("tiny" if name == "synthetic_faces" else "")
    kind = kind | {"variant": "mu/" + kind["variant"].partition("/")[2]}

  config = ml_collections.ConfigDict()
  common.training(config)
  config.steps = given["steps"] or (20 if debug else kind["steps"])
  # Of all devices and hosts together.
  config.batch_size = given["batch_size"] or (16 if debug else kind["batch_size"])
  config.image_size = kind["data"]["image_size"]  # the model's input, pixels
  config.labels = dict(
    va=("valence", "arousal"), expression=EXPRESSIONS, au=tuple(f"AU{n}" for n in AUS)
  )

  config.data = dict(
    name=name,
    config=builder_config,
    workers=0,  # processes that read and decode; 0: threads of this one
    threads=2,
    # stream: from disk. device: the training split in device memory. auto: that where it takes at
    # most a quarter of what is free.
    placement="auto",
    records="auto",  # which of those that there are: see affjax/data/packed.py
    # "class_balanced": expressions in equal shares; "per_task": a part of the batch for each task.
    sampling="uniform",
    unreadable="error",  # of a damaged record or image; "skip": it is masked, and counted
    # What labels are read through where they are learnt from and chosen by; scores of the latter
    # are given without it too. noise: clean, mild or wild annotators; masks: see affjax/data/views.
    view=dict(noise="clean", masks=kind.get("masks", "none")),
    **kind["data"],
  )
  if given["auxiliary"]:
    beside, _, of_beside = given["auxiliary"].partition("/")
    # Its share of every batch, beside the images of `name`: see affjax/data/paired.py.
    config.data.auxiliary = dict(name=beside, config=of_beside, train="train", share=0.2)
  config.augment = dict(kind["augment"])

  config.model = dict(
    name="affect.AffectModel",
    encoder=dict(
      name="vit.ViT",
      variant=given["variant"] or kind["variant"],
      stem="conv",
      dropout_rate=0.0,
      drop_path_rate=kind["drop_path_rate"],
      layer_scale=0.0,
      class_token=False,
      registers=0,
      gelu="tanh",  # "exact": as in weights of timm or transformers
      remat=False,  # less memory: blocks are computed again on the way back
      scan=False,  # one block compiled for all
    ),
    decoder=dict(
      name="decoders.TaskTokens",
      layout="task",  # "elementary": a token for each number; "mixed": but one for all expressions
      # "encoder": tokens go through the ViT. "decoder": through layers of their own; width, depth,
      # num_heads, dropout_rate and position_bias are theirs.
      position="encoder",
      shared_head=config_dict.placeholder(bool),  # None: where the layout allows it
      heteroscedastic=False,  # also give log-variances
      width=96 if debug else 128,
      depth=2,
      num_heads=8,
      dropout_rate=0.1,
      va_activation="tanh",
      position_bias=True,
      readout=0,
    ),
  )
  config.model.update(kind.get("model", {}))
  if debug:
    config.model.encoder.depth = 1
  if given["plain"]:
    config.model.decoder = dict(name="decoders.Linear", heteroscedastic=False, va_activation="tanh")
  config.losses = dict(
    va=dict(name="losses.ccc_loss"),
    expression=dict(
      name="losses.cross_entropy",
      label_smoothing=0.0,
      class_weights=config_dict.placeholder(str),  # "balanced": from the training split
      logit_adjustment=config_dict.placeholder(str),  # "prior": likewise
    ),
    au=dict(
      name="losses.binary_cross_entropy",
      positive_weight=config_dict.placeholder(str),  # "balanced": likewise
    ),
  )
  for task in ("expression", "au"):
    config.losses[task].update(kind.get(task, {}))
  config.procedure = dict(
    name="supervised.Supervised",
    weighting="simple",  # "kendall" (not with a CCC loss), "liebel", "equal"
    per_dimension=False,  # whether valence and arousal have a weight each
    sam_radius=0.0,  # of sharpness-aware minimisation; 0: off
    ema_decay=0.998,
    mixup_alpha=0.0,
  )
  if given["plain"]:
    config.procedure.weighting = "equal"
  config.optimizer = common.adamw(
    learning_rate=kind.get("learning_rate", 1e-3),
    warmup_steps=min(kind.get("warmup_steps", 200), config.steps // 10),
  )

  config.evaluate = dict(
    every=10 if debug else kind["evaluate_every"],
    batch_size=64 if debug else 256,
    probe=not debug,  # beside the last scores those of linear models of the pixels
  )
  config.checkpoint.every = 5 if debug else kind["evaluate_every"] // 3
  task = builder_config.removesuffix("_full")
  metric = kind.get("metrics", {}).get(task, kind["metric"])
  config.checkpoint.metric = given["metric"] or metric
  config.log_every = 5 if debug else 50
  return config
