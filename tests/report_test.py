import json

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


def write_log(path, rows):
  path.write_text("".join(json.dumps({"kind": "train", "loss": 1.0, **row}) + "\n" for row in rows))
  return path


def is_of(colour, page):
  return (np.abs(page.astype(int) - colour).max(-1) < 40).nonzero()


def test_learned_weights_are_drawn_against_the_step(tmp_path):
  rows = [{"step": s, "weight/va": 1 + s / 100, "weight/au": 1 - s / 400} for s in (100, 200, 300)]
  log = write_log(tmp_path / "metrics.jsonl", rows)
  report.save_weights(tmp_path / "weights.png", log)
  page = cv2.imread(str(tmp_path / "weights.png"))[..., ::-1]
  (va_y, va_x), (au_y, au_x) = (is_of(colour, page[:, :550]) for colour in report.COLOURS[:2])
  assert va_y[va_x.argmax()] < va_y[va_x.argmin()]  # up is larger
  assert au_y[au_x.argmax()] > au_y[au_x.argmin()]
  assert va_y.max() < au_y.min()


def test_a_task_s_dimensions_are_drawn_in_its_place_and_its_sigmas_below(tmp_path):
  row = {"weight/va": 2.0, "weight/va/valence": 3.0, "weight/va/arousal": 1.5, "weight/au": 1.0}
  log = write_log(tmp_path / "log", [{"step": s, **row} for s in (1, 2)])
  assert set(report._curves(log, "weight")) == {"va/valence", "va/arousal", "au"}
  report.save_weights(tmp_path / "one.png", log)
  log = write_log(tmp_path / "log", [{"step": s, **row, "sigma/au": 0.5} for s in (1, 2)])
  report.save_weights(tmp_path / "two.png", log)
  heights = [cv2.imread(str(tmp_path / name)).shape[0] for name in ("one.png", "two.png")]
  assert heights[1] == 2 * heights[0]


def test_steps_at_which_a_task_had_no_labels_and_evaluations_leave_no_point(tmp_path):
  rows = [
    {"step": 5, "weight/au": 1.5},
    {"step": 10, "weight/au": 0.0},
    {"step": 10, "kind": "validation", "weight/au": 7.0},
    {"step": 15, "weight/au": 2.5},
  ]
  (curve,) = report._curves(write_log(tmp_path / "log", rows), "weight").values()
  np.testing.assert_array_equal(curve, [[5, 15], [1.5, 2.5]])


def test_where_nothing_was_learned_nothing_is_drawn(tmp_path):
  log = write_log(tmp_path / "log", [{"step": 1, "weight/au": 1.0, "weight/va": 0.0}])
  report.save_weights(tmp_path / "weights.png", log)
  assert not (tmp_path / "weights.png").exists()


def test_the_axis_is_logarithmic_where_values_ask_for_it_and_covers_them():
  for low, high, log in ((0.9, 1.3, False), (0.02, 9.0, True), (1e-3, 400.0, True), (2, 2, False)):
    ticks = report._ticks(low, high, log)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 12
    assert len(set(map("{:g}".format, ticks))) == len(ticks)
  step = np.array([1.0, 2.0])
  rising = lambda *values: report.line_chart({"a": (step, np.array(values))}, "t", "x")
  assert (
    rising(1.0, 2.0).shape == rising(1.0, 20.0).shape == rising(1.0, 1.0).shape == (360, 720, 3)
  )


def test_names_beside_the_curves_do_not_overlap():
  step = np.array([1.0, 2.0])
  names = [f"curve {i}" for i in range(6)]
  page = report.line_chart({name: (step, np.array([1.0, 2.0])) for name in names}, "t", "x")
  beside = page[:, 575:589].astype(int)
  rows = [int(np.median(is_of(colour, beside)[0])) for colour in report.COLOURS]
  assert min(np.diff(sorted(rows))) >= 14
