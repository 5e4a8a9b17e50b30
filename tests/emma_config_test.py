"""EMMA as a run: its sizes, its numbers, and what it starts from."""

import functools
import json

import jax
import pytest
from conftest import save_run

from affjax import experiment, initialise, paths, procedures
from configs import emma, mae


def plain(argument=""):
  config = json.loads(emma.get_config(argument).to_json_best_effort())
  config["draw_report"] = False
  return config


@functools.cache
def state_of(argument, make=emma):
  """What a run starts from, without an array."""
  config = json.loads(make.get_config(argument).to_json_best_effort())
  return jax.eval_shape(procedures.from_config(experiment.resolve_losses(config, None)).init)


def shapes(argument, make=emma):
  """Name -> shape, of parameters and of statistics."""
  state = state_of(argument, make)
  found = paths.named(state.params) | paths.named(state.model_state)
  return {name: leaf.shape for name, leaf in found.items()}


# Of a head of the CNN's attention: 1 x 1, 512 to 256; 3 x 3, 1 x 3 and 3 x 1, 256 to 512; a norm's
# scale and a bias behind each; 512 to 32 to 512, with biases and a norm.
HEAD = 512 * 256 + 2 * 256 + (9 + 3 + 3) * 256 * 512 + 3 * 2 * 512
HEAD += 512 * 32 + 32 + 2 * 32 + 32 * 512 + 512
# Published: ViT-B/16 has 86,567,656 parameters and ResNet-18 11,689,512, with their heads of 1,000
# classes, of 768 and 512 numbers.
VIT = 86_567_656 - 769_000
CNN = 11_689_512 - 513_000


def test_the_second_network_begins_as_its_own_run_ended_with_all_of_its_norms(tmp_path):
  config = experiment.resolve_losses(plain("debug,stage=prior"), None)
  save_run(tmp_path / "prior", config)
  argument = f"debug,prior={tmp_path / 'prior'}"
  taken = initialise.start(plain(argument), state_of(argument))
  own = [name for name in shapes(argument) if name.startswith("model/prior/")]
  assert sorted(taken.arrays) == sorted(own)
  assert sum(name.endswith("norm/mean") for name in own) > 20


def test_at_full_size_it_has_the_published_parameters():
  sizes = {name: leaf.size for name, leaf in paths.named(state_of("variant=paper").params).items()}
  count = lambda start: sum(size for name, size in sizes.items() if name.startswith(start))
  assert count("model/encoder/") == VIT
  assert count("model/prior/encoder/") == CNN
  assert count("model/prior/decoder/attention/0/") == HEAD == 2_134_112
  assert count("model/prior/decoder/") == 4 * HEAD + 512 * 8 + 8 + 2 * 8
  scores, va = 768 * 512 + 512 + 512 * 20 + 20, 28 * 256 + 256 + 256 * 2 + 2
  assert count("model/decoder/va_") == va == 7_938
  assert count("model/decoder/") == scores + va == 411_926
  assert count("") == 105_927_662


def test_at_full_size_the_layers_are_those_of_the_description():
  config, found = plain("variant=paper"), shapes("variant=paper")
  assert config["image_size"] == 224
  assert found["model/encoder/positions"] == (1, 197, 768)
  assert found["model/encoder/class_token"] == (1, 1, 768)
  assert config["model"]["decoder"]["pool"] == "first"
  of_head = lambda name: found[f"model/decoder/{name}/kernel"]
  assert of_head("hidden") == (768, 512)
  assert of_head("heads/dense/expression") == (512, 8)
  assert of_head("heads/dense/au") == (512, 12)
  assert of_head("va_hidden") == (28, 256)
  assert of_head("va_heads/dense/va") == (256, 2)
  assert found["model/prior/encoder/stem/kernel"] == (7, 7, 3, 64)


