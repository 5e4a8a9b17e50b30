"""The command line: what is wrong is said in one line, before anything is compiled."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from affjax import main

ROOT = Path(__file__).parent.parent
VIT = "--config=configs/vit_mtl.py"


def run(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "affjax.main", *arguments],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    ([f"{VIT}", "--config.optimizer.lerning_rate=1"], 'Did you mean "learning_rate"'),
    (
      [f"{VIT}", "--config.model.encoder.kernel=3"],
      "--config.model.encoder.kernel: the config has",
    ),
    ([f"{VIT}", "--config.steps=0.5"], "--config.steps=0.5"),
    ([f"{VIT}:varant=S/16"], "did you mean 'variant'?"),
    ([f"{VIT}:data=ferpls"], "use one of synthetic_faces, ferplus"),
    ([f"{VIT}:batch_size=many"], "not int"),
    ([f"{VIT}:variant=S/15"], "variant 'S/15': use one of"),
    (["--config=configs/vit_mlt.py"], "configs/vit_mlt.py"),
    (["--confg=configs/vit_mtl.py"], "Did you mean: config"),
    ([f"{VIT}", "extra"], "unexpected argument 'extra'"),
    ([], "--config is missing"),
    ([f"{VIT}", "--config.model.encoder.name=vit.VIT"], "it has ['ConvLayer'"),
    (
      [f"{VIT}", "--config.optimizer.schedule=cosin"],
      "use 'cosine', 'linear', 'exponential', 'inverse_sqrt' or",
    ),
    ([f"{VIT}", "--config.mesh.data=3"], "set config.mesh.data=-1"),
    ([f"{VIT}", "--config.image_size=100"], "image_size 100 is not a multiple of the patch size"),
  ],
)
def test_a_mistake_is_answered_in_one_line(arguments, says, tmp_path):
  result = run(*arguments, f"--workdir={tmp_path / 'run'}", f"--data_dir={tmp_path}")
  assert result.returncode == 1
  assert result.stderr.startswith("error: ")
  assert len(result.stderr.strip().splitlines()) == 1
  assert says in result.stderr
  assert not (tmp_path / "run").exists()


def test_a_data_set_that_is_not_there_comes_with_the_command_that_makes_it(tmp_path):
  result = run(f"{VIT}:data=ferplus", f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'run'}")
  assert result.returncode == 1
  assert "python -m affjax.data.prepare ferplus --source=FOLDER" in result.stderr
  assert len(result.stderr.strip().splitlines()) == 1


def test_help_names_every_flag():
  shown = run("--help").stdout
  for flag in ("--config", "--workdir", "--mode", "--data_dir", "--checkpoint", "--coordinator"):
    assert flag in shown


def test_the_default_folder_is_named_after_the_config_and_its_arguments():
  named = main.default_workdir("configs/vit_mtl.py:data=ferplus,variant=S/16")
  assert named == Path("runs/vit_mtl-data=ferplus,variant=S-16")
  assert main.default_workdir("configs/vit_mtl.py") == Path("runs/vit_mtl")
