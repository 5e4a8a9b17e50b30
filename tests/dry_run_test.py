"""What `--mode=check` says of a run, and of one on TPUs that are not here."""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from conftest import debug_config

from affjax import dry_run, experiment
from scripts import benchmark_tpu

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "goldens" / "tpu_v5e_2x4.json"
WRITE = "AFFJAX_WRITE_GOLDENS"  # environment variable: if set, goldens are written, not compared
ALL = "AFFJAX_TPU_GOLDENS"  # likewise: if set, those of large models are compared too, for an hour
LIBTPU = importlib.util.find_spec("libtpu") is not None


def small_config(**changes):
  """Seconds to compile."""
  return debug_config(
    model__encoder=dict(name="vit.ViT", variant="mu/16", depth=1),
    model__decoder=dict(name="decoders.TaskTokens", width=96, depth=1),
    **changes,
  )


def test_a_check_says_all_of_it(tiny_faces, capsys):
  config = small_config(mesh__rules="fsdp", losses__au__positive_weight="balanced")
  found = dry_run.run(config, tiny_faces)
  said = capsys.readouterr().out
  lines = [" ".join(line.split()) for line in said.splitlines()]
  for expected in (
    "optimizer.learning_rate 0.001",  # the config,
    "data.view.masks s_aff_wild2",
    "losses.expression.class_weights -",
    "batch.image uint8 [16, 112, 112, 3]",  # a batch,
    "batch.mask.expression float32 [16]",
    "validation: 32 images (va 32, expression 18, au 32), masks s_aff_wild2/validation",  # data,
    "test: 32 images (va 32, expression 32, au 32)",
    "device 8 x cpu in 1 process(es), mesh data 8 x model 1, state fsdp",
  ):
    assert expected in lines
  assert any(x.startswith("losses.au.positive_weight 5.4 9.667 ") for x in lines)  # as resolved
  row = next(x for x in lines if x.startswith("| model/encoder/blocks/0/mlp/expand/kernel "))
  cells = [cell.strip() for cell in row.split("|")[2:-1]]
  assert cells == ["(96, 384)", "float32", "36,864", "(None, ('data', 'model'))"]
  for kind, of in found.collectives.items():
    assert any(x.startswith(f"{kind} x {of.count} ") for x in lines)
  assert {"all-gather", "all-reduce"} <= set(found.collectives)
  assert any(x == f"in all {found.memory / 1e6:,.1f} MB" for x in lines)
  share = float(next(x for x in lines if "each device holds" in x).split()[-2])
  batch = 16 * (112 * 112 * 3 + 4 * (2 + 8 + 12 + 2 + 1 + 12 + 1)) / 8 / 1e6
  assert found.arguments / 1e6 == pytest.approx(share + batch, abs=0.06)  # as rounded
  step = next(x for x in lines if x.startswith("step "))
  forward = next(float(x.split()[4]) for x in lines if x.startswith("model ") and "GFLOP" in x)
  assert float(step.split()[-1]) == pytest.approx(3 * forward, rel=0.2)


def test_a_check_without_compiling_and_without_data_needs_neither(capsys, tmp_path):
  config = debug_config("data=s_aff_wild2,debug", losses__expression__logit_adjustment="prior")
  assert dry_run.run(config, str(tmp_path), compiles=False, opens=False) is None
  said = capsys.readouterr().out
  assert "logit_adjustment: neutral 0.125" in said  # labels in equal shares
  assert "compiled" not in said
  assert not list(tmp_path.iterdir())


def test_the_shapes_of_a_config_are_those_of_its_data(tiny_faces):
  config = debug_config()
  opened = dry_run._open(config, experiment.Data(config, tiny_faces))
  assert jax.tree.map(
    lambda x: (x.shape, x.dtype), experiment.batch_shapes(config)
  ) == jax.tree.map(lambda x: (x.shape, x.dtype), opened)


@pytest.mark.parametrize(
  ("changes", "said"),
  [
    ({"data__report": ["test", "tset"]}, "tset"),
    ({"checkpoint__metric": "f1"}, "checkpoint.metric='f1'.*p_mtl"),
    ({"mesh__rules": "kernal=fsdp"}, "'kernal' is in no parameter's name"),
    ({"batch_size": 20}, "config.batch_size=20 is not a multiple of the 8"),
  ],
)
def test_a_check_refuses_what_training_would(tiny_faces, changes, said):
  with pytest.raises(ValueError, match=said):
    dry_run.run(debug_config(**changes), tiny_faces, compiles=False)


@pytest.mark.skipif(LIBTPU, reason="libtpu is installed")
def test_without_the_tpu_compiler_the_command_that_installs_it_is_said(tmp_path):
  result = subprocess.run(
    [sys.executable, "-m", "affjax.main", "--config=configs/vit_mtl.py:debug", "--mode=check",
     "--topology=v5e:2x4", "--noopen_data", f"--data_dir={tmp_path}"],
    cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
  )  # fmt: skip
  assert result.returncode == 1
  assert len(result.stderr.strip().splitlines()) == 1
  assert "pip install 'affjax[tpu-aot]'" in result.stderr


needs_libtpu = pytest.mark.skipif(not LIBTPU, reason="pip install '.[tpu-aot]': libtpu is missing")


@needs_libtpu
@pytest.mark.parametrize("topology", ["v5e:3x3", "v9e:2x4", "many"])
def test_a_topology_that_does_not_exist_is_refused_with_some_that_do(topology):
  with pytest.raises(ValueError, match=f"--topology={topology}: .*use for example v5e:2x4") as e:
    dry_run.tpus(topology)
  assert "\n" not in str(e.value)


def numbers(found):
  """As kept: GFLOP, MB and millions of cycles, to four digits; messages as count and MB."""
  sizes = {k: v for k, v in vars(found).items() if k != "collectives"}
  four = lambda x: float(f"{x:.4g}")
  kept = {k: four(v / (1e9 if k == "flops" else 1e6)) for k, v in sizes.items()}
  return kept | {k: [c.count, four(c.bytes / 1e6)] for k, c in found.collectives.items()}


def compilers():
  return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}


@needs_libtpu
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rules", ["replicated", "fsdp"])
@pytest.mark.parametrize("size", [112, 224])
@pytest.mark.parametrize("variant", ["mu/16", "S/16", "B/16"])
def test_the_step_of_the_licensed_datas_recipe_costs_on_tpus_what_it_did(variant, size, rules):
  """A global batch of 256 on eight v5e chips; numbers are per chip."""
  if (variant, size) != ("mu/16", 112) and not (os.environ.get(ALL) or os.environ.get(WRITE)):
    pytest.skip(f"set {ALL}=1: compiling takes minutes")
  config = benchmark_tpu.config_of(variant, size, 256, {"mesh.rules": rules})
  found = dry_run.run(config, topology="v5e:2x4", opens=False)
  golden = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
  name = f"{variant}, {size} px, {rules}"
  if os.environ.get(WRITE):
    golden |= {name: numbers(found), "compilers": compilers()}
    GOLDEN.write_text(json.dumps(dict(sorted(golden.items())), indent=1) + "\n")
  expected = golden[name]
  assert set(numbers(found)) == set(expected), f"if it is meant so, set {WRITE}=1"
  # Other releases of the compilers fuse and schedule in other ways.
  near = 0.02 if golden["compilers"] == compilers() else 0.15
  for key, value in numbers(found).items():
    assert value == pytest.approx(expected[key], rel=near, abs=0.1), key
