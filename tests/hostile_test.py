"""Files that someone made to do harm: refused in one line, without running, writing or filling up.

Where memory is the claim, a test lowers what the process may still ask for to a few megabytes.
"""

import ast
import json
import os
import pickle
import resource
import struct
import sys
import time
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from affwild_tree import prepared, write_folder, write_lsd, write_mtl
from conftest import debug_config, write_ferplus
from hostile import Evil, archive_of, lies, memory, refuse
from safetensors.numpy import save_file

import affjax
from affjax import annotations, initialise, procedures
from affjax.build import bind, build
from affjax.data import records
from affjax.models import weights
from affjax.state import TrainState
from tfds_builders import images
from tfds_builders.ferplus import ferplus_dataset_builder as ferplus

ROOT = Path(__file__).parent.parent


def test_the_limit_of_memory_holds():
  with memory(), pytest.raises(MemoryError):
    np.ones(2**27, np.uint8)
  assert np.ones(2**27, np.uint8).all()


# Images.


def chunk(kind, data=b"", length=None):
  size = struct.pack(">I", len(data) if length is None else length)
  return size + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, extra=b"", pixels=b"", first=b""):
  """A grey PNG that says it is so large, whatever it holds."""
  header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
  return b"".join(
    [
      images.PNG, first, chunk(b"IHDR", header), extra, chunk(b"IDAT", zlib.compress(pixels)),
      chunk(b"IEND"),
    ]
  )  # fmt: skip


PIXELS = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
JPEG = cv2.imencode(".jpg", PIXELS)[1].tobytes()
PNG = cv2.imencode(".png", PIXELS)[1].tobytes()


def jpeg(width, height):
  """A JPEG that says it is so large."""
  frame = JPEG.index(b"\xff\xc0") + 5
  return JPEG[:frame] + struct.pack(">HH", height, width) + JPEG[frame + 4 :]


def two_kinds():
  """A JPEG in which OpenCV finds the beginning of an AVIF; cut, so that simplejpeg gives it up."""
  segment = b"ftypavif\0\0\0\0avifmif1"
  length = int.from_bytes(segment[:2], "big")
  return b"\xff\xd8\xff\xe0" + segment + bytes(length - len(segment)) + JPEG[2:-300]


def kind(ending):
  return cv2.imencode(ending, PIXELS)[1].tobytes()


