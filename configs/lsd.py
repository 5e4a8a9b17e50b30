"""Learning from synthetic data: trained on renders, meant for photographs.

The track of ABAW4 (Kollias, 2022, arXiv:2207.01138) with renders of our own: expressions alone,
grey faces framed as FER+'s are. No real pixel is seen in training.

  python -m affjax.main --config=configs/lsd.py
  python -m affjax.main --config=configs/lsd.py --mode=evaluate --data=ferplus --splits=validation

Arguments after the colon: classes (7: the six and neutral; 6: neutral faces are left out), data (a
config of synthetic_faces), variant (of the ViT: mu, Ti, S, B / patch size), steps, batch_size,
debug (one CPU, under a minute). `scripts/measure_gap.py` makes the table of what the gap to
photographs is, without and with an encoder that knows real faces.
"""

import ml_collections

from configs import common

CLASSES = ("neutral", "anger", "disgust", "fear", "happiness", "sadness", "surprise")


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Returns the config; see the module's docstring for the argument."""
  given = common.parse(
    argument, classes=7, data="lsd7", variant="mu/8", steps=3000, batch_size=32, debug=False
  )
  common.one_of("classes", str(given["classes"]), ("6", "7"))
  debug = given["debug"]

  config = ml_collections.ConfigDict()
  common.training(config)
  config.steps = 20 if debug else given["steps"]
  config.batch_size = 16 if debug else given["batch_size"]
  config.image_size = 48
  config.labels = dict(expression=CLASSES[-given["classes"] :])
  config.data = dict(
    name="synthetic_faces",
    config="tiny" if debug else given["data"],
    image_size=48,
    train="train",
    select="validation",
    report=("test",),
    workers=0,
    threads=2,
    placement="auto",
    records="auto",
    sampling="uniform",
    unreadable="error",
    view=dict(noise="clean", masks="none"),
  )
  # Photographs vary more than renders do, so these vary more than they would for their own sake.
  config.augment = dict(
    flip_rate=0.5, scale=0.15, shift=0.06, brightness=0.2, contrast=0.4, cast=0.0, grey_rate=1.0,
    erase_rate=0.3, erase_area=0.15,
  )  # fmt: skip
  config.model = dict(
    name="affect.AffectModel",
    encoder=dict(
      name="vit.ViT",
      variant=given["variant"],
      stem="residual",
      dropout_rate=0.0,
      drop_path_rate=0.05,
      layer_scale=0.02,
    ),
    decoder=dict(
      name="decoders.TaskTokens", layout="task", width=96 if debug else 128, depth=2, num_heads=8,
      dropout_rate=0.1, readout=16,
    ),
  )  # fmt: skip
  if debug:
    config.model.encoder.depth = 1
  config.losses = dict(expression=dict(name="losses.cross_entropy", label_smoothing=0.1))
  config.procedure = dict(
    name="supervised.Supervised", weighting="simple", ema_decay=0.998, mixup_alpha=0.2
  )
  config.optimizer = common.adamw(warmup_steps=2 if debug else 200)
  config.evaluate = dict(every=10 if debug else 500, batch_size=64 if debug else 256, probe=False)
  config.checkpoint.every = 5 if debug else 250
  config.checkpoint.metric = "expression/f1"
  config.log_every = 5 if debug else 50
  return config