def test_the_papers_numbers_stand_in_its_variant():
  config = plain("variant=paper")
  assert (config["batch_size"], config["accumulate"]) == (400, 4)
  assert config["steps"] == 30 * 142_333 // 400
  optimizer = config["optimizer"]
  assert optimizer["learning_rate"] == pytest.approx(5e-4 * 400 / 256)
  assert optimizer["warmup_steps"] / config["steps"] == pytest.approx(5 / 30, abs=1e-3)
  assert optimizer["learning_rate"] * optimizer["final_fraction"] == pytest.approx(1e-6)
  found = [optimizer[name] for name in ("weight_decay", "clip_norm", "layer_decay")]
  assert found == [0.05, 0.05, 0.65]
  assert optimizer["groups"]["va"]["learning_rate"] == 1e-4
  assert optimizer["groups"]["prior"] == {"pattern": "model/prior", "freeze": True}
  assert config["model"]["encoder"]["drop_path_rate"] == 0.1
  # systems.md, section 0: rows without a unit for each with it.
  weights = [7.10, 15.64, 5.47, 2.80, 1.52, 1.89, 3.05, 34.05, 32.48, 36.77, 0.58, 11.16]
  assert config["losses"]["au"]["positive_weight"] == weights
  assert plain()["losses"]["au"]["positive_weight"] == "balanced"


@pytest.mark.parametrize(
  ("argument", "tasks"),
  [
    ("debug,va_from=features", {"va": 2, "expression": 8, "au": 12}),
    ("debug,prior=somewhere", {"va": 2, "expression": 8, "au": 12}),
    ("debug,stage=prior", {"expression": 8}),
  ],
)
def test_every_stage_gives_its_tasks_and_a_step_the_types_that_it_takes(argument, tasks):
  config = experiment.resolve_losses(plain(argument), None)
  procedure = procedures.from_config(config)
  before = jax.eval_shape(procedure.init)
  batch = experiment.batch_shapes(config)
  out = jax.eval_shape(procedure.predict, before.params, before.model_state, batch["image"])
  assert {task: y.shape[1] for task, y in out.items()} == tasks
  after, _ = jax.eval_shape(procedure.train_step, before, batch)
  types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
  assert types(after) == types(before)


@pytest.mark.parametrize(
  ("alone", "whole"),
  [
    ("debug,stage=prior", "debug,prior=somewhere"),
    ("variant=paper,stage=prior", "variant=paper"),
  ],
)
def test_the_cnn_of_its_own_run_is_the_one_that_is_frozen(alone, whole):
  model = lambda found, start: {
    name.removeprefix(start): shape for name, shape in found.items() if name.startswith(start)
  }
  found = model(shapes(whole), "model/prior/")
  assert any("norm/mean" in name for name in found)
  assert model(shapes(alone), "model/") == found


@pytest.mark.parametrize("argument", ["", "variant=paper"])
def test_the_vit_is_the_one_that_learns_from_faces_alone(argument):
  encoder = lambda found: {n: x for n, x in found.items() if n.startswith("model/encoder/")}
  assert encoder(shapes(argument)) == encoder(shapes(argument, mae))
  own, theirs = (make.get_config(argument).model.encoder for make in (emma, mae))
  for field in ("gelu", "stem", "class_token"):
    assert own[field] == theirs[field], field


def test_without_a_run_that_is_named_there_is_no_cnn():
  config = plain()
  assert config["model"]["prior"] is None
  assert "prior" not in config["optimizer"]["groups"]
  assert not any("prior" in name for name in shapes(""))


@pytest.mark.parametrize(
  ("argument", "said"),
  [
    ("variant=full", "variant=full: use one of reduced, paper"),
    ("stage=cnn", "stage=cnn: use one of emma, prior"),
    ("stage=prior,prior=runs/x", "prior names a run of stage=prior, which itself takes none"),
  ],
)
def test_other_arguments_are_refused(argument, said):
  with pytest.raises(ValueError, match=said):
    emma.get_config(argument)
