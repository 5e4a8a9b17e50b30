"""Learning faces without labels: masked autoencoding, for a supervised run to start from.

He, Chen, Xie, Li, Dollár & Girshick (2021, arXiv:2111.06377): three quarters of an image's patches
are hidden, a ViT encodes the others, and a light decoder paints what was hidden. Li et al. (2022,
arXiv:2207.11679, EMMA and masked CoTEX) start from a ViT-B/16 that learnt so from CelebA's faces.
CelebA is not here: synthetic_faces and FER+'s training images stand in for it, whose labels are not
looked at. The default is the encoder of configs/vit_mtl.py, which begins where it ends:

  python -m affjax.main --config=configs/mae.py
  python -m affjax.main --config=configs/vit_mtl.py --config.initialise.source=runs/mae

  python -m affjax.main --config=configs/mae.py:data=ferplus
  python -m affjax.main --config=configs/mae.py:variant=paper --mode=check

Scores are of hidden patches, on masks that are the same in every run: reconstruction/mse, its floor
that of painting each patch's mean; reconstruction/r2, the share of that floor that is explained.

Arguments after the colon: data (synthetic_faces or ferplus, or one of them and its config), variant
(small; paper: the full size, 224 px), steps, batch_size, debug (one CPU, under a minute).
"""

import ml_collections

from configs import common

# Where a fact is from: CODE: the authors' of arXiv:2207.11679, as read by us; RECALL: Table 8 and
# the appendix of arXiv:2111.06377, from memory; INFERRED: ours.
# fmt: off
DATA = {
  "synthetic_faces": dict(
    data=dict(image_size=112, train="train", select="validation", report=("test",)),
    augment=dict(
      flip_rate=0.5, scale=0.1, shift=0.05, brightness=0.0, contrast=0.0, cast=0.0,
      grey_rate=0.0, erase_rate=0.0, erase_area=0.15,
    ),
    encoder=dict(variant="mu/16", stem="residual", layer_scale=0.02),
  ),
  "ferplus": dict(
    data=dict(image_size=48, train="train", select="dev", report=("validation",)),
    augment=dict(
      flip_rate=0.5, scale=0.15, shift=0.08, brightness=0.0, contrast=0.0, cast=0.0,
      grey_rate=0.0, erase_rate=0.0, erase_area=0.15,
    ),
    encoder=dict(variant="mu/8", stem="conv", layer_scale=0.0),
  ),
}
# fmt: on
VARIANTS = {
  "small": dict(
    steps=2000,
    batch_size=64,
    optimizer=dict(learning_rate=1e-3, warmup_steps=200, b2=0.95),
    pixel_decoder=dict(width=96, depth=2, num_heads=4, gelu="tanh"),
    evaluate_every=500,
  ),
  "paper": dict(
    steps=31_800,  # INFERRED: 800 epochs (RECALL) of CelebA's 162,770 training images
    batch_size=4096,  # RECALL
    image_size=224,  # RECALL
    optimizer=dict(
      learning_rate=2.4e-3,  # RECALL: 1.5e-4 for 256 images
      warmup_steps=1590,  # RECALL: 40 epochs
      b2=0.95,  # RECALL
      clip_norm=0.0,  # RECALL: none
      # RECALL: the positions are sines and cosines.
      groups=dict(positions=dict(pattern="encoder/positions", freeze=True)),
    ),
    encoder=dict(
      variant="B/16",  # CODE
      stem="patch",  # CODE
      class_token=True,  # CODE
      gelu="exact",  # RECALL
      layer_scale=0.0,  # RECALL: none
    ),
    pixel_decoder=dict(width=512, depth=8, num_heads=16, gelu="exact"),  # RECALL
    # RECALL: random resized crops and flips. INFERRED: these, which are nearest to those.
    augment=dict(scale=0.5, shift=0.2),
    evaluate_every=2000,
  ),
}


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Returns the config; see the module's docstring for the argument."""
  given = common.parse(
    argument, data="synthetic_faces", variant="small", steps=0, batch_size=0, debug=False
  )
  name, _, builder_config = given["data"].partition("/")
  kind = DATA[common.one_of("data", name, DATA)]
  size = VARIANTS[common.one_of("variant", given["variant"], VARIANTS)]
  debug = given["debug"]
  if debug:
    size = VARIANTS["small"]
    builder_config = builder_config or ("tiny" if name == "synthetic_faces" else "")

  config = ml_collections.ConfigDict()
  common.training(config)
  config.steps = given["steps"] or (20 if debug else size["steps"])
  config.batch_size = given["batch_size"] or (16 if debug else size["batch_size"])
  config.image_size = size.get("image_size", kind["data"]["image_size"])
  config.labels = dict()  # of none: nothing is predicted
  config.losses = dict()
  config.data = dict(
    name=name,  # in place of CelebA: CODE
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
  config.augment = kind["augment"] | size.get("augment", {})

  config.model = dict(
    name="masked.MaskedAutoencoder",
    encoder=dict(
      name="vit.ViT",
      dropout_rate=0.0,
      drop_path_rate=0.0,  # RECALL
      class_token=False,
      registers=0,
      gelu="tanh",
      remat=False,
      scan=False,
    )
    | kind["encoder"]
    | size.get("encoder", {}),
    pixel_decoder=dict(name="masked.PixelDecoder") | size["pixel_decoder"],
  )
  if debug:
    config.model.encoder.depth = 1
  config.procedure = dict(
    name="self_supervised.MaskedAutoencoding",
    mask_rate=0.75,  # CODE
    normalise=True,  # CODE: each patch by its own mean and variance
    ema_decay=0.0,  # RECALL: none
  )
  config.optimizer = common.adamw(weight_decay=0.05) | size["optimizer"]  # RECALL: 0.05
  config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, config.steps // 10)

  config.evaluate = dict(
    every=10 if debug else size["evaluate_every"],
    batch_size=64 if debug else 256,
    probe=False,  # which is of labels
  )
  config.checkpoint.every = 5 if debug else size["evaluate_every"] // 2
  config.checkpoint.metric = "reconstruction/r2"
  config.log_every = 5 if debug else 50
  return config
