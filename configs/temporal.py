"""A temporal baseline: an encoder of each frame, and over it a GRU or a transformer.

As most systems on Aff-Wild2 do: features of each frame from an encoder that has learnt from
pictures and stays as it is, then a small model of time. Losses, labels and splits are those of
`configs/vit_mtl.py`; batches are of clips, windows of one person in one video.

  python -m affjax.main --config=configs/temporal.py:encoder=runs/vit_mtl   # frozen, from that run
  python -m affjax.main --config=configs/temporal.py                        # learnt, too: slower
  python -m affjax.main --config=configs/temporal.py:encoder=runs/vit_mtl,temporal=transformer
  python -m affjax.main --config=configs/temporal.py:encoder=runs/vit_mtl,temporal=framewise
  python -m affjax.main --config=configs/temporal.py:features=features/clips  # seconds
  python -m affjax.main --config=configs/temporal.py:data=ferplus,features=f,temporal=shallow

The last two read vectors that `python -m affjax.extract` made of each picture beforehand. Of a
flagship whose task tokens go through its encoder these hold what the tokens found; the encoder
alone is without them, and so knows less.

Arguments after the colon: data (synthetic_faces/clips, or another set whose rows say their video or
person and their frame number: aff_wild2/va, image_folder/my_set), temporal (gru, transformer,
framewise: the twin that sees each frame alone; shallow: that one without clips, for pictures),
encoder (the folder of a run of the flagship), features (a folder), length (frames of a clip),
steps, batch_size (clips; of shallow pictures), metric, debug (one CPU, under a minute).
"""

import json
from pathlib import Path

import ml_collections

from configs import common, vit_mtl

MODELS = {
  "gru": dict(name="temporal.GRU", width=128, depth=2, bidirectional=True, dropout_rate=0.1),
  "transformer": dict(
    name="temporal.Transformer",
    width=128,
    depth=2,
    num_heads=4,
    dropout_rate=0.1,
    causal=False,
    reach=0,  # frames that a block looks away at most; 0: the whole clip
  ),
  "framewise": dict(name="temporal.FrameWise", width=128, depth=3, dropout_rate=0.1),
}
MODELS["shallow"] = MODELS["framewise"]


def get_config(argument: str = "") -> ml_collections.ConfigDict:
  """Returns the config; see the module's docstring for the argument."""
  given = common.parse(
    argument, data="", temporal="gru", encoder="", features="", length=32,
    steps=0, batch_size=0, metric="", debug=False,
  )  # fmt: skip
  temporal = MODELS[common.one_of("temporal", given["temporal"], MODELS)]
  debug, shallow = given["debug"], given["temporal"] == "shallow"
  data = given["data"] or ("synthetic_faces/tiny_clips" if debug else "synthetic_faces/clips")
  config = vit_mtl.get_config(",".join([f"data={data}", *["debug"] * debug]))
  config.steps = given["steps"] or (10 if debug else 600)
  config.batch_size = given["batch_size"] or (8 if debug else 256 if shallow else 32)
  config.data.view.masks = "none"
  length = min(given["length"], 8) if debug else given["length"]
  config.data.clips = dict(
    length=0 if shallow else length,  # frames of a clip
    stride=0,  # frames from the start of one to that of the next; 0: half of it
    step=1,  # frame numbers from one frame of a clip to the next
    shuffle="none",  # "clip", "split": controls, frames at times that are not theirs
  )
  config.model.temporal = dict(temporal)
  config.model.decoder = dict(name="decoders.Linear", heteroscedastic=False, va_activation="tanh")
  config.procedure.weighting = "equal"
  config.procedure.ema_decay = 0.98  # runs are short
  config.augment.erase_rate = 0.0
  config.optimizer = common.adamw(learning_rate=1e-3, warmup_steps=config.steps // 10)
  config.evaluate.batch_size = 256 if shallow else 8
  every = max(config.steps // 4, 1)
  config.evaluate.every = config.checkpoint.every = every
  if given["metric"]:
    config.checkpoint.metric = given["metric"]
  if given["encoder"]:
    config.initialise.update(source=given["encoder"], include="model/encoder")
    config.optimizer.groups = dict(encoder=dict(pattern="model/encoder", freeze=True))
  if given["features"]:
    config.data.features = given["features"]
    config.model.encoder = dict(name="features.Precomputed", width=_width(given["features"]))
    config.evaluate.probe = False
  return config


def _width(folder: str) -> int:
  """How many numbers a feature has."""
  path = Path(folder).expanduser() / "features.json"
  if not path.is_file():
    raise ValueError(f"config argument features={folder}: there is no {path.name} in it")
  return json.loads(path.read_text())["width"]
