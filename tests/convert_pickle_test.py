"""Legacy files of weights: plain arrays come out to the bit, and nothing in them is run."""

import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hostile import Evil, archive_of, lies, refuse

from affjax.models import weights
from scripts import convert_pickle

ROOT = Path(__file__).parent.parent


def reduced(*lines):
  """A pickle of protocol 0 of these lines."""
  return "\n".join(lines).encode() + b"."


class Subclass(np.ndarray):
  """An array whose state runs what it likes."""

  def __setstate__(self, state):
    raise AssertionError("it was unpickled")


def evil(sentinel):
  """Name -> pickle, and what is said of it. Unpickled, most would make the sentinel."""
  make = f"S'mkdir {sentinel}'"
  array = pickle.dumps(np.arange(4.0), 2)
  nested = {}
  nested["w"] = nested
  laughs = ["x"]
  for _ in range(60):
    laughs = [laughs] * 10
  tuples = b"(" * 100_000 + b"l" + b"t" * 99_999 + b"}" + b"."
  return {
    "os.system": (reduced("cos", "system", f"({make}", "tR"), "'os.system'"),
    "posix.system": (pickle.dumps(Evil(sentinel)), "'posix.mkdir'"),
    "eval": (reduced("cbuiltins", "eval", "(S'1'", "tR"), "'builtins.eval'"),
    "Python 2's eval": (reduced("c__builtin__", "eval", "(S'1'", "tR"), "'__builtin__.eval'"),
    "getattr": (reduced("cbuiltins", "getattr", "."), "'builtins.getattr'"),
    "a dotted name": (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tolist\x93.", "'numpy.ndarray.tol"),
    "numpy's loader": (reduced("cnumpy", "load", f"({make}", "tR"), "'numpy.load'"),
    "torch's loader": (reduced("ctorch.hub", "load", f"({make}", "tR"), "'torch.hub.load'"),
    "codecs": (reduced("c_codecs", "decode", f"({make}", "tR"), "'_codecs.decode'"),
    "an instance": (reduced("(ios", "system", ""), "the operation INST"),
    "an object": (b"(cos\nsystem\no.", "'os.system'"),
    "a new object": (b"cnumpy\nndarray\n)\x81.", "the operation NEWOBJ"),
    "an extension": (b"\x82\x01.", "the operation EXT1"),
    "a wide extension": (b"\x84\x01\x00\x00\x00.", "the operation EXT4"),
    "a buffer elsewhere": (b"\x80\x05\x97.", "the operation NEXT_BUFFER"),
    "a call of a text": (b"S'os.system'\n)R.", "a call of what is no function"),
    "a call of a type": (b"cnumpy\nndarray\n(I9\ntR.", "a call of what is no function"),
    "a state for a function": (b"cnumpy\ndtype\n}S'__call__'\nI1\nsb.", "a state of what has none"),
    "a state for a text": (b"S'x'\n}b.", "a state of what has none"),
    "an array of objects": (pickle.dumps({"w": np.array([Evil(sentinel)])}, 2), "'posix.mkdir'"),
    "an array of None": (pickle.dumps({"w": np.array([None])}, 2), "only of numbers"),
    "an array of texts": (pickle.dumps({"w": np.array(["x"])}, 2), "only of numbers"),
    "an array of structures": (
      pickle.dumps({"w": np.zeros(1, "i4,f4")}, 2),
      "of structures|of 'V8'",
    ),
    "an array of a type of its own": (
      pickle.dumps(np.zeros(2).view(Subclass), 2),
      "convert_pickle_test.Subclass'",
    ),
    "an array of a function": (
      array.replace(b"cnumpy\nndarray", b"cnumpy\ndtype"),
      "type of its own",
    ),
    "an array larger than it is": (
      array.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"),
      "shape .2147483647,. with 32 bytes",
    ),
    "an array of a negative size": (
      array.replace(b"K\x04\x85", b"J\xff\xff\xff\xff\x85"),
      "sizes that are none",
    ),
    "an array that is never filled": (
      b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR.",
      "never filled",
    ),
    "a dict in itself": (pickle.dumps(nested), "nested too deeply"),
    "a billion lists": (pickle.dumps(laughs), "nested too deeply|more than 1,000,000 values"),
    "tuples in tuples": (tuples, "damaged|nested|no arrays"),
    "a list as a key": (b"}]K\x01s.", "whose key is no name"),
    "a text of 2**62 bytes": (b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.", "only 2 remain"),
    "bytes of 2**62": (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "only 2 remain"),
    "a frame of 2**62": (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.", "no arrays"),
    "a memo of 2**32": (b"\x80\x04}r\xff\xff\xff\xff.", "no arrays"),
    "a number of many digits": (b"L" + b"9" * 10_000 + b"L\n.", "Exceeds the limit"),
    "a reference": (b"\x80\x04\x8c\x01x\x8c\x01yQ.", "damaged"),
    "a reference to a module": (b"Pos.system\n.", "the operation PERSID"),
    "nothing on the stack": (b"0.", "the operation POP"),
    "a stack that is empty": (b".", "damaged"),
    "a memory that is empty": (b"h\x05.", "damaged"),
    "no end": (pickle.dumps({"w": 1})[:-1], "ends too early"),
    "no pickle": (b"\xff\xfe", "no pickle"),
    "nothing": (b"", "ends too early|empty file"),
  }


@pytest.mark.parametrize("name", evil(Path("sentinel")))
def test_a_pickle_runs_nothing_and_is_refused_by_name(tmp_path, name):
  data, says = evil(tmp_path / "sentinel")[name]
  (tmp_path / "w.pkl").write_bytes(data)
  said = refuse("w.pkl: ", convert_pickle.convert, tmp_path / "w.pkl", tmp_path / "w.npz")
  refuse(says, convert_pickle.convert, tmp_path / "w.pkl", tmp_path / "w.npz")
  assert len(said) < 1000
  assert [path.name for path in tmp_path.iterdir()] == ["w.pkl"]


def test_these_pickles_do_harm_where_they_are_unpickled(tmp_path):
  pickle.loads(evil(tmp_path / "sentinel")["posix.system"][0])
  assert (tmp_path / "sentinel").is_dir()


def test_many_copies_of_one_text_or_list_are_refused(tmp_path):
  numbers = b"X" + struct.pack("<I", 2**20) + b"\x01" * 2**20 + b"q\x09"
  kind = b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1tRq\x01"
  one = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n(I0\ntX\x01\x00\x00\x00b\x87R"
  state = b"(K\x01J\x00\x00\x10\x00\x85h\x01\x89h\x09tb"
  many = numbers + b"0" * 0 + kind + b"]" + b"(" + (one + state) * 600 + b"e."
  (tmp_path / "w.pkl").write_bytes(many)
  refuse("arrays of 629,145,600 bytes", convert_pickle.load, tmp_path / "w.pkl")
  pair = b"(X\x01\x00\x00\x00aK\x01t"
  pairs = b"](" + b"".join(pair.replace(b"a", bytes([97 + k])) for k in range(26)) + b"eq\x01"
  dicts = b"ccollections\nOrderedDict\nq\x02" + b"h\x02h\x01\x85R" * 200_000
  (tmp_path / "w.pkl").write_bytes(pairs + dicts + b".")
  load = convert_pickle.load
  refuse("more than 5,000,000 operations", load, tmp_path / "w.pkl", megabytes=1024)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_arrays_are_converted_to_the_bit(tmp_path, capsys, protocol):
  rng = np.random.default_rng(0)
  arrays = {
    "conv": {"weight": rng.normal(size=(2, 3)).astype(np.float32), "bias": np.arange(2)},
    "layers": [np.asfortranarray(rng.normal(size=(3, 2))), np.array([True, False])],
    "swapped": np.arange(3, dtype=">f4"),
    "scalar": np.float16(0.5),
    "empty": np.zeros((0, 2), np.uint8),
    "epoch": 3,
    "name": "x",
    7: np.arange(3, dtype=np.int8),
  }
  (tmp_path / "w.pkl").write_bytes(pickle.dumps(arrays, protocol))
  for ending in ("npz", "safetensors"):
    convert_pickle.convert(tmp_path / "w.pkl", tmp_path / f"w.{ending}")
    found = weights.read(tmp_path / f"w.{ending}")
    expected = {
      "conv.weight": arrays["conv"]["weight"], "conv.bias": arrays["conv"]["bias"],
      "layers.0": arrays["layers"][0], "layers.1": arrays["layers"][1],
      "swapped": arrays["swapped"].astype("<f4"), "scalar": np.array(0.5, np.float16),
      "empty": arrays["empty"], "7": arrays[7],
    }  # fmt: skip
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
      assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
      np.testing.assert_array_equal(found[name], array)
  said = capsys.readouterr().out
  assert "conv.weight  float32  2 x 3\n" in said
  assert "in 8 arrays, 2 values that are no arrays left out" in said


def test_a_prefix_is_taken_off_and_the_rest_left_out(tmp_path):
  tree = {
    "state_dict": {"a": np.ones(2)},
    "optimizer": {"a": np.ones(3)},
    "state_dict2": np.ones(4),
  }
  (tmp_path / "w.pkl").write_bytes(pickle.dumps(tree))
  convert_pickle.convert(tmp_path / "w.pkl", tmp_path / "w.npz", "state_dict")
  found = weights.read(tmp_path / "w.npz")
  assert {name: array.shape for name, array in found.items()} == {"a": (2,)}
  with pytest.raises(ValueError, match="no arrays below 'x'; it has state_dict.a, optimizer.a"):
    convert_pickle.convert(tmp_path / "w.pkl", tmp_path / "w.npz", "x")
  with pytest.raises(ValueError, match="use a name that ends in .npz or .safetensors"):
    convert_pickle.convert(tmp_path / "w.pkl", tmp_path / "w.txt")
  with pytest.raises(ValueError, match="nowhere: no such file"):
    convert_pickle.convert(tmp_path / "nowhere", tmp_path / "w.npz")


def test_the_script_helps_and_says_in_one_line_what_is_wrong(tmp_path):
  script = [sys.executable, ROOT / "scripts" / "convert_pickle.py"]
  run = lambda *more: subprocess.run([*script, *more], capture_output=True, text=True)
  assert "--prefix" in run("--help").stdout
  (tmp_path / "w.pkl").write_bytes(pickle.dumps(Evil(tmp_path / "sentinel")))
  done = run(tmp_path / "w.pkl", tmp_path / "w.npz")
  assert done.returncode == 1
  assert done.stderr.splitlines() == [
    f"error: {tmp_path / 'w.pkl'}: not converted: it holds 'posix.mkdir', which is no plain array"
  ]


@pytest.fixture(params=[True, False], ids=["zip", "old"])
def save(request, tmp_path):
  """Saves as torch does, in either format; gives the file."""
  torch = pytest.importorskip("torch")

  def write(values):
    path = tmp_path / "w.pth"
    torch.save(values, path, _use_new_zipfile_serialization=request.param)
    return path

  return write


def test_what_torch_saves_is_converted_to_the_bit_without_torch(save, tmp_path):
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  model = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 5).bfloat16()
  )
  shared = torch.arange(12.0).reshape(3, 4)
  views = [shared.t(), shared[1:, ::2], torch.zeros(0, 3), torch.tensor(1.5), torch.tensor([True])]
  more = [
    torch.arange(3, dtype=kind) for kind in (torch.int16, torch.int8, torch.uint8, torch.half)
  ]
  parameter = torch.nn.Parameter(torch.ones(2))
  state = {"model": model.state_dict(), "more": [*views, *more], "p": parameter, "epoch": 3}
  path = save(state)
  code = (
    f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import convert_pickle, pathlib;"
    f"convert_pickle.convert(pathlib.Path({str(path)!r}), pathlib.Path({str(path)!r} + '.npz'));"
    "sys.exit('torch' in sys.modules or 'pickle' in vars(convert_pickle))"
  )
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0
  found = weights.read(f"{path}.npz")
  expected = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
  expected |= {f"more.{k}": tensor for k, tensor in enumerate(state["more"])}
  expected["p"] = parameter.detach()
  assert found.keys() == expected.keys()
  for name, tensor in expected.items():
    array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def repacked(path, change):
  """Writes a zip of torch's anew with other members."""
  with zipfile.ZipFile(path) as archive:
    members = {name: archive.read(name) for name in archive.namelist()}
  root = next(iter(members)).partition("/")[0]
  change(members, root)
  archive_of(members, zipfile.ZIP_STORED)(path)


@pytest.mark.parametrize(
  ("old", "new", "says"),
  [
    (b"K\x03K\x04\x86", b"J\xff\xff\xff\x7fK\x04\x86", "in a storage of 12 numbers"),
    (b"K\x04K\x01\x86", b"J\xff\xff\xff\x7fK\x01\x86", "in a storage of 12 numbers"),
    (b"K\x04K\x01\x86", b"J\xff\xff\xff\xffK\x01\x86", "sizes that are none"),
    (b"K\x04K\x01\x86", b"K\x00K\x00\x86", None),
    (b"QK\x00K\x03", b"QK\x0bK\x03", "in a storage of 12 numbers"),
    (b"K\x0ct", b"J\xff\xff\xff\x7ft", "of 48 bytes, which should have 8,?589,?934,?588"),
    (b"ctorch\nFloatStorage", b"ctorch\nDoubleStorage", "of 48 bytes, which should have 96"),
    (b"ctorch\nFloatStorage", b"ctorch\nsave", "'torch.save'"),
    (b"storage", b"modules", "a reference that is not known"),
  ],
)
def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path, old, new, says):
  torch = pytest.importorskip("torch")
  path = tmp_path / "w.pth"
  torch.save({"w": torch.arange(12.0).reshape(3, 4)}, path)

  def change(members, root):
    assert members[f"{root}/data.pkl"].count(old) == 1
    data = members[f"{root}/data.pkl"].replace(old, new)
    # A text says before it how long it is; of names in lines only the line counts.
    members[f"{root}/data.pkl"] = data

  repacked(path, change)
  if says is None:  # every number is the first: within the storage, and no larger than it
    assert not convert_pickle.load(path)[0]["w"].any()
  else:
    refuse(says, convert_pickle.load, path)


def missing(members, root):
  del members[f"{root}/data/0"]


def short(members, root):
  members[f"{root}/data/0"] = members[f"{root}/data/0"][:-1]


def big_endian(members, root):
  members[f"{root}/byteorder"] = b"big"


def no_pickle(members, root):
  del members[f"{root}/data.pkl"]


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (missing, "no .*data/0"),
    (short, "data/0 of 47 bytes, which should have 48"),
    (big_endian, "big-endian"),
    (no_pickle, "no one data.pkl"),
  ],
)
def test_a_zip_of_torch_that_is_not_whole_is_refused(tmp_path, change, says):
  torch = pytest.importorskip("torch")
  path = tmp_path / "w.pth"
  torch.save({"w": torch.arange(12.0)}, path)
  repacked(path, change)
  refuse(says, convert_pickle.load, path)


def test_a_storage_that_ends_beyond_the_file_is_refused(tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "w.pth"
  torch.save({"w": torch.arange(12.0)}, path)
  repacked(path, lambda members, root: None)
  with zipfile.ZipFile(path) as archive:
    name = next(name for name in archive.namelist() if name.endswith("data/0"))
  lies(path, name, 2**31, 2**31)
  refuse("w.pth: ", convert_pickle.load, path)


def test_a_module_that_torch_saved_whole_is_refused(save):
  torch = pytest.importorskip("torch")
  refuse("'torch.nn.modules", convert_pickle.load, save(torch.nn.Linear(2, 2)))


def test_an_old_file_of_torch_that_ends_too_early_is_refused(tmp_path):
  torch = pytest.importorskip("torch")
  path = tmp_path / "w.pth"
  torch.save({"w": torch.arange(12.0)}, path, _use_new_zipfile_serialization=False)
  for length in (-1, -49, -60, 200, 40):
    (tmp_path / "cut.pth").write_bytes(path.read_bytes()[:length])
    refuse("cut.pth: not converted: ", convert_pickle.load, tmp_path / "cut.pth")
