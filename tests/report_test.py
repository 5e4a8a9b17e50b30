import cv2
import numpy as np
import pytest

from affjax import report

NAMES = {
  "va": ("valence", "arousal"),
  "expression": ("neutral", "anger", "fear"),
  "au": ("AU1", "AU4", "AU12"),
}


def labels(va=(0.5, -0.25), expression=(0.1, 0.7, 0.2), au=(1, 0, 1)):
  return {"va": np.array(va), "expression": np.array(expression), "au": np.array(au)}


def mask(va=(1, 1), expression=1, au=(1, 1, 1)):
  return {"va": np.array(va), "expression": np.array(expression), "au": np.array(au)}


def caption(task, given_labels, given_mask):
  return report.caption(given_labels, given_mask, {task: NAMES[task]})[0]


def test_a_caption_has_a_line_for_each_task_in_order():
  lines = report.caption(labels(), mask(), NAMES)
  assert lines == ["V +0.50 A -0.25", "anger 0.7 fear 0.2", "AU 1 12"]


def test_tasks_that_are_not_annotated_show_a_dash():
  lines = report.caption(labels(), mask((0, 0), 0, (0, 0, 0)), NAMES)
  assert lines == ["va -", "expression -", "au -"]


def test_single_labels_that_are_not_annotated_are_left_out():
  assert caption("va", labels(), mask(va=(0, 1))) == "V - A -0.25"
  assert caption("au", labels(au=(1, 1, 1)), mask(au=(1, 0, 1))) == "AU 1 12"


def test_a_face_at_rest_says_so():
  assert caption("au", labels(au=(0, 0, 0)), mask()) == "AU none"


def test_an_expression_that_is_certain_is_shown_alone():
  assert caption("expression", labels(expression=(0, 0, 1)), mask()) == "fear 1.0"


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (4, 1), (5, 2), (9, 3)])
def test_a_sheet_has_as_many_rows_as_its_images_need(count, rows):
  images = np.zeros((count, 20, 20, 3), np.uint8)
  one = report.sheet(images[:1], [["a", "b"]], columns=4)
  page = report.sheet(images, [["a", "b"]] * count, columns=4)
  assert page.shape == (rows * one.shape[0], one.shape[1], 3)
  assert page.dtype == np.uint8


def test_longer_captions_make_a_taller_sheet():
  image = np.zeros((1, 20, 20, 3), np.uint8)
  heights = [report.sheet(image, [["line"] * n]).shape[0] for n in (1, 2, 3)]
  assert heights[0] < heights[1] < heights[2]


def test_images_stand_in_order_with_their_text_below():
  colours = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
  images = np.broadcast_to(colours[:, None, None], (3, 20, 20, 3))
  page = report.sheet(images, [["x"], [""], ["x"]], columns=2)
  height, width = page.shape[0] // 2, page.shape[1] // 2
  for i, colour in enumerate(colours):
    y, x = i // 2 * height, i % 2 * width
    np.testing.assert_array_equal(page[y + 60, x + 60], colour)
  below = page[146:height]
  assert (below[:, :width] < 128).any()  # written
  assert (below[:, width:] == 255).all()  # nothing to write


def test_a_batch_is_written_as_the_network_sees_it(tmp_path):
  path = tmp_path / "batch.png"
  images = np.zeros((3, 16, 16, 3), np.float32)
  images[0] = [1, -1, -1]  # red
  images[1] = [5, 5, 5]  # beyond white
  columns = {t: np.stack([v] * 3) for t, v in labels().items()}
  given = {t: np.stack([v] * 3) for t, v in mask().items()}
  report.save_batch(path, images, columns, given, NAMES)
  page = cv2.imread(str(path))[..., ::-1]
  width = page.shape[1] // 8
  np.testing.assert_array_equal(page[70, 70], [255, 0, 0])
  np.testing.assert_array_equal(page[70, width + 70], [255, 255, 255])
  np.testing.assert_array_equal(page[70, 2 * width + 70], [127, 127, 127])


def test_a_large_batch_is_cut_to_the_limit(tmp_path):
  heights = []
  for limit in (8, 24):
    images = np.zeros((40, 16, 16, 3), np.float32)
    columns, given = {"va": np.zeros((40, 2))}, {"va": np.ones((40, 2))}
    report.save_batch(tmp_path / "b.png", images, columns, given, {"va": NAMES["va"]}, limit=limit)
    heights.append(cv2.imread(str(tmp_path / "b.png")).shape[0])
  assert heights[1] == 3 * heights[0]
