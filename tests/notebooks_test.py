"""The notebooks run, and what is kept of them is fit for everybody's eyes."""

import os

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from scripts import make_notebooks

NOTEBOOKS = sorted(make_notebooks.FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
LIMIT = 240  # seconds of a core: two minutes of two
# What a notebook says if it did what it is for; the rest it asserts itself.
SHOWN = {
  "01_train_and_load": ("va/ccc", "Prediction of 32 images", "CCC on 32 faces"),
  "02_predictions_and_attention": ("p_happiness", "AU12 in ", "48 faces in 48 frames, 1 person"),
  "03_from_synthetic_to_real": ("1 face(s)", "left mouth corner", "photograph "),
  "04_your_own_data": ("person00_0.jpg", "browse.html", "AU12, annotated"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_faces):
  """Where they run, one after another: what one of them trains the next ones use."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("TFDS_DATA_DIR", tiny_faces)
    patch.setenv("XLA_FLAGS", "")  # one device, as a user has
    yield make_notebooks.stage(tmp_path_factory.mktemp("notebooks"))


def seconds():
  """Of cores, that processes which have ended have taken."""
  return os.times().children_user + os.times().children_system


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs_in_two_minutes_of_two_cores_and_shows_what_it_is_for(path, place):
  start = seconds()
  notebook = make_notebooks.execute(path, place)
  assert seconds() - start < LIMIT
  text = "".join(make_notebooks.texts(notebook))
  assert [words for words in SHOWN[path.stem] if words not in text] == []
  nbformat.write(notebook, kept := place / path.name)
  assert make_notebooks.faults(kept) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_what_is_kept_of_a_notebook_is_complete_and_of_nobody(path):
  assert make_notebooks.faults(path) == []
  text = "".join(make_notebooks.texts(nbformat.read(path, as_version=4)))
  assert [words for words in SHOWN[path.stem] if words not in text] == []


STREAM = {"output_type": "stream", "name": "stdout"}
SHOW = {"output_type": "display_data", "metadata": {}}


@pytest.mark.parametrize(
  ("output", "count", "fault"),
  [
    (STREAM | {"text": "run    runs/notebook\nhttps://example.org/home/page 3/4"}, 1, None),
    (STREAM | {"text": "run    /home/somebody/runs"}, 1, "a path"),
    (STREAM | {"text": "[/mnt/x]"}, 1, "a path"),
    (SHOW | {"data": {"text/html": "<td>/Users/x</td>"}}, 1, "a path"),
    (STREAM | {"text": "I1126 18:42:33 started"}, 1, "a time"),
    (SHOW | {"data": {"image/png": "iVBORw0KGgo="}}, 1, "a picture"),
    (SHOW | {"data": {"text/html": "<img src='data:image/png;base64,'>"}}, 1, "a picture"),
    (SHOW | {"data": {"text/plain": "x" * make_notebooks.LARGEST}}, 1, "bytes"),
    ({"output_type": "error", "ename": "E", "evalue": "", "traceback": []}, 1, "an error"),
    (STREAM | {"text": "fine"}, 7, "not executed in their order"),
  ],
)
def test_what_should_not_be_kept_is_seen(tmp_path, output, count, fault):
  cell = nbformat.v4.new_code_cell("1", execution_count=count)
  cell.outputs = [nbformat.from_dict(output)]
  path = tmp_path / f"{make_notebooks.NO_PICTURES[0]}.ipynb"
  nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
  found = make_notebooks.faults(path)
  assert len(found) == (fault is not None)
  assert fault is None or fault in found[0]


def test_a_notebook_that_fails_says_so(tmp_path):
  path = tmp_path / "bad.ipynb"
  nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")]), path)
  with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
    make_notebooks.execute(path, make_notebooks.stage(tmp_path))
