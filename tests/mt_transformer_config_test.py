import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from affjax import experiment, optim, paths, procedures
from configs import mt_transformer, vit_mtl

LAYOUTS = ("elementary", "mixed", "task")


def plain(argument=""):
  return json.loads(mt_transformer.get_config(argument).to_json_best_effort())


def shapes(argument):
  config = experiment.resolve_losses(plain(argument), None)
  return jax.eval_shape(procedures.from_config(config).init)


def test_at_full_size_it_has_the_published_parameters():
  params = shapes("variant=paper").params
  sizes = {name: leaf.size for name, leaf in paths.named(params).items()}
  count = lambda start: sum(size for name, size in sizes.items() if name.startswith(start))
  # InceptionV3's 23,834,568 without its classifier of 1,000 classes.
  assert count("model/encoder/") == 23_834_568 - (2048 * 1000 + 1000)
  assert count("model/decoder/") == 1_264_897
  assert params["model"]["decoder"]["positions"].shape == (64, 128)
  assert params["model"]["decoder"]["project"]["kernel"].shape == (2048, 128)


def rates(argument):
  """Parameter -> by how much it falls at each step, under a gradient that is always 1.

  Then a step of Adam's is the learning rate.
  """
  config = plain(argument)
  section = config["optimizer"] | {"steps": config["steps"]}
  section.pop("name")
  one = jnp.ones((2, 2))
  params = {
    "model": {
      "encoder": {"stem": {"kernel": one, "bias": one[0]}},
      "decoder": {
        "image_blocks": {0: {"kernel": one, "bias": one[0]}},
        "cross_blocks": {0: {"kernel": one, "bias": one[0]}},
      },
    },
    "log_variance": {"va": one[0, 0]},
  }
  transform, *_ = optim.adamw(**section)
  gradient = jax.tree.map(jnp.ones_like, params)

  def step(state, _):
    updates, state = transform.update(gradient, state, params)
    return state, updates

  updates = jax.jit(lambda state: jax.lax.scan(step, state, length=config["steps"])[1])(
    transform.init(params)
  )
  return {
    name: -np.asarray(x).reshape(len(x), -1)[:, 0] for name, x in paths.named(updates).items()
  }


def test_the_three_groups_learn_by_the_formulas_of_the_code():
  applied = rates("variant=paper")
  steps_per_epoch = 2224  # 142,382 images in batches of 64
  steps = np.array([1, 100, 5559, 5560, 5561, 11_120, 22_239])
  warmup = 2.5 * steps_per_epoch
  transformer = lambda length: (
    (64 * length / 25_000) * 128**-0.5 * np.minimum(steps**-0.5, steps * warmup**-1.5)
  )
  image, decoder = (f"model/decoder/{name}_blocks/0" for name in ("image", "cross"))
  np.testing.assert_allclose(applied[f"{image}/bias"][steps], transformer(64), rtol=5e-4)
  np.testing.assert_allclose(applied[f"{decoder}/bias"][steps], transformer(22), rtol=5e-4)
  epochs = np.arange(10)
  found = applied["model/encoder/stem/bias"][epochs * steps_per_epoch]
  np.testing.assert_allclose(found, 5e-4 * 0.99**epochs, rtol=5e-4)
  np.testing.assert_allclose(applied["log_variance/va"], 1e-3, rtol=5e-4)
  # Of matrices that are 1, the decay is as large as the step.
  for name in (image, decoder, "model/encoder/stem"):
    np.testing.assert_allclose(applied[f"{name}/kernel"], 2 * applied[f"{name}/bias"], rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_decoders_rate_follows_the_number_of_its_tokens(layout):
  count = {"elementary": 22, "mixed": 15, "task": 3}[layout]
  section = plain(f"token_layout={layout},variant=paper")["optimizer"]
  image = section["groups"]["image"]["learning_rate"]
  assert section["learning_rate"] / image == pytest.approx(count / 64)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_sees_as_many_images_of_the_same_data_as_the_flagship(layout):
  own = plain(f"token_layout={layout}")
  flagship = json.loads(vit_mtl.get_config().to_json_best_effort())
  assert own["data"] == flagship["data"] | {"image_size": own["image_size"]}
  for name in ("labels", "steps", "batch_size", "evaluate", "checkpoint"):
    assert own[name] == flagship[name], name
  assert own["procedure"]["weighting"] == "simple"
  assert own["model"]["decoder"]["layout"] == layout


@pytest.mark.parametrize(
  ("argument", "places", "channels"), [("", 16, 128), ("debug", 16, 64), ("data=ferplus", 9, 128)]
)
def test_the_reduced_encoder_gives_the_map_of_a_narrow_cnn(argument, places, channels):
  params = shapes(argument).params["model"]
  assert params["decoder"]["positions"].shape == (places, 128)
  assert params["decoder"]["project"]["kernel"].shape == (channels, 128)
  assert params["encoder"]["stem"]["norm"]["scale"].shape == (channels // 8,)


def test_photographs_are_learnt_as_by_the_flagship():
  own = plain("data=ferplus")
  flagship = json.loads(vit_mtl.get_config("data=ferplus").to_json_best_effort())
  for name in ("data", "labels", "image_size", "steps", "batch_size", "evaluate", "checkpoint"):
    assert own[name] == flagship[name], name


def test_what_holds_learning_back_is_the_papers_at_full_size_and_else_the_flagships():
  published = dict(flip_rate=0.5, brightness=0.2, channel_drop_rate=0.1, rotation=0.1, scale=0.1)
  found = plain("variant=paper")["augment"]
  assert {name: x for name, x in found.items() if x} == published
  flagship = json.loads(vit_mtl.get_config().to_json_best_effort())["augment"]
  assert plain()["augment"] == flagship | {"channel_drop_rate": 0.1, "rotation": 0.0}
  for argument, rate, clip_norm in (("variant=paper", 0.1, 0.0), ("", 0.0, 1.0)):
    assert plain(argument)["model"]["decoder"]["dropout_rate"] == rate
    assert plain(argument)["optimizer"]["clip_norm"] == clip_norm


@pytest.mark.parametrize("argument", ["", "token_layout=task", "steps=20", "debug"])
def test_the_decoder_of_the_reduced_variant_has_one_peak_for_image_and_tokens(argument):
  section = plain(argument)["optimizer"]
  groups = section["groups"]
  assert section["learning_rate"] == groups["image"]["learning_rate"] == 2.5e-4
  assert groups["encoder"]["learning_rate"] == 5e-4  # as published


def test_the_papers_epochs_are_as_many_whatever_the_batch():
  config = plain("variant=paper,batch_size=128")
  assert config["steps"] == 10 * (142_382 // 128)
  assert config["evaluate"]["every"] == 142_382 // 128
  assert plain("variant=paper,batch_size=999999")["steps"] == 10


def test_the_papers_debug_variant_is_small_too():
  config = plain("variant=paper,debug")
  assert config["model"]["encoder"]["name"] == "vgg.VGG"
  assert (config["data"]["name"], config["image_size"] <= 64) == ("s_aff_wild2", True)


def test_any_number_of_steps_has_its_warm_up():
  for steps in (1, 2, 3, 300):
    config = plain(f"steps={steps}")
    assert 1 <= config["optimizer"]["warmup_steps"] <= config["steps"] == steps
    procedures.from_config(experiment.resolve_losses(config, None))


def test_what_is_not_there_is_refused():
  with pytest.raises(ValueError, match="variant=huge: use one of reduced, paper"):
    plain("variant=huge")
  with pytest.raises(ValueError, match="token_layout=row: use one of elementary, mixed, task"):
    plain("token_layout=row")
