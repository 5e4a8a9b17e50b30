import json

import jax
import numpy as np
import pytest

from affjax import optim, paths, procedures, train
from configs import ferplus_mobilenet


def plain(argument=""):
  return json.loads(ferplus_mobilenet.get_config(argument).to_json_best_effort())


def test_it_starts_from_faceres_deep_and_is_centred_as_those_weights_need_it():
  config = plain()
  assert config["init"] == "faceres-deep"
  encoder = config["model"]["encoder"]
  assert (encoder["name"], encoder["depth"], encoder["norm"]) == ("mobilenet.MobileNet", 13, "none")
  mean = [(value + 1) * 127.5 for value in encoder["centre"]]
  np.testing.assert_allclose(mean, [123.68, 116.779, 103.939])  # red, green, blue


def test_what_it_is_chosen_by_is_not_what_is_reported():
  data = plain()["data"]
  assert (data["train"], data["select"], data["report"]) == ("train", "dev", ["validation"])


def test_the_stem_and_the_first_five_blocks_stay_as_they_are():
  config = plain()
  params = jax.eval_shape(procedures.from_config(config).init).params
  section = config["optimizer"] | {"steps": config["steps"]}
  assert section.pop("name") == "optim.adamw"
  frozen = paths.named(optim.adamw(**section).frozen(params))
  low = ("model/encoder/stem/", *(f"model/encoder/blocks/{i}/" for i in range(5)))
  assert frozen == {name: name.startswith(low) for name in frozen}
  assert sum(frozen.values()) == 2 + 5 * 4


@pytest.mark.slow
def test_its_debug_run_needs_neither_weights_nor_photographs(tiny_faces, tmp_path):
  config = plain("debug")
  assert config["init"] is None
  assert config["initialise"]["source"] is None
  result = train.run(config, tmp_path / "run", tiny_faces)
  assert set(result["scores"]) == {"validation", "test"}
