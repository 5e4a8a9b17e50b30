import json
import math

import numpy as np
import pytest
from scipy import stats

from configs import vit_mtl
from scripts import sweep


def test_every_combination_of_values_is_run_the_last_leaf_fastest():
  found = sweep.combinations([["a.depth", "1", "2"], ["b.stem", "x", "y"]])
  assert [sweep.title(c) for c in found] == [
    "depth=1 stem=x", "depth=1 stem=y", "depth=2 stem=x", "depth=2 stem=y",
  ]  # fmt: skip
  assert sweep.combinations([]) == [()]
  assert sweep.title(()) == "as it is"


def test_the_interval_is_students_t():
  values = np.random.default_rng(0).normal(size=5)
  mean, half = sweep.interval(values)
  low, high = stats.ttest_1samp(values, 0).confidence_interval()
  assert mean - half == pytest.approx(low)
  assert mean + half == pytest.approx(high)
  assert math.isnan(sweep.interval([1.0])[1])


def test_differences_are_of_equal_seeds():
  a, b = (("x", "1"),), (("x", "2"),)
  noise = np.random.default_rng(1).normal(size=4)
  runs = lambda shift: [(shift + value, 10, 5.0) for value in noise]
  first, second = sweep.summarise({a: runs(0), b: runs(0.5)}, {})
  assert first["difference"] == 0
  assert second["difference"] == pytest.approx(0.5)
  assert second["difference_interval"] == pytest.approx(0, abs=1e-9)
  assert second["interval"] > 0.1


def test_a_leaf_without_values_is_refused(capsys):
  with pytest.raises(SystemExit):
    sweep.parse(["--config=configs/vit_mtl.py", "--vary", "steps"])
  assert "name values that it takes" in capsys.readouterr().err


def test_scores_of_another_config_are_not_taken_for_this_ones(tmp_path):
  parse = lambda *rest: sweep.parse(
    ["--config=configs/vit_mtl.py:debug", f"--workdir={tmp_path}", "--", *rest]
  )
  where = sweep.folder(tmp_path, (("model.decoder.depth", "2"),), 3)
  where.mkdir(parents=True)
  config = json.loads(vit_mtl.get_config("debug").to_json_best_effort()) | {"seed": 3, "steps": 5}
  config["model"]["decoder"]["depth"] = 2
  (where / "config.json").write_text(json.dumps(config))
  (where / "scores.json").write_text("{}")
  run = lambda depth, *rest: sweep.run(parse(*rest), (("model.decoder.depth", depth),), 3)
  # What may differ in a run that goes on may do so here, and where the data lives.
  assert run("2", "--config.steps=5", "--config.log_every=7", "--data_dir=/x") == ""
  with pytest.raises(ValueError, match="another config .steps was 5, is 6.: use another --workdir"):
    run("2", "--config.steps=6")
  # Nor if it is the config's file that has changed since.
  config["model"]["encoder"]["gelu"] = "of before"
  (where / "config.json").write_text(json.dumps(config))
  with pytest.raises(ValueError, match="model.encoder.gelu was 'of before', is "):
    run("2", "--config.steps=5")


@pytest.mark.slow
def test_a_sweep_runs_what_is_missing_and_says_what_is_refused(tiny_faces, tmp_path, capsys):
  command = ["--config=configs/vit_mtl.py:debug", "--seeds=1", f"--workdir={tmp_path}"]
  command += ["--vary", "model.decoder.num_heads", "8", "7", "--metric=expression/f1"]
  command += ["--", f"--data_dir={tiny_faces}", "--config.steps=6", "--config.evaluate.every=6"]
  command += ["--config.model.decoder.position=decoder"]
  command += ["--config.optimizer.warmup_steps=2", "--config.checkpoint.every=6"]
  sweep.sweep(command)
  said = capsys.readouterr().out
  assert "num_heads=7  refused: width 96 is not a multiple of num_heads 7" in said
  (ran, refused) = json.loads((tmp_path / "sweep.json").read_text())
  scores = json.loads((tmp_path / "num_heads=8" / "seed=0" / "scores.json").read_text())
  assert ran["scores"] == [scores["scores"]["test"]["expression/f1"]]
  assert ran["parameters"] > 1e5
  assert "mean" not in refused
  # What is there is not run again.
  (tmp_path / "num_heads=8" / "seed=0" / "scores.json").touch()
  before = (tmp_path / "num_heads=8" / "seed=0" / "scores.json").stat().st_mtime_ns
  sweep.sweep(command)
  assert (tmp_path / "num_heads=8" / "seed=0" / "scores.json").stat().st_mtime_ns == before
  with pytest.raises(ValueError, match="--metric=p: the scores of test are"):
    sweep.sweep([c.replace("expression/f1", "p") for c in command])
