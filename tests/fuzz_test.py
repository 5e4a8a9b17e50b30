"""Readers take or refuse whatever they are given; `scripts/fuzz.py` does the same for longer."""

import functools
import json
import random
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from affjax import annotations, labels, score
from scripts import fuzz, fuzz_mutations, fuzz_targets
from scripts.fuzz_mutations import END, NAME_END

TARGETS = sorted(fuzz_targets.TARGETS)
NUMBERS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module")
def started(tmp_path_factory):
  """Name of a target -> its valid inputs and its check, started once."""

  @functools.cache
  def start(name):
    return fuzz_targets.TARGETS[name](tmp_path_factory.mktemp(name.replace("/", "-")))

  return start


@pytest.fixture(autouse=True)
def _warnings_of_numpy_are_errors():
  with warnings.catch_warnings():
    warnings.simplefilter("error", RuntimeWarning)
    yield


# These have inputs that are to be refused too: sections without all arguments, pickles that act.
@pytest.mark.parametrize("name", sorted({*TARGETS} - {"build", "initialise", "pickle"}))
def test_what_is_valid_is_taken(started, name):
  seeds, check = started(name)
  assert [check(seed) for seed in seeds] == [""] * len(seeds)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_mutated_is_taken_as_it_is_or_refused_in_one_line(started, name):
  seeds, check = started(name)

  # Without a deadline and by the same examples each time: no test fails on a busy machine.
  @settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
  )
  @given(st.sampled_from(seeds), st.lists(NUMBERS, min_size=1, max_size=4))
  def holds(data, changes):
    for change in changes:
      data = fuzz_mutations.mutate(data, random.Random(change))
    check(data)

  holds()


# What fuzzing found and what it must say: target, input, a part of the refusal.

LSD = b"--config=configs/lsd.py"
FOUND = {
  "hours of backtracking over digits": (
    "annotations/va",
    b"valence,arousal\n0," + b"1" * 60_000 + b"x\n",
    "v1.txt:2: arousal '11111",
  ),
  "a line break in the name of a file": (
    "annotations/folder",
    b"v\n1.txt" + NAME_END + b"valence,arousal\n0,0\n",
    r"v\n1.txt: a per-video VA file is named after its video",
  ),
  "bytes that are no text in the name of a file": (
    "annotations/folder",
    b"v\xff.txt" + NAME_END + b"valence,arousal\n0,0\n",
    r"v\udcff.txt: a per-video VA file is named after its video",
  ),
  "a mark of byte order in the name of a file": (
    "annotations/folder",
    b"\xef\xbb\xbfv1.txt" + NAME_END + b"\xffvalence,arousal\n",
    r"\ufeffv1.txt:1: not a text file (byte 0xff)",
  ),
  "another header under a strange name": (
    "annotations/folder",
    END.join([b"a.txt" + NAME_END + b"valence,arousal", b"b\r.txt" + NAME_END + b"AU1"]),
    r"b\r.txt:1: header 'AU1'; expected",
  ),
  "labels without a row": (
    "score/labels",
    b"valence,arousal\n",
    "the labels have a header and no rows",
  ),
  "a JPEG that ends within its header": ("image", b"\xff\xd8\xff", "face.jpg: "),
  "a line break in a number": ("config/lsd", b"batch_size=4\ndata", r"'4\ndata': not int"),
  "a mark of byte order for true": ("config/lsd", b"debug=\xef\xbb\xbf", r"'\ufeff': use true"),
  "bytes that are no text in a name": ("config/vit_mtl", b"data=fer\xa1", r"'fer\udca1': use one"),
  "no images in a batch": ("config/lsd", b"batch_size=0", "batch_size=0: use at least 1"),
  "no steps": ("config/lsd", b"steps=0", "steps=0: use at least 1"),
  "less than no steps": ("config/vit_mtl", b"steps=-5", "steps=-5: not int"),
  "steps that no counter holds": ("config/lsd", b"steps=9999999999", "or over nine digits"),
  "bytes that are no text in a flag": ("flags", b"--topology\xff=a", r"flag 'topology\udcff'"),
  "bytes that are no text in a value": ("flags", b"--mode=\xff", r"--mode=\udcff: value should be"),
  "a control character in an argument": ("flags", LSD + b":data=\x01,x", "config argument 'x'"),
  "a flag of a thousand characters": ("flags", b"--" + b"config." * 200, "has so long a name"),
  "a config of a name that no file has": ("flags", b"--config=" + b"a" * 300, "File name too long"),
  "a config that is no Python": ("flags", b"--config=README.md", "--config: README.md:"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_what_once_broke_a_reader_is_refused(started, case):
  name, data, says = FOUND[case]
  assert says in started(name)[1](data)


def test_a_video_has_no_more_frames_than_five_digits_can_name():
  text = "valence,arousal\n" + "0,0\n" * 100_000
  with pytest.raises(ValueError, match=r"^v\.txt:100001: more than 99,999 frames in one video$"):
    annotations.parse(text, "va", "v.txt", video="v")


def test_a_name_that_is_too_long_for_any_file_is_one_that_is_not_there(tmp_path, capsys):
  name = str(tmp_path / ("a" * 300))
  with pytest.raises(SystemExit, match="a: no such file or folder"):
    score.main(["--task=va", f"--labels={name}", f"--predictions={name}"])


def test_an_image_of_a_class_folder_that_no_list_could_name_is_refused(tmp_path):
  for name in labels.EXPRESSION_LSD:
    (tmp_path / name.upper()).mkdir()
  (tmp_path / "FEAR" / "a\nb.jpg").touch()
  with pytest.raises(ValueError, match=r"FEAR: image 'a\\nb\.jpg'; expected a name like 0\.jpg"):
    annotations.read(tmp_path, "lsd")


# The fuzzer.


def test_a_crash_is_kept_once_with_the_input_that_showed_it(tmp_path):
  def check(data):
    if data == b"warns":
      np.log(np.zeros(1))
    return str(1 // len(data))

  crashes = fuzz.Crashes(tmp_path, "some/target")
  assert fuzz.guarded(check, [b"", b"warns", b"warns", b"", b"sound"], crashes) == "0"
  assert len(crashes.found) == 2
  again = fuzz.Crashes(tmp_path, "some/target")
  assert again.found == crashes.found
  first, second = again.found.values()
  assert "ZeroDivisionError" in first["where"]
  assert "divide by zero encountered in log" in second["text"]
  assert (tmp_path / second["input"]).read_bytes() == b"warns"


def test_a_run_of_the_fuzzer_adds_to_its_log(tmp_path, capsys):
  pytest.importorskip("atheris", reason="needs the extra fuzz")
  log = tmp_path / "log.jsonl"
  options = ["--seconds=1", "--target", "annotations/va", f"--folder={tmp_path}", f"--log={log}"]
  assert fuzz.main(options) == 0
  assert fuzz.main([*options, "--seed=2"]) == 0
  first, second = map(json.loads, log.read_text().splitlines())
  assert min(first["executions"], second["executions"]) > 100
  total = first["executions"] + second["executions"]
  assert f"{total:,}" in capsys.readouterr().out.splitlines()[-1]
