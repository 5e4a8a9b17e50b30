"""The config of masked autoencoding: its sizes, and that the flagship can start from it."""

import json

import jax
import numpy as np
import pytest

from affjax import experiment, paths, procedures, train
from configs import mae, vit_mtl


def plain(config):
  return json.loads(config.to_json_best_effort())


def shapes(config):
  params = jax.eval_shape(procedures.from_config(plain(config)).init).params
  return {name: x.shape for name, x in paths.named(params).items()}


def test_the_full_size_has_the_published_number_of_parameters():
  found = shapes(mae.get_config("variant=paper"))
  count = lambda part: sum(int(np.prod(x)) for name, x in found.items() if part in name)
  # ViT-B/16 has 86,567,656 with its head of 1,000 classes.
  assert count("model/encoder/") == 86_567_656 - 769_000
  # With the authors' decoder 111,907,840, of which 197 x 512 are its positions: numbers, not
  # parameters here (RECALL).
  assert count("") == 111_907_840 - 197 * 512
  assert found["model/encoder/positions"] == (1, 197, 768)
  assert found["model/pixel_decoder/pixels/kernel"] == (512, 768)


def test_at_full_size_a_quarter_of_the_patches_is_seen():
  config = plain(mae.get_config("variant=paper,batch_size=8"))
  procedure = procedures.from_config(config)
  batch = experiment.batch_shapes(config)
  kept = jax.eval_shape(procedure._drawn, batch["image"], np.int32(0))[1]
  assert kept.shape == (8, 49)
  groups = plain(mae.get_config("variant=paper"))["optimizer"]["groups"]
  assert groups == {"positions": {"pattern": "encoder/positions", "freeze": True}}


@pytest.mark.parametrize("argument", ["", "data=ferplus"])
def test_the_flagships_encoder_is_the_one_that_learns(argument):
  encoder = lambda config: {n: x for n, x in shapes(config).items() if "model/encoder" in n}
  flagship = vit_mtl.get_config(argument)
  flagship.losses.expression.logit_adjustment = flagship.losses.au.positive_weight = None
  assert encoder(mae.get_config(argument)) == encoder(flagship)
  for field in ("gelu", "stem", "class_token", "registers"):
    own, theirs = (c.model.encoder[field] for c in (mae.get_config(argument), flagship))
    assert own == theirs, field


def test_nothing_of_it_is_taken_for_another_decoder():
  flagship = vit_mtl.get_config()
  flagship.losses.expression.logit_adjustment = flagship.losses.au.positive_weight = None
  common = set(shapes(mae.get_config())) & set(shapes(flagship))
  assert {name.split("/")[1] for name in common} == {"encoder"}


@pytest.mark.parametrize(
  ("argument", "message"),
  [("variant=huge", "variant=huge: use one of small, paper"), ("data=celeba", "data=celeba")],
)
def test_what_there_is_not_is_an_error_that_says_what_there_is(argument, message):
  with pytest.raises(ValueError, match=message):
    mae.get_config(argument)


def test_photographs_train_too_and_are_not_shown(tiny_ferplus, tmp_path):
  from pathlib import Path

  config = plain(mae.get_config("data=ferplus,steps=2,batch_size=8"))
  config["model"]["encoder"]["depth"] = 1
  data_dir = str(Path(tiny_ferplus.data_dir).parent.parent)
  result = train.run(config, tmp_path / "run", data_dir)
  assert list(result["scores"]) == ["dev", "validation"]
  page = (tmp_path / "run" / "report.html").read_text()
  assert "never of real people" in page
  assert "data:image/png" not in page


def test_the_papers_debug_variant_is_small_too():
  config = plain(mae.get_config("variant=paper,debug"))
  assert (config["image_size"], config["model"]["pixel_decoder"]["width"]) == (112, 96)
