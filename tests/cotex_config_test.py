"""Masked CoTEX as a run: its sizes, its numbers, and that it trains, goes on and can be used."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

import affjax
from affjax import evaluate, experiment, export, inference, initialise, optim, paths, procedures
from affjax import train as training
from configs import cotex, mae

SIX = ("anger", "disgust", "fear", "happiness", "sadness", "surprise")


def plain(argument="debug", **changes):
  """The config as plain types; `optimizer__weight_decay=0.0` changes a leaf."""
  config = json.loads(cotex.get_config(argument).to_json_best_effort())
  config["draw_report"] = False
  for name, value in changes.items():
    *path, leaf = name.split("__")
    section = config
    for key in path:
      section = section[key]
    section[leaf] = value
  return config


@functools.cache
def made(argument):
  """The procedure of a config, and the shapes of its parameters."""
  procedure = procedures.from_config(plain(argument, optimizer__layer_decay=1.0))
  return procedure, jax.eval_shape(procedure.init).params


def shapes(params):
  return {name: x.shape for name, x in paths.named(params).items()}


def test_at_full_size_each_network_has_the_published_number_of_parameters():
  found = shapes(made("variant=paper")[1])
  own = lambda i: {n: x for n, x in found.items() if n.startswith(f"model/members/{i}/")}
  count = lambda i, part: sum(int(np.prod(x)) for n, x in own(i).items() if f"/{part}/" in n)
  for i in range(2):
    # ViT-B/16 has 86,567,656 with its head of 1,000 classes.
    assert count(i, "encoder") == 86_567_656 - 769_000
    assert count(i, "decoder") == 768 * 6 + 6
    assert found[f"model/members/{i}/encoder/positions"] == (1, 197, 768)
  assert len(found) == len(own(0)) + len(own(1))


def test_the_papers_numbers_stand_in_its_variant():
  config = plain("variant=paper")
  assert tuple(config["labels"]["expression"]) == SIX
  assert config["model"]["members"] == 2
  # 100 times the mean over six classes of what is summed here.
  assert config["procedure"]["agreement"] == pytest.approx(100 / 6)
  assert config["accumulate"] == 4
  optimizer = config["optimizer"]
  fields = ("learning_rate", "layer_decay", "clip_norm")
  assert [optimizer[name] for name in fields] == [5e-4, 0.65, 0.05]
  assert optimizer["warmup_steps"] == config["steps"] * 5 // 6
  # 6 epochs of the 277,251 images, in batches that have grown by 1 / (1 - rate).
  assert config["batch_size"] == 1600
  assert config["steps"] == 6 * 277_251 // 1600
  assert plain("variant=paper,mask_rate=0")["batch_size"] == 400


def test_at_full_size_a_quarter_of_the_patches_is_seen_in_training():
  procedure, params = made("variant=paper")
  image = jax.ShapeDtypeStruct((8, 224, 224, 3), np.float32)

  def tokens(params, images):
    model = nnx.merge(procedure.graphdef, params["model"], {})
    return [m.encoder(images, train=True, rngs=nnx.Rngs(dropout=0)) for m in model.members]

  found = jax.eval_shape(tokens, params, image)
  assert [x.shape for x in found] == 2 * [(8, 1 + 49, 768)]


def test_layers_of_both_networks_learn_the_slower_the_further_from_the_output():
  found = paths.named(optim.layer_factors(made("variant=paper")[1], 0.65))
  for i in range(2):
    at = lambda name, i=i: found[f"model/members/{i}/{name}"]
    assert at("encoder/stem/dense/kernel") == pytest.approx(0.65**13)
    assert at("encoder/blocks/0/mlp/expand/kernel") == pytest.approx(0.65**12)
    assert at("encoder/blocks/11/mlp/expand/kernel") == pytest.approx(0.65)
    assert at("encoder/norm/scale") == at("decoder/heads/dense/expression/kernel") == 1


@pytest.mark.parametrize("argument", ["", "data=ferplus", "variant=paper"])
def test_its_encoders_are_those_of_masked_autoencoding(argument):
  config, theirs = plain(argument), mae.get_config(argument)
  prefix = "model/members/1/encoder/"
  of_all = shapes(made(argument)[1])
  own = {n.removeprefix(prefix): x for n, x in of_all.items() if n.startswith(prefix)}
  procedure = procedures.from_config(json.loads(theirs.to_json_best_effort()))
  found = shapes(jax.eval_shape(procedure.init).params)
  assert own == {n[14:]: x for n, x in found.items() if n.startswith("model/encoder/")}
  for field in ("gelu", "stem", "class_token"):
    assert config["model"]["encoder"][field] == theirs.model.encoder[field], field


@pytest.mark.parametrize(
  ("argument", "said"),
  [
    ("variant=full", "variant=full: use one of reduced, paper"),
    ("data=celeba", "data=celeba: use one of synthetic_faces, lsd, ferplus"),
    ("networks=0", "networks=0: use at least 1"),
    ("mask_rate=1", "mask_rate='1': use a number from 0 up to 1"),
    ("mask_rate=most", "mask_rate='most': use a number"),
  ],
)
def test_other_arguments_are_refused(argument, said):
  with pytest.raises(ValueError, match=said):
    cotex.get_config(argument)


def test_a_single_network_is_the_twin_without_agreement():
  one, two = plain("debug,networks=1,mask_rate=0.25"), plain("debug,mask_rate=0.25")
  assert one["model"].pop("members") == 1
  assert two["model"].pop("members") == 2
  assert one == two
  assert one["model"]["encoder"]["mask_rate"] == 0.25


def test_every_network_starts_from_the_one_encoder_that_is_named(tmp_path):
  source = tmp_path / "encoder.npz"
  config = plain(f"debug,start={source}")
  state = jax.eval_shape(procedures.from_config(config).init)
  inside = "model/members/{}/encoder/".format
  own = {n: x.shape for n, x in paths.named(state.params).items() if n.startswith(inside(0))}
  rng = np.random.default_rng(0)
  drawn = {n.removeprefix(inside(0)): rng.normal(size=x) for n, x in own.items()}
  np.savez(source, **{f"model/encoder/{name}": x for name, x in drawn.items()})
  taken = initialise.start(config, state).arrays
  assert taken.keys() == {inside(i) + name for name in drawn for i in range(2)}
  for name, x in drawn.items():
    for i in range(2):
      np.testing.assert_array_equal(taken[inside(i) + name], x.astype(np.float32))


# A run.


SMALL = dict(
  image_size=32, data__image_size=32, model__encoder__depth=1, model__encoder__variant="mu/8"
)


@pytest.fixture(scope="module")
def finished(tiny_faces, tmp_path_factory):
  """A run: its folder, its config and what `run` returned."""
  where = tmp_path_factory.mktemp("agreed") / "run"
  config = plain(**SMALL)
  return where, config, training.run(config, where, tiny_faces)


def log(where):
  lines = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
  return [e for e in lines if e["kind"] == "train"]


def test_a_run_reads_the_six_expressions_and_logs_how_far_its_networks_are_apart(finished):
  where, _, result = finished
  assert list(result["scores"]) == ["validation:labelled", "test:labelled"]
  entries = log(where)
  assert len(entries) == 4
  for e in entries:
    assert 0 < e["loss/agreement"] < np.log(2)
    expected = e["loss/expression"] + 100 / 6 * e["loss/agreement"]
    assert e["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_bit(finished, tiny_faces, tmp_path, capsys):
  where, config, result = finished
  half = tmp_path / "run"
  shutil.copytree(where, half)
  shutil.rmtree(half / "checkpoints" / "20")
  assert training.run(config, half, tiny_faces)["scores"] == result["scores"]
  assert "continues from step 15" in capsys.readouterr().out
  states = [inference.restored(config, x, "20", "raw")[0] for x in (where, half)]
  for x, y in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_array_equal(x, y)


def test_it_is_scored_again_as_it_was(finished, tiny_faces):
  where, config, result = finished
  again = evaluate.run(config, where, tiny_faces)
  for split, scores in result["scores"].items():
    assert again["scores"][split] == pytest.approx(scores, rel=1e-5)


def test_what_it_predicts_and_exports_is_the_mean_of_its_networks(finished, tiny_faces, tmp_path):
  where, config, _ = finished
  predictor = affjax.load(where)
  images = experiment.Data(config, tiny_faces).records("test").batch(np.arange(4))["image"]
  found = predictor.outputs(images)
  params, _ = predictor.arrays
  of_one = {**config, "model": {**config["model"], "members": 1}}
  procedure = procedures.from_config(of_one)
  each = []
  for i in range(2):
    own = {"model": {"members": {0: params["model"]["members"][i]}}}
    each.append(jax.jit(procedure.predict)(own, {"model": {}}, images)["expression"])
  np.testing.assert_allclose(found["expression"], (each[0] + each[1]) / 2, atol=1e-5)
  assert predictor.features(images).shape == (4, 2 * 96)
  export.export(where, output=tmp_path / "out")
  again = inference.load(tmp_path / "out").outputs(images)
  np.testing.assert_allclose(again["expression"], found["expression"], atol=1e-6)
