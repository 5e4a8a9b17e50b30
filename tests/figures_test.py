"""Pictures show the numbers that they are given."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from affjax import figures

NAMES = ["neutral", "anger", "fear"]
SVG = "{http://www.w3.org/2000/svg}"


def texts(figure):
  return [text.get_text() for axes in figure.axes for text in axes.texts]


def line_of(axes, name):
  return next(line for line in axes.lines if line.get_label() == name)


def test_bars_are_as_long_as_the_scores_and_marks_are_where_the_yardsticks_are():
  columns = {
    "score": {"AU1": 0.25, "AU4": 0.75, "AU12": 0.5},
    "floor": {"AU1": 0.1, "AU12": 0.3},
    "ceiling": {"AU4": 0.9},
    "probe": {},
  }
  figure = figures.bars(columns, "au/f1")
  (axes,) = figure.axes
  assert [bar.get_width() for bar in axes.patches] == [0.25, 0.75, 0.5]
  assert [label.get_text() for label in axes.get_yticklabels()] == ["AU1", "AU4", "AU12"]
  np.testing.assert_array_equal(line_of(axes, "floor").get_xydata(), [[0.1, 0], [0.3, 2]])
  np.testing.assert_array_equal(line_of(axes, "ceiling").get_xydata(), [[0.9, 1]])
  assert texts(figure) == ["0.25", "0.75", "0.50"]
  (legend,) = figure.legends
  assert [text.get_text() for text in legend.get_texts()] == ["score", "floor", "ceiling"]


def test_bars_of_scores_below_zero_begin_there():
  (axes,) = figures.bars({"score": {"valence": -0.4, "arousal": 0.2}}, "va/ccc").axes
  assert axes.get_xlim() == (-0.4, 1)


def test_a_confusion_shows_the_share_of_each_row_and_the_count():
  counts = np.array([[30, 10, 0], [5, 15, 20], [0, 0, 0]])
  figure = figures.confusion(counts, NAMES, "expression")
  (axes,) = figure.axes
  shown = axes.images[0].get_array()
  np.testing.assert_allclose(shown, [[0.75, 0.25, 0], [0.125, 0.375, 0.5], [0, 0, 0]])
  assert texts(figure) == ["75%\n30", "25%\n10", "12%\n5", "38%\n15", "50%\n20"]
  assert [label.get_text() for label in axes.get_yticklabels()] == NAMES


def test_text_in_a_confusion_stands_out_from_its_cell():
  from matplotlib import colormaps
  from matplotlib.colors import to_rgb

  def light(colour):
    linear = ((np.array(colour) + 0.055) / 1.055) ** 2.4
    return linear @ [0.2126, 0.7152, 0.0722]

  counts = np.array([[share, 100 - share] for share in range(1, 100)])
  counts = np.pad(counts, ((0, 0), (0, 97)))
  (axes,) = figures.confusion(counts, [str(i) for i in range(99)], "t").axes
  for text in axes.texts:
    column, row = text.get_position()
    cell = light(colormaps["cividis"](counts[row, column] / 100)[:3])
    word = light(to_rgb(text.get_color()))
    assert (max(cell, word) + 0.05) / (min(cell, word) + 0.05) > 4


def test_a_density_counts_every_row_once_where_it_is():
  rng = np.random.default_rng(0)
  va = rng.normal(0, 0.6, (500, 2))  # some are beyond the range
  assert figures.density(va).sum() == 500
  one = figures.density(np.array([[0.99, -0.99]]))
  assert one[0, -1] == 1  # pleasant and calm: to the right, below
  inside = np.clip(va, -0.999, 0.999)
  cell = ((inside + 1) / 2 * figures.CELLS).astype(int)
  expected = np.zeros((figures.CELLS, figures.CELLS))
  for valence, arousal in cell:
    expected[arousal, valence] += 1
  np.testing.assert_array_equal(figures.density(inside), expected)


def test_both_densities_share_a_scale_and_leave_empty_cells_empty():
  rng = np.random.default_rng(0)
  truth, given = rng.uniform(-1, 1, (300, 2)), rng.uniform(-0.2, 0.2, (300, 2))
  figure = figures.densities(truth, given, (0.5, 0.25))
  left, right, _ = figure.axes
  for axes, va in ((left, truth), (right, given)):
    shown = axes.images[0].get_array()
    np.testing.assert_array_equal(shown.filled(0), figures.density(va))
    assert shown.mask.sum() == (figures.density(va) == 0).sum()
  assert left.images[0].get_clim() == right.images[0].get_clim()
  assert "0.500" in figure.get_suptitle()


def test_the_calibration_error_is_the_mean_distance_over_the_events():
  rng = np.random.default_rng(1)
  probability = np.append(rng.random(997), [0, 1, 1])
  outcome = rng.random(1000) < probability**2
  counts, mean, frequency, error = figures.calibration(probability, outcome)
  expected, total = 0.0, 0
  for low in np.arange(10) / 10:
    last = low > 0.85
    of = (probability >= low) & ((probability < low + 0.1) | last)
    total += of.sum()
    expected += of.mean() * abs(probability[of].mean() - outcome[of].mean())
  assert total == counts.sum() == 1000
  assert error == pytest.approx(expected)
  assert ((mean >= np.arange(10) / 10) & (mean <= np.arange(1, 11) / 10)).all()
  assert frequency[2] == pytest.approx(outcome[(probability >= 0.2) & (probability < 0.3)].mean())


def test_what_comes_true_as_often_as_it_is_said_is_calibrated():
  probability = np.repeat([0.25, 0.75], 400)
  outcome = np.tile([1, 0, 0, 0], 100).tolist() + np.tile([1, 1, 1, 0], 100).tolist()
  assert figures.calibration(probability, np.array(outcome))[-1] == pytest.approx(0)
  assert figures.calibration(np.ones(5), np.zeros(5))[-1] == 1
  assert figures.calibration(np.zeros(0), np.zeros(0))[-1] == 0


def test_a_reliability_diagram_leaves_empty_bins_out():
  probability = np.array([0.15, 0.15, 0.95, 0.95])
  figure = figures.reliability(probability, np.array([0, 1, 1, 1]), "expression", "it")
  above, below = figure.axes
  np.testing.assert_allclose(line_of(above, "found").get_xydata(), [[0.15, 0.5], [0.95, 1]])
  assert [bar.get_height() for bar in below.patches] == [0, 2, 0, 0, 0, 0, 0, 0, 0, 2]
  assert texts(figure) == ["2", "2"]
  assert "ECE 0.200" in above.get_title(loc="left")


def rising(*ends):
  steps = np.arange(1.0, 21)
  return {f"curve {i}": (steps, np.linspace(1, end, 20)) for i, end in enumerate(ends)}


def test_curves_are_the_values_and_end_in_their_names_and_last_values():
  found = rising(2, 3)
  figure = figures.curves(found, "loss")
  (axes,) = figure.axes
  for name, (x, y) in found.items():
    np.testing.assert_array_equal(line_of(axes, name).get_xydata(), np.stack([x, y], 1))
  assert sorted(texts(figure)) == ["curve 0 2", "curve 1 3"]


def test_the_axis_is_logarithmic_where_values_ask_for_it():
  scale = lambda found, **options: figures.curves(found, "t", **options).axes[0].get_yscale()
  assert scale(rising(2)) == "linear"
  assert scale(rising(20)) == "log"
  assert scale(rising(-20)) == "linear"
  assert scale(rising(20), log=False) == "linear"
  assert scale({"one": (np.array([5.0]), np.array([0.0]))}) == "linear"


def test_names_beside_curves_do_not_overlap_and_curves_differ_by_more_than_colour():
  found = rising(*[2.0] * 9)
  figure = figures.curves(found, "t")
  (axes,) = figure.axes
  figure.draw_without_rendering()
  boxes = [text.get_window_extent() for text in axes.texts]
  for i, box in enumerate(boxes):
    assert not any(box.overlaps(other) for other in boxes[i + 1 :])
  lines = [line_of(axes, name) for name in found]
  looks = [(line.get_color(), line.get_marker()) for line in lines]
  assert len(set(looks)) == 9
  assert len({marker for _, marker in looks[:6]}) == 6


def test_groups_are_dots_beside_the_score_of_all():
  found = {"age": {"young": (0.5, 60), "old": (0.75, 1200)}, "sex": {"female": (0.6, 900)}}
  figure = figures.groups(found, 0.65, "CCC")
  (axes,) = figure.axes
  dots = next(line for line in axes.lines if line.get_marker() == "o")
  np.testing.assert_array_equal(dots.get_xdata(), [0.5, 0.75, 0.6])
  labels = [label.get_text() for label in axes.get_yticklabels()]
  assert labels == ["young (60)", "old (1,200)", "female (900)"]
  assert {"age", "sex", "0.50", "0.75", "0.60"} == set(texts(figure))
  assert axes.lines[0].get_xdata()[0] == 0.65
  low, high = axes.get_xlim()
  assert low < 0.5 < 0.75 < high


def test_a_spread_names_its_quartiles():
  values = np.arange(101) / 100
  (axes,) = figures.spread(values, "101 people", "share").axes
  assert sum(bar.get_height() for bar in axes.patches) == 101
  assert [line.get_xdata()[0] for line in axes.lines] == [0.25, 0.5, 0.75]
  assert "median 0.50" in axes.get_title(loc="left")


def test_attention_is_drawn_as_a_multiple_of_what_is_even():
  looks = np.full((4, 4), 1 / 32)
  looks[1, 2] = 17 / 32
  maps = {name: looks for name in ("AU1", "AU4", "AU12", "va")}
  figure = figures.attention(np.zeros((64, 64)), maps, "t")
  panels = [axes for axes in figure.axes if len(axes.images) == 2]
  assert len(panels) == 4
  heat = panels[0].images[1].get_array()
  assert heat.shape == (64, 64)
  row, column = np.unravel_index(heat.argmax(), heat.shape)
  assert (row // 16, column // 16) == (1, 2)
  assert panels[0].get_title() == "AU1, to 8.5x"  # 17 / 32 * 16


def test_a_video_s_strips_and_lines_are_the_predictions():
  time = np.arange(10, 40)
  va = {"valence": np.linspace(-1, 1, 30), "arousal": np.full(30, 0.5)}
  va["arousal"][3:6] = np.nan  # no face
  expression = {name: np.random.default_rng(i).random(30) for i, name in enumerate(NAMES)}
  truth = {"valence": np.zeros(30)}
  figure = figures.over_time(time, va, expression, truth)
  above, below, _ = figure.axes
  np.testing.assert_array_equal(line_of(above, "arousal").get_ydata(), va["arousal"])
  np.testing.assert_array_equal(line_of(above, "valence, annotated").get_ydata(), 0)
  np.testing.assert_array_equal(below.images[0].get_array(), np.stack([*expression.values()]))
  assert below.images[0].get_extent()[:2] == [9.5, 39.5]
  figures.svg(figure)
  assert len(figures.over_time(time, va, {}).axes) == 1
  assert len(figures.over_time(time, {}, expression).axes) == 2


def test_names_are_text_whatever_they_hold():
  evil = '<b>&"$x^{$'
  figure = figures.curves({evil: (np.array([1.0, 2]), np.array([1.0, 2]))}, f"$\\frac{evil}")
  found = ElementTree.fromstring(figures.svg(figure))
  words = ["".join(node.itertext()) for node in found.iter(f"{SVG}text")]
  assert f"{evil} 2" in words
  assert not [node for node in found.iter() if node.tag.endswith("b")]
  counts = np.ones((2, 2), int)
  long = "x" * 60
  found = ElementTree.fromstring(figures.svg(figures.confusion(counts, [evil, long], evil)))
  words = ["".join(node.itertext()) for node in found.iter(f"{SVG}text")]
  assert words.count(evil) == 2
  assert long not in words


def test_letters_that_the_font_lacks_are_left_to_the_browser(recwarn):
  figure = figures.bars({"score": {"幸福": 0.5}}, "f1")
  assert "幸福" in figures.svg(figure).decode()
  assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_the_same_figure_is_the_same_file_and_no_style_of_the_user_s_changes_it():
  import matplotlib

  draw = lambda: figures.svg(figures.confusion(np.eye(3, dtype=int), NAMES, "t"))
  first = draw()
  with matplotlib.rc_context({"font.size": 30, "image.cmap": "jet", "axes.grid": True}):
    before = dict(matplotlib.rcParams)
    assert draw() == first
    assert dict(matplotlib.rcParams) == before


def test_a_png_has_pixels_for_every_point():
  import cv2

  figure = figures.spread(np.arange(10.0), "t", "x")
  pixels = cv2.imdecode(np.frombuffer(figures.png(figure), np.uint8), cv2.IMREAD_COLOR)
  assert pixels.shape[1] == round(figures.WIDTH * 150)


def test_matplotlib_is_loaded_when_something_is_drawn():
  code = "import affjax.figures, sys; sys.exit('matplotlib' in sys.modules)"
  assert (
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent).returncode == 0
  )