IMAGES = {
  "a JPEG of 4 gigapixels": (jpeg(65500, 65500), "65500x65500 pixels; at most 100,000,000"),
  "a PNG of 4 gigapixels": (png(65500, 65500), "65500x65500 pixels; at most 100,000,000"),
  "a PNG of 2**62 pixels": (png(2**31 - 1, 2**31 - 1), "at most 100,000,000"),
  "a chunk that says 2 GB": (png(48, 48, chunk(b"tEXt", b"", 2**31 - 1)), "ends inside a chunk"),
  "a chunk before the header": (png(48, 48, first=chunk(b"tEXt")), "damaged PNG"),
  "two headers": (png(48, 48, chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 0, 0, 0, 0))), ""),
  "pixels that are not there": (png(48, 48), ""),
  "a PNG that ends": (PNG[:20], "damaged PNG"),
  "JPEG and AVIF": (two_kinds(), "both JPEG and AVIF"),
  "a JPEG without a header": (b"\xff\xd8\xff" + bytes(99), ""),
  "a BMP": (kind(".bmp"), "neither JPEG nor PNG"),
  "a TIFF": (kind(".tiff"), "neither JPEG nor PNG"),
  "a WebP": (kind(".webp"), "neither JPEG nor PNG"),
  "a PPM": (kind(".ppm"), "neither JPEG nor PNG"),
  "a GIF": (b"GIF89a" + bytes(99), "neither JPEG nor PNG"),
  "text": (b"text", "neither JPEG nor PNG"),
  "nothing": (b"", "neither JPEG nor PNG"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_that_is_none_is_refused_before_memory_is_asked_for(tmp_path, name):
  encoded, says = IMAGES[name]
  (tmp_path / "a.jpg").write_bytes(encoded)
  with memory():
    assert records.decode(encoded) is None
    assert records.decode(encoded, np.empty((48, 48, 3), np.uint8)) is None
    assert not records.decode_into(encoded, np.empty((48, 48, 3), np.uint8))
  refuse(f"a.jpg: the image cannot be decoded.*{says}", records.read_image, tmp_path / "a.jpg")
  refuse(f"a.jpg: not an image that can be decoded.*{says}", images.check, "a.jpg", encoded)


def test_an_image_of_another_size_is_refused_by_its_header():
  large = cv2.imencode(".png", np.zeros((9000, 9000), np.uint8))[1].tobytes()
  refuse("a.png: 9000x9000 pixels; expected 48x48", images.check, "a.png", large, (48, 48))
  refuse("a.jpg: 9000x9000 pixels; expected", images.check, "a.jpg", jpeg(9000, 9000), (48, 48))
  images.check("a.png", large)  # it is whole


def test_images_as_they_should_be_are_read():
  with memory():
    for encoded in (JPEG, PNG):
      images.check("a", encoded, (48, 64))
      assert records.decode(encoded).shape == (48, 64, 3)
    np.testing.assert_array_equal(records.decode(PNG), PIXELS[..., ::-1])


@pytest.mark.parametrize("read", [records.read_image, images.read])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, read):
  os.mkfifo(tmp_path / "pipe.jpg")
  for path in (tmp_path / "pipe.jpg", tmp_path, Path("/dev/zero")):
    refuse(f"{path}: not a regular file", read, path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
  with (tmp_path / "a.jpg").open("wb") as file:
    file.truncate(2**40)  # a hole
  refuse("a.jpg: 1,099,511,627,776 bytes; an image has at", records.read_image, tmp_path / "a.jpg")


def test_a_pipe_in_a_source_is_named(tmp_path):
  source = write_folder(tmp_path / "source", "path\npipe.jpg\n", [])
  os.mkfifo(source / "pipe.jpg")
  with pytest.raises(ValueError, match="pipe.jpg: not a regular file"):
    prepared("image_folder", source, tmp_path / "data")


# The zips of FER+.


def large(path):
  archive_of({"FER2013Train/a.png": bytes(2**28)})(path)


def lying(path):
  large(path)
  lies(path, "FER2013Train/a.png", 1000)


def boasting(path):
  archive_of({"FER2013Train/a.png": PNG})(path)
  lies(path, "FER2013Train/a.png", 2**31)


def encrypted(path):
  archive_of({"a.png": PNG})(path)
  data = bytearray(path.read_bytes())
  for at in (data.index(b"PK\3\4") + 6, data.index(b"PK\1\2") + 8):
    data[at] |= 1
  path.write_bytes(data)


def flipped(path):
  archive_of({"a.png": PNG}, zipfile.ZIP_STORED)(path)
  data = bytearray(path.read_bytes())
  data[200] ^= 1
  path.write_bytes(data)


def cut(path):
  archive_of({f"{k}.png": PNG for k in range(9)})(path)
  path.write_bytes(path.read_bytes()[:-300])


ZIPS = {
  "too large": (large, "a.png has 268,435,456 bytes; an image of 48x48"),
  "larger than it says": (lying, "Bad CRC-32"),
  "said to be larger": (boasting, "a.png has 2,147,483,648 bytes"),
  "encrypted": (encrypted, "a.png is encrypted"),
  "bzip2, which unpacks without end": (
    archive_of({"a.png": bytes(2**20)}, zipfile.ZIP_BZIP2),
    "neither stored nor deflated",
  ),
  "a flipped bit": (flipped, "Bad CRC-32"),
  "cut": (cut, "not a zip file"),
  "empty": (lambda path: path.write_bytes(b""), "not a zip file"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_a_zip_that_would_fill_memory_or_is_damaged_is_named(tmp_path, name):
  write, says = ZIPS[name]
  write(tmp_path / "FER2013Train.zip")
  read = lambda: list(ferplus.read_images(tmp_path, "FER2013Train"))
  refuse(f"FER2013Train.zip: .*{says}", read)


def test_a_zip_of_too_many_images_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(ferplus, "MEMBERS", 3)
  archive_of({f"{k}.png": PNG for k in range(4)})(tmp_path / "FER2013Train.zip")
  read = lambda: list(ferplus.read_images(tmp_path, "FER2013Train"))
  refuse("FER2013Train.zip: 4 images; FER2013Train has at most 3", read)


def test_members_that_lead_elsewhere_are_left_alone(tmp_path):
  names = ("../a.png", "/etc/b.png", "FER2013Train/../../c.png", "a\\d.png", "__MACOSX/e.png")
  archive_of({name: PNG for name in (*names, "f.png", "FER2013Train/g.png")})(
    tmp_path / "FER2013Train.zip"
  )
  found = [name for name, _ in ferplus.read_images(tmp_path, "FER2013Train")]
  assert found == ["f.png", "g.png"]
  assert [path.name for path in tmp_path.iterdir()] == ["FER2013Train.zip"]


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_zip_gives_its_images_or_an_error_that_names_it(tmp_path, seed):
  rng = np.random.default_rng(seed)
  path = tmp_path / "FER2013Train.zip"
  archive_of({f"FER2013Train/{k}.png": PNG for k in range(3)})(path)
  whole = path.read_bytes()
  for _ in range(200):
    data = bytearray(whole)
    # Where a byte counts: in the directory at the end, and in the first header.
    for at in rng.choice([*range(60), *range(len(data) - 260, len(data))], 2):
      data[at] = rng.integers(256)
    path.write_bytes(data)
    try:
      list(ferplus.read_images(tmp_path, "FER2013Train"))
    except ValueError as e:
      assert str(e).startswith(f"{path}: ")  # noqa: PT017


VOTES = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF"


@pytest.mark.parametrize(
  ("row", "says"),
  [
    (b"Training,a.png,x,1,0,0,0,0,0,0,0,0", "csv:3: neutral 'x': use a number of votes"),
    (b"Training,a.png,1,-1,0,0,0,0,0,0,0,0", "csv:3: happiness '-1'"),
    (b"Training,a.png,1,1e9,0,0,0,0,0,0,0,0", "csv:3: happiness '1e9'"),
    (b"Training,a.png,1,99999999999,0,0,0,0,0,0,0,0", "csv:3: happiness '99999999999'"),
    (b"Training,a.png,1,1_0,0,0,0,0,0,0,0,0", "csv:3: happiness '1_0'"),
    (b"Training,a.png,1,1", "csv:3: surprise None"),
    (b"Training,\xff\xfe", "csv:.: not a CSV file"),
    (b"Training," + b"x" * 200_000, "csv:.: not a CSV file"),
  ],
)
def test_a_bad_cell_of_the_votes_is_named_with_its_line(tmp_path, row, says):
  first = b"Training,b.png,10,0,0,0,0,0,0,0,0,0"
  (tmp_path / "votes.csv").write_bytes(b"\n".join([VOTES.encode(), first, row, b""]))
  refuse(says, ferplus.read_votes, tmp_path / "votes.csv")


# Links and paths that lead out of the source.


def moved(path, outside):
  """Puts what is at a path outside and a link in its place."""
  outside.mkdir(exist_ok=True)
  path.rename(outside / path.name)
  path.symlink_to(outside / path.name)


def image_folder(source):
  write_folder(source, "path,split\nin/a.jpg,train\n", ["in/a.jpg"])


LINKS = {
  "an image": ("image_folder", image_folder, "in/a.jpg"),
  "a folder of images": ("image_folder", image_folder, "in"),
  "a CSV": ("image_folder", image_folder, "labels.csv"),
  "a list": ("s_aff_wild2", write_mtl, "training_set_annotations.txt"),
  "a folder of videos": ("s_aff_wild2", write_mtl, "cropped_aligned"),
  "a class folder": ("lsd", write_lsd, "training_set_synthetic_images/FEAR"),
  "a folder of test images": ("lsd", write_lsd, "test_set"),
  "a list of test images": ("lsd", write_lsd, "LSD_Challenge_test_set_release.txt"),
  "votes": ("ferplus", write_ferplus, "fer2013new.csv"),
  "a folder of FER+": ("ferplus", write_ferplus, "FER2013Train"),
  "a photograph of FER+": ("ferplus", write_ferplus, "FER2013Valid/fer0000100.png"),
  "a zip of FER+": ("ferplus", lambda s: write_ferplus(s, zipped=True), "FER2013Train.zip"),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_out_of_the_source_is_named_with_the_way_to_follow_it(tmp_path, name):
  data_set, write, path = LINKS[name]
  write(tmp_path / "source")
  moved(tmp_path / "source" / path, tmp_path / "outside")
  with pytest.raises(ValueError, match=f"{path}.*: a link leads out of .*AFFJAX_FOLLOW_LINKS=1"):
    prepared(data_set, tmp_path / "source", tmp_path / "data")
  assert not list((tmp_path / "data").rglob("*array_record*"))


def test_links_are_followed_when_the_user_says_so(tmp_path, monkeypatch):
  image_folder(tmp_path / "source")
  moved(tmp_path / "source" / "in", tmp_path / "outside")
  monkeypatch.setenv(images.FOLLOW, "1")
  _, summary = prepared("image_folder", tmp_path / "source", tmp_path / "data")
  assert summary["splits"]["train"]["images"] == 1


def test_the_source_may_be_a_link_and_links_may_lead_about_in_it(tmp_path):
  image_folder(tmp_path / "real")
  (tmp_path / "real" / "in").rename(tmp_path / "real" / "elsewhere")
  (tmp_path / "real" / "in").symlink_to("elsewhere")
  (tmp_path / "source").symlink_to(tmp_path / "real")
  _, summary = prepared("image_folder", tmp_path / "source", tmp_path / "data")
  assert summary["splits"]["train"]["images"] == 1


def test_links_that_no_row_names_do_no_harm(tmp_path):
  image_folder(tmp_path / "source")
  (tmp_path / "source" / "in" / "other.jpg").symlink_to("/etc/passwd")
  (tmp_path / "source" / "in" / "round.jpg").symlink_to("round.jpg")
  assert prepared("image_folder", tmp_path / "source", tmp_path / "data")


ESCAPES = [
  "../a.jpg",
  "in/../../a.jpg",
  "/etc/passwd",
  "in\\a.jpg",
  "C:/a.jpg",
  "c:a.jpg",
  "a\0.jpg",
]


@pytest.mark.parametrize("path", [*ESCAPES, ".."])
def test_a_path_that_leads_out_of_a_csv_is_named(tmp_path, path):
  source = write_folder(tmp_path / "source", f"path\n{path}\n", [])
  with pytest.raises(ValueError, match="labels.csv:2: .*") as error:
    prepared("image_folder", source, tmp_path / "data")
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("path", [*ESCAPES, "../00001.jpg", "v/../00001.jpg", "/v/00001.jpg"])
def test_a_path_that_leads_out_of_a_list_is_named(tmp_path, path):
  mtl = f"image,valence,arousal,expression,aus\n{path},0,0,1{',0' * 12}\n"
  (tmp_path / "list.txt").write_text(mtl)
  refuse("list.txt:2: ", annotations.read, tmp_path / "list.txt", "mtl")
  (tmp_path / "list.txt").write_text(f"image,expression\n{path}\n")
  refuse("list.txt:2: ", annotations.read_names, tmp_path / "list.txt", "lsd")


# Weights.


def npy(header, data=b""):
  header = header if isinstance(header, bytes) else repr(header).encode()
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def described(shape, descr="<f4"):
  text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n"
  return text.encode()


def npz(content, name="w.npy", compression=zipfile.ZIP_STORED):
  return archive_of({name: content}, compression)


def objects(path):
  np.savez(path, w=np.array([Evil(path.with_name("sentinel")), None]))


def renamed_pickle(path):
  path.write_bytes(pickle.dumps(Evil(path.with_name("sentinel"))))


def bomb(path):
  count = 2**28 // 4 + 1
  npz(npy(described(f"({count},)"), bytes(4 * count)), compression=zipfile.ZIP_DEFLATED)(path)


def lying_npz(path):
  npz(npy(described("(1,)"), bytes(2**28)), compression=zipfile.ZIP_DEFLATED)(path)
  lies(path, "w.npy", 4 + len(npy(described("(1,)"))))


def twice(path):
  with zipfile.ZipFile(path, "w") as archive:
    for name in ("w.npy", "w"):
      archive.writestr(name, npy(described("(1,)"), bytes(4)))


def whole(path):
  np.savez(path, w=np.ones(1000))


def in_part(path):
  whole(path)
  path.write_bytes(path.read_bytes()[:4000])


def changed(path):
  whole(path)
  data = bytearray(path.read_bytes())
  data[4000] ^= 1
  path.write_bytes(data)


def nested(path):
  npz(npy(b"(" * 5000 + b")" * 5000))(path)


NPZ = {
  "objects": (objects, "w is no array of numbers"),
  "a pickle": (renamed_pickle, "not a zip file"),
  "an .npy": (lambda path: path.write_bytes(npy(described("(1,)"), bytes(4))), "not a zip file"),
  "text": (lambda path: path.write_text("words"), "not a zip file"),
  "nothing": (lambda path: path.write_bytes(b""), "not a zip file"),
  "less than a file": (in_part, "not a zip file"),
  "a flipped bit": (changed, "Bad CRC-32"),
  "a petabyte": (npz(npy(described("(1000000, 1000000, 1000)"), bytes(4))), "another size"),
  "more than any number": (npz(npy(described("(99999999999999999, 99999999999999999)"))), "no arr"),
  "a negative size": (npz(npy(described("(-1, -1)"), bytes(4))), "no array of numbers"),
  "a header of code": (npz(npy(b"__import__('os').mkdir('sentinel')")), "no array of numbers"),
  "a nested header": (nested, "no array of numbers"),
  "a wide dtype": (npz(npy(described("(1,)", "|V1000000000"))), "no array of numbers"),
  "texts": (npz(npy(described("(1,)", "<U9"), bytes(36))), "no array of numbers"),
  "a header of 64 kB": (npz(npy(described("(1,)") + b" " * 60_000, bytes(4))), "no array"),
  "text beside arrays": (npz(b"words", "README"), "README is no array"),
  "a bomb": (bomb, "bytes that would become 268,"),
  "a bomb that lies": (lying_npz, "Bad CRC-32"),
  "bzip2": (npz(npy(described("(1,)"), bytes(4)), compression=zipfile.ZIP_BZIP2), "neither st"),
  "a name that is there twice": (twice, "w is there twice"),
}


@pytest.mark.parametrize("name", NPZ)
def test_an_npz_is_refused_by_what_it_says_of_its_arrays(tmp_path, name):
  write, says = NPZ[name]
  write(tmp_path / "w.npz")
  refuse(
    f"w.npz: cannot be read as an .npz file of arrays: .*{says}", weights.read, tmp_path / "w.npz"
  )
  assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]


def safetensor(header, data=b"", length=None):
  header = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
  return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


SAFETENSORS = {
  "a long header": safetensor(b"{}", length=2**62),
  "a header beyond the file": safetensor(b"{}", length=1000),
  "an array beyond the file": safetensor(entry(offsets=(0, 2**40), shape=(2**38,)), bytes(8)),
  "another shape than bytes": safetensor(entry(shape=(2**40,)), bytes(8)),
  "a shape that wraps around": safetensor(entry(shape=(2**32, 2**32), offsets=(0, 0))),
  "a negative size": safetensor(entry(shape=(-2,)), bytes(8)),
  "an end before its start": safetensor(entry(offsets=(8, 0)), bytes(8)),
  "a hole": safetensor(entry(offsets=(8, 16)), bytes(16)),
  "no such dtype": safetensor(entry("O"), bytes(8)),
  "a dtype that numpy lacks": safetensor(entry("F8_E4M3", (8,)), bytes(8)),
  "complex numbers": safetensor(entry("C64", (1,)), bytes(8)),
  "no JSON": safetensor(b"\x80\x04."),
  "a list": safetensor([]),
  "nested without end": safetensor(b'{"a":' * 50_000),
  "nothing": b"",
}


@pytest.mark.parametrize("name", SAFETENSORS)
def test_a_header_of_safetensors_that_lies_is_refused(tmp_path, name):
  (tmp_path / "w.safetensors").write_bytes(SAFETENSORS[name])
  says = r"w.safetensors: cannot be read as a .safetensors file of arrays: \w"
  refuse(says, weights.read, tmp_path / "w.safetensors")


def test_arrays_as_they_should_be_are_read_whatever_their_order_and_dtype(tmp_path):
  arrays = {
    "blocks/0/kernel": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "swapped": np.arange(3, dtype=">i2"),
    "one": np.array(True),
    "none": np.zeros((0, 3), np.float16),
  }
  for save in (np.savez, np.savez_compressed):
    save(tmp_path / "w.npz", **arrays)
    found = weights.read(tmp_path / "w.npz")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
      np.testing.assert_array_equal(found[name], array)
      assert found[name].shape == array.shape
  save_file({"w": arrays["blocks/0/kernel"]}, tmp_path / "w.safetensors")
  assert weights.read(tmp_path / "w.safetensors")["w"].shape == (2, 3)


def test_weights_that_are_no_numbers_or_of_another_shape_start_no_run(tmp_path):
  state = TrainState(None, {"model": {"kernel": np.ones(2), "bias": np.ones(2)}}, {}, (), None)
  for value, says in (
    (np.array([1, np.nan]), "w.npz: model/bias holds NaN or infinity: .*exclude"),
    (np.array([1, np.inf]), "w.npz: model/bias holds NaN or infinity"),
    (np.ones(3), r"w.npz: model/bias is \(3,\) there, \(2,\) here"),
    (np.ones(()), r"w.npz: model/bias is \(\) there, \(2,\) here"),
  ):
    np.savez(tmp_path / "w.npz", **{"model/kernel": np.ones(2), "model/bias": value})
    refuse(says, initialise.read, {"source": str(tmp_path / "w.npz")}, state)
    taken = initialise.read({"source": str(tmp_path / "w.npz"), "include": "kernel"}, state)
    assert list(taken.arrays) == ["model/kernel"]


def test_two_names_that_mean_one_array_are_an_error():
  one = np.ones((1, 2))
  refuse("blocks/0/x is there twice", weights.unstack, {"blocks/0/x": one, "blocks/x": one})
  refuse("blocks/x is there twice", weights.stack, {"blocks/x": one, "blocks/0/x": one})
  block = "encoder.layer.0.", "layers.0."
  both = {f"{name}mlp.fc1.bias": np.ones(2) for name in block}
  refuse("blocks/0/mlp/expand/bias is there twice", weights.from_transformers, both)


# Names in a config.


NAMES = {
  "affjax.models": [
    "vit.jax", "vit.jnp.asarray", "vit.nnx.Linear", "layers.partial", "vit.layers.Block",
    "affect.build", "affect.inspect.signature", "weights.load_file", "weights.zipfile.ZipFile",
    "weights.np.load", "vit._parse", "vit.__loader__", "vit.__builtins__", "vit.ViT.__init__",
    "..build.build", ".vit.ViT", "vit..ViT", "vit.ViT ", " vit.ViT", "vit/ViT.x", "vit.ViT\n",
    "os.system", "affjax.models.vit.ViT", "__init__.x", "optim.adamw", "losses.ccc_loss",
    "workdir.record", "main.main", "vit.ViTä", "ｖit.ViT", "a" * 10_000 + ".b", ".", "..", "",
  ],
  "affjax.procedures": [
    "supervised.optax.adam", "supervised.augment", "supervised.bind", "supervised.Callable",
    "supervised.TrainState", "vit.ViT", "build", "procedures.from_config",
  ],
  "affjax.optim": [
    "optim.optax.adam", "optim.jax.jit", "optim._optimizer", "optim.dataclasses.replace",
    "optim.NamedTuple", "losses.ccc_loss", "workdir.record", "adamw", "optim.optim.adamw",
    "data.packed.main", "inference.load", "main.main", "checkpoints.seal",
  ],
  "affjax.losses": [
    "losses.jax.jit", "losses._mean", "losses.Sequence", "optim.adamw", "workdir.record",
    "evaluate.main", "losses.losses.ccc_loss",
  ],
}  # fmt: skip


@pytest.mark.parametrize(
  ("package", "name"), [(package, name) for package, names in NAMES.items() for name in names]
)
def test_a_name_leads_to_nothing_but_what_its_section_is_for(package, name):
  before = set(sys.modules)
  for give in (build, lambda *arguments: bind(*arguments, 1)):
    with pytest.raises(ValueError, match="name|has no") as error:
      give({"name": name}, package)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000
  assert not {module for module in set(sys.modules) - before if not module.startswith("affjax.")}


@pytest.mark.parametrize("name", [None, 3, ["vit.ViT"], {"vit": "ViT"}, True, b"vit.ViT"])
def test_a_name_that_is_no_text_is_refused(name):
  with pytest.raises(ValueError, match="needs name='module.Attribute'"):
    build({"name": name}, "affjax.models")


@pytest.mark.parametrize("section", ["vit.ViT", 3, None, [1], [["name"]]])
def test_a_section_that_is_none_is_refused(section):
  with pytest.raises(ValueError, match="it has no fields|needs name="):
    build(section, "affjax.models")


@pytest.mark.parametrize(
  ("package", "name"),
  [
    ("affjax.models", "vit.ViT"),
    ("affjax.models", "affect.AffectModel"),
    ("affjax.models", "decoders.TaskTokens"),
    ("affjax.models", "mobilenet.MobileNet"),
    ("affjax.procedures", "supervised.Supervised"),
    ("affjax.optim", "optim.adamw"),
    ("affjax.losses", "losses.ccc_loss"),
  ],
)
def test_what_a_section_is_for_is_found(package, name):
  with pytest.raises(ValueError, match=f"{name} also needs"):
    build({"name": name}, package)


# Runs of others.


def without(field):
  def change(config):
    section = config
    *path, leaf = field.split(".")
    for key in path:
      section = section[key]
    del section[leaf]

  return change


def with_value(field, value):
  def change(config):
    section = config
    *path, leaf = field.split(".")
    for key in path:
      section = section[key]
    section[leaf] = value

  return change


def deep(levels):
  tree = {}
  for _ in range(levels):
    tree = {"x": tree}
  return tree


CHANGES = [
  *(
    (without(field), rf"config\.{field}=None")
    for field in ("labels", "losses", "data", "model", "optimizer", "procedure", "augment")
  ),
  (without("image_size"), r"config\.image_size=None: it should be an integer"),
  (without("data.image_size"), r"config\.data\.image_size=None"),
  (without("seed"), r"config\.seed=None"),
  (without("steps"), r"config\.steps=None"),
  (without("model.name"), "needs name="),
  (without("model.encoder"), "also needs .'encoder'"),
  (without("model.encoder.name"), "needs name="),
  *(
    (with_value("image_size", value), r"config\.image_size=")
    for value in (10**9, 10**30, -16, 0, 2.5, "48", None, [48], True, float("nan"), float("inf"))
  ),
  (with_value("data.image_size", 10**9), r"config\.data\.image_size=1000000000: use 1 to 4096"),
  *(
    (with_value("model.encoder.depth", value), "depth")
    for value in (10**9, 10**30, -1, 0, 2.5, "4", [4], float("nan"))
  ),
  *(
    (with_value("model.encoder.width", value), "width")
    for value in (10**12, -96, 0, "96", [96], 96.5)
  ),
  (with_value("model.encoder.stem_depth", 10**9), "stem_depth 1000000000: use 1 to 64"),
  (with_value("model.encoder.num_heads", 0), "num_heads 0: use 1 or more"),
  (with_value("model.encoder.num_heads", -3), "num_heads -3: use 1 or more"),
  (with_value("model.encoder.registers", -1), "registers -1"),
  (with_value("model.encoder.dropout_rate", "x"), "dropout_rate='x': use float"),
  (with_value("model.encoder.scan", 1), "scan=1: use bool"),
  (with_value("model.decoder.depth", 10**9), "depth 1000000000: use 0 to 64"),
  (with_value("model.decoder.readout", -1), "readout -1: use 0 or more"),
  (with_value("model.decoder", 3), "it has no fields"),
  (with_value("model", "vit.ViT"), r"config\.model='vit.ViT': it should be a section"),
  (with_value("model.encoder.name", "os.system"), "has no module 'os'"),
  (with_value("model.name", "weights.files.read"), "takes no"),
  (with_value("optimizer.name", "workdir.record"), "has no module 'workdir'"),
  (with_value("optimizer.learning_rate", "1"), "learning_rate='1': use float"),
  (with_value("optimizer.groups", "x"), "config.json: "),
  (with_value("optimizer.name", "optim.learning_rate_schedule"), "config.json: "),
  (with_value("losses.va.name", "workdir.flatten"), "has no module 'workdir'"),
  (with_value("losses.va.name", "losses.per_dimension"), "takes 1 arguments"),
  (with_value("losses.va", 3), "it has no fields"),
  (with_value("labels.va", 10**9), r"config\.labels\.va=1000000000: it should be names"),
  (with_value("labels.va", ["x"] * 100_000), r"config\.labels\.va has 100000 names: use 1 to"),
  (with_value("labels.va", []), r"config\.labels\.va has 0 names"),
  (with_value("labels.va", [1, 2]), r"config\.labels\.va=\[1, 2\]: it should be names"),
  (with_value("procedure.name", "supervised.optax.adam"), "has no module 'supervised.optax'"),
  (with_value("procedure.ema_decay", "0.9"), "ema_decay='0.9': use float"),
  (with_value("seed", 2**70), r"config\.seed=1180591620717411303424: use a number of at most"),
  (with_value("procedure.new\nline\u2028\x1b", 1), "takes no"),
  (with_value("dtype", "object"), "config.dtype='object'"),
  (with_value("augment", deep(500)), "nested too deeply"),
  (lambda config: config.clear(), "holds no fields|labels"),
]


def resident():
  return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("index", range(len(CHANGES)))
def test_a_run_with_an_absurd_config_is_refused_in_seconds(tmp_path, index):
  change, says = CHANGES[index]
  config = debug_config()
  change(config)
  (tmp_path / "config.json").write_text(json.dumps(config))
  before, start = resident(), time.monotonic()
  with pytest.raises(ValueError, match=says) as error:
    affjax.load(tmp_path)
  assert len(str(error.value).splitlines()) == 1
  assert "config.json" in str(error.value)
  assert time.monotonic() - start < 20
  assert resident() - before < 2**28
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
  "content",
  [
    b"", b"{", b"[]", b"3", b'"text"', b"null", b"\xff\xfe{}", b"\x80\x04}.",
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b"[" * 100_000, b'{"seed": ' + b"9" * 10_000 + b"}",
  ],
)  # fmt: skip
def test_a_config_that_is_none_is_refused(tmp_path, content):
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(ValueError, match="config.json") as error:
    affjax.load(tmp_path)
  assert len(str(error.value).splitlines()) == 1
  assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_run_of_absurd_width_is_described_without_memory(tmp_path):
  config = debug_config(model__encoder__width=3 * 2**30)
  before = resident()
  procedures.from_config(config)
  assert resident() - before < 2**28


# The code.


# What runs what it reads, or runs a shell; in brackets where it is allowed, and why.
BANNED = {
  # Between processes that it starts; and to write what others must not run.
  "pickle": ["tfds_builders/synthetic_faces/workers.py", "scripts/fuzz_targets.py"],
  "cPickle": [], "dill": [], "cloudpickle": [], "joblib": [], "shelve": [], "marshal": [],
  "eval": [], "exec": [], "compile": [], "__import__": [],
  "torch.load": [], "yaml.load": [], "os.system": [], "os.popen": [], "pandas.read_pickle": [],
  "allow_pickle=": [], "shell=": [],
}  # fmt: skip


def dangers(tree):
  """Names of what is banned that a syntax tree uses."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield (node.module or "").partition(".")[0]
      yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
      yield node.func.id
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      yield f"{node.value.id}.{node.attr}"
    elif isinstance(node, ast.keyword) and ast.unparse(node.value) != "False":
      yield f"{node.arg}="


def test_the_walk_sees_what_is_banned():
  code = """
import pickle, dill.source
from joblib import load
from torch import load
import os
os.system("x"); torch.load(f); yaml.load(f); eval("1"); exec("1"); model.eval(); re.compile("x")
np.load(f, allow_pickle=True); np.load(f, allow_pickle=False); run("x", shell=yes)
"""
  found = {name for name in dangers(ast.parse(code)) if name in BANNED}
  expected = {"pickle", "dill", "joblib", "torch.load", "os.system", "yaml.load", "eval", "exec"}
  assert found == expected | {"allow_pickle=", "shell="}


def test_nothing_unpickles_or_runs_what_it_reads():
  seen = 0
  for folder in ("affjax", "tfds_builders", "configs", "scripts"):
    for path in sorted((ROOT / folder).rglob("*.py")):
      seen += 1
      name = path.relative_to(ROOT).as_posix()
      found = {n for n in dangers(ast.parse(path.read_text())) if name not in BANNED.get(n, [name])}
      assert not found, f"{name} uses {sorted(found)}"
  assert seen > 50
