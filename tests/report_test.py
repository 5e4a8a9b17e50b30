"""Pictures of a run: captions, sheets, and a page whose numbers are those of the scores."""

import html.parser
import json
import re

import cv2
import jax
import numpy as np
import pytest
from conftest import debug_config, save_run
from sklearn import metrics as sklearn_metrics

from affjax import checkpoints, evaluate, experiment, inference, report, scored, workdir
from affjax.data import page, prepare, records
from configs import temporal

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
  return page.caption(given_labels, given_mask, {task: NAMES[task]})[0]


def test_a_caption_has_a_line_for_each_task_in_order():
  lines = page.caption(labels(), mask(), NAMES)
  assert lines == ["V +0.50 A -0.25", "anger 0.7 fear 0.2", "AU 1 12"]


def test_tasks_that_are_not_annotated_show_a_dash():
  lines = page.caption(labels(), mask((0, 0), 0, (0, 0, 0)), NAMES)
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


# What was learned.


def write_log(path, rows):
  path.write_text("".join(json.dumps({"kind": "train", "loss": 1.0, **row}) + "\n" for row in rows))
  return path


def curves(log, kind="weight"):
  return report._curves(workdir.entries(log), kind)


def test_learned_weights_are_drawn_against_the_step(tmp_path):
  rows = [{"step": s, "weight/va": 1 + s / 100, "weight/au": 1 - s / 400} for s in (100, 200, 300)]
  log = write_log(tmp_path / "metrics.jsonl", rows)
  (figure,) = report._weights(workdir.entries(log))
  lines = {line.get_label(): line.get_xydata() for line in figure.axes[0].lines[:2]}
  np.testing.assert_array_equal(lines["va"], [[100, 2], [200, 3], [300, 4]])
  np.testing.assert_array_equal(lines["au"], [[100, 0.75], [200, 0.5], [300, 0.25]])
  report.save_weights(tmp_path / "weights.png", log)
  assert cv2.imread(str(tmp_path / "weights.png")).std() > 10


def test_a_task_s_dimensions_are_drawn_in_its_place_and_its_sigmas_below(tmp_path):
  row = {"weight/va": 2.0, "weight/va/valence": 3.0, "weight/va/arousal": 1.5, "weight/au": 1.0}
  log = write_log(tmp_path / "log", [{"step": s, **row} for s in (1, 2)])
  assert set(curves(log)) == {"va/valence", "va/arousal", "au"}
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
    {"step": 12, "weight/au": float("nan")},
    {"step": 15, "weight/au": 2.5},
  ]
  (curve,) = curves(write_log(tmp_path / "log", rows)).values()
  np.testing.assert_array_equal(curve, [[5, 15], [1.5, 2.5]])


def test_where_nothing_was_learned_nothing_is_drawn(tmp_path):
  log = write_log(tmp_path / "log", [{"step": 1, "weight/au": 1.0, "weight/va": 0.0}])
  report.save_weights(tmp_path / "weights.png", log)
  assert not (tmp_path / "weights.png").exists()


# The page.


class Page(html.parser.HTMLParser):
  """Reads a page and refuses one that is not well-formed, or needs anything from elsewhere."""

  ALONE = ("meta", "img", "br")

  def __init__(self, text):
    super().__init__()
    self.open, self.images, self.headings, self.text, self.ids = [], [], [], "", []
    self.feed(text)
    self.close()
    assert not self.open

  def handle_starttag(self, tag, attributes):
    assert tag not in ("script", "link", "iframe", "object", "base", "form")
    named = dict(attributes)
    assert len(named) == len(attributes)
    assert not [name for name in named if name.startswith("on")]
    if tag not in self.ALONE:
      self.open.append(tag)
    if tag == "img":
      assert named["src"].startswith("data:image/")
      assert len(named["alt"]) > 10
      self.images.append(named)
    if tag == "a":
      assert named["href"].startswith("#")
    self.ids += [named["id"]] if "id" in named else []
    if tag in ("h1", "h2", "h3"):
      self.headings.append("")

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data
    if {"h1", "h2", "h3"} & set(self.open):
      self.headings[-1] += data


def read_page(path):
  text = path.read_text()
  assert text.startswith("<!DOCTYPE html>")
  assert not re.findall(r"(?:https?:)?//\w+\.|url\(|@import", re.sub(r"base64,[^\"]*", "", text))
  assert len(text) < 5e6
  return Page(text)


def small(config):
  """The config with a model that is compiled in seconds."""
  config["image_size"] = config["data"]["image_size"] = 32
  config["model"]["encoder"] |= dict(variant="mu/8", width=16, depth=1, num_heads=2, stem="patch")
  config["losses"]["expression"]["logit_adjustment"] = None
  config["losses"]["au"]["positive_weight"] = None
  return config


@pytest.fixture(scope="module")
def drawn(tiny_faces, tmp_path_factory):
  """A run with task tokens, as it was scored: its folder, data, result, rows, and its page."""
  where = tmp_path_factory.mktemp("drawn") / 'run <b>&"'
  config = small(debug_config())
  save_run(where, config)
  steps = [{"step": s, "loss/va": 2 / s, "learning_rate": 1e-3, "weight/va": s} for s in (5, 10)]
  write_log(where / "metrics.jsonl", [*steps, {"step": 10, "kind": "validation", "p_mtl": 0.75}])
  start = {"command": ["/bin/python", "-m", "<i>"], "git": "0123abc", "versions": {"jax": "9.9"}}
  (where / "starts.jsonl").write_text(json.dumps(start) + "\n")
  data, rows = experiment.Data(config, tiny_faces), {}
  procedure = inference.open_procedure(config, where)
  mesh, _ = experiment.open_mesh(config)
  result = evaluate.score(config, where, data, procedure, mesh, output=None, rows=rows)
  path = report.write(where, config, data, result, rows)
  return where, data, result, rows, read_page(path)


def split_of(drawn, name="test"):
  _, data, result, rows, _ = drawn
  return scored.Scored.of(name, data, result, rows[name])


def test_the_page_is_whole_and_has_all_its_parts(drawn):
  *_, found = drawn
  parts = ["Scores", "Run", "Learning", "validation", "validation/no_view", "test", "Attention"]
  assert set(parts) <= set(found.headings)
  assert found.headings[0] == 'run <b>&"'
  assert found.headings.count("Worst errors") == found.headings.count("Groups") == 2
  assert len(found.ids) == len(set(found.ids))
  for word in ("-m <i>", "0123abc", "jax 9.9", "mu/8", "No two groups have 50 rows"):
    assert word in found.text
  told = " ".join(image["alt"] for image in found.images)
  words = [
    "loss: va 0.2 at step 10, in all 1",
    "scores, validation: ",
    "p_mtl 0.75 at step 10",
    "learning rate: ",
  ]
  words += ["weight of each loss"]
  words += [f"{score}: mean" for score in ("va/ccc", "expression/f1", "au/f1")]
  words += ["Confusion", "Densities", "Calibration of expression", "Calibration of the units"]
  for word in [*words, "Attention of the task tokens"]:
    assert word in told, word


def test_every_main_score_stands_beside_its_yardsticks(drawn):
  *_, result, _, found = drawn
  # The tables come first, a split after the other.
  for split, scores in result["scores"].items():
    for name in ("va/ccc", "p_mtl"):
      line = f"{name}{scores[name]:.3f}{result['floors'][split][name]:.3f}"
      assert line in found.text
  assert "ceiling" in found.text


def test_what_is_kept_of_the_rows_gives_the_scores_again(drawn):
  _, data, result, rows, _ = drawn
  for name, scores in result["scores"].items():
    split, (labels, mask) = split_of(drawn, name), data.seen(name)
    np.testing.assert_array_equal(rows[name]["index"], np.arange(32))
    known = mask["expression"] > 0
    truth = labels["expression"].argmax(1)[known]
    said = rows[name]["expression"].argmax(1)[known]
    f1 = sklearn_metrics.f1_score(truth, said, average="macro", labels=range(8), zero_division=0)
    assert f1 == pytest.approx(scores["expression/f1"], abs=1e-6)
    expected = sklearn_metrics.confusion_matrix(truth, said, labels=range(8))
    np.testing.assert_array_equal(scored.confusion(split, split.rules["expression"]), expected)
    on = rows[name]["au"] >= 0
    f1 = sklearn_metrics.f1_score(labels["au"], on, average="macro", zero_division=0)
    assert f1 == pytest.approx(scores["au/f1"], abs=1e-6)
    ccc = scored.group_scores(split, np.ones(32, bool))["CCC, mean of valence and arousal"]
    assert ccc == pytest.approx(scores["va/ccc"], abs=1e-5)


def test_of_a_large_split_evenly_spaced_rows_are_kept(drawn, monkeypatch):
  where, data, result, rows, _ = drawn
  monkeypatch.setattr(evaluate, "ROWS", 10)
  config = workdir.read_config(where)
  procedure = inference.open_procedure(config, where)
  mesh, _ = experiment.open_mesh(config)
  some = {}
  again = evaluate.score(
    config, where, data, procedure, mesh, splits=("test",), output=None, rows=some
  )
  assert again["scores"]["test"] == result["scores"]["test"]
  np.testing.assert_array_equal(some["test"]["index"], range(0, 32, 4))
  for task in ("va", "expression", "au"):
    np.testing.assert_allclose(some["test"][task], rows["test"][task][::4], atol=1e-6)
  text = report._split(scored.Scored.of("test", data, again, some["test"]), data, ["test"])
  assert "8 of 32 rows, evenly spaced" in text


def test_scores_of_groups_are_those_of_their_rows(drawn):
  split = split_of(drawn)
  rows = np.arange(32) % 3 == 0
  found = scored.group_scores(split, rows)
  label, given = split.labels["va"][rows], split.outputs["va"][rows].astype(float)
  ccc = [
    2 * ((x - x.mean()) * (y - y.mean())).mean() / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
    for x, y in zip(label.T, given.T, strict=True)
  ]
  assert found["CCC, mean of valence and arousal"] == pytest.approx(np.mean(ccc))
  truth, on = split.labels["au"][rows], split.outputs["au"][rows] >= 0
  f1 = sklearn_metrics.f1_score(truth.ravel(), on.ravel())
  assert found["F1 of all units together"] == pytest.approx(f1)
  right = split.labels["expression"].argmax(1) == split.outputs["expression"].argmax(1)
  assert found["accuracy of expressions"] == pytest.approx(right[rows].mean())


def test_faces_are_grouped_by_what_the_renderer_knows(drawn, monkeypatch):
  _, data, *_ = drawn
  split = split_of(drawn)
  source = data.build.as_data_source("test")
  found = report._attributes(split, data)
  for row in (0, 13, 31):
    of = {by: groups[number[row]] for by, (groups, number) in found.items()}
    record = source[row]
    assert of["age"].startswith(("18", "36", "56")[record["age_group"]])
    assert of["sex"] == ("female", "male")[record["sex"]]
    yaw = abs(record["head"][0])
    assert of["head turned"].startswith("below" if yaw < 15 else "15" if yaw < 30 else "over")
    assert of["before the face"] == (record["occluder"].decode() or "nothing")
  monkeypatch.setattr(report, "LEAST", 4)
  text = Page(report._groups(split, data))
  assert len(text.images) == 3
  women = (found["sex"][1] == 0).sum()
  drawn_groups = re.findall(r"female ([\d.]+)", text.images[1]["alt"])
  score = scored.group_scores(split, found["sex"][1] == 0)["accuracy of expressions"]
  assert women >= 4
  assert drawn_groups[0] == f"{score:.2f}"


def test_the_worst_errors_are_the_largest_and_show_their_own_images(drawn):
  _, data, *_ = drawn
  split = split_of(drawn)
  found = scored.worst(split)
  rows, said = found["va"]
  off = np.linalg.norm(split.labels["va"] - split.outputs["va"], axis=1)
  np.testing.assert_array_equal(rows, np.argsort(-off)[: scored.WORST])
  assert f"true V {split.labels['va'][rows[0], 0]:+.1f}" in said[0]
  rows, said = found["expression"]
  truth = split.labels["expression"].argmax(1)
  chosen = split.outputs["expression"].argmax(1)
  assert (truth[rows] != chosen[rows]).all()
  surely = split.probability.max(1)
  assert (np.diff(surely[rows]) <= 0).all()
  assert surely[rows].min() >= np.sort(surely[truth != chosen])[-scored.WORST]
  names = data.labels["expression"]
  assert said[0].startswith(f"true {names[truth[rows[0]]]}\nsaid {names[chosen[rows[0]]]}")
  rows, said = found["au"]
  both = zip(
    split.labels["au"][rows[0]], split.outputs["au"][rows[0]], data.labels["au"], strict=True
  )
  missed = [name.removeprefix("AU") for true, logit, name in both if true and logit < 0]
  assert said[0].startswith(f"missed {' '.join(missed) or '-'}\n")
  (image,) = report._images(split, data, rows[:1])
  shown = records.decode(image)
  np.testing.assert_array_equal(shown, data.build.as_data_source("test")[int(rows[0])]["image"])


def test_a_failure_to_draw_is_a_warning(drawn, tmp_path, capsys):
  where, data, result, rows, _ = drawn
  (tmp_path / "report.html" / "in the way").mkdir(parents=True)
  (tmp_path / "metrics.jsonl").write_text("")
  config = workdir.read_config(where)
  report.attempt(tmp_path, config, data, result, rows)
  said = capsys.readouterr().err
  assert said.startswith("warning: no report could be drawn (ValueError: ")
  assert len(said.splitlines()) == 1
  assert f"python -m affjax.report --workdir={tmp_path}" in said
  assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["metrics.jsonl"]
  report.attempt(tmp_path, config, data, result, {})  # what is missing is no reason either
  assert "KeyError" in capsys.readouterr().err


def test_rows_for_which_a_model_gives_no_finite_numbers_are_left_out_and_counted(drawn):
  _, data, result, rows, _ = drawn
  broken = {name: values.copy() for name, values in rows["test"].items()}
  broken["va"][3] = np.nan
  broken["au"][5, 2] = np.inf
  split = scored.Scored.of("test", data, result, broken)
  np.testing.assert_array_equal(split.index, np.delete(np.arange(32), [3, 5]))
  np.testing.assert_array_equal(split.labels["va"], data.seen("test")[0]["va"][split.index])
  assert "not finite for 2 rows" in report._split(split, data, ["test"])
  broken["au"][:] = np.nan  # none is left
  scores = {**result["scores"], "test": dict.fromkeys(result["scores"]["test"], np.nan)}
  split = scored.Scored.of("test", data, result | {"scores": scores}, broken)
  found = Page(report._split(split, data, ["test"]))
  assert "not finite for 32 rows" in found.text
  assert not found.images


def test_a_run_without_tokens_has_no_attention_and_says_so(drawn, tmp_path):
  _, data, result, *_ = drawn
  config = small(debug_config("debug,plain=true"))
  where = save_run(tmp_path / "run", config)
  text = report._attention(where, config, data, result | {"step": 3})
  assert "cannot be drawn" in text
  assert "<img" not in text


@pytest.mark.slow
def test_photographs_are_not_shown_and_expressions_stand_by_each_rule(tiny_ferplus, tmp_path):
  config = small(debug_config("debug,data=ferplus"))
  config["data"] |= {"train": "train", "select": "validation", "report": ()}
  where = save_run(tmp_path / "run", config)
  data_dir = str(tiny_ferplus.data_dir).partition("/ferplus")[0]
  report.main([f"--workdir={where}", f"--data_dir={data_dir}", "--which=latest"])
  found = read_page(where / "report.html")
  told = " ".join(image["alt"] for image in found.images)
  for rule in records.metadata(tiny_ferplus)["scoring"]["expression"]["rules"]:
    assert f"expression/{rule}/f1: mean" in told
    assert f"Confusion of expression/{rule}" in told
  assert "not drawn: valence and arousal, action units" in found.text
  assert "Images are shown of synthetic_faces alone" in found.text
  assert "does not say who" in found.text
  assert "There is no log of the run" in found.text
  assert not [i for i in found.images if not i["src"].startswith("data:image/svg+xml")]
  with pytest.raises(SystemExit, match="^error: .*has no split 'dev2'"):
    report.main([f"--workdir={where}", f"--data_dir={data_dir}", "--splits=dev2"])


@pytest.mark.slow
def test_a_run_of_clips_is_drawn_frame_by_frame(tmp_path):
  prepare.prepare(records.builder("synthetic_faces", "tiny_clips", str(tmp_path / "data")))
  options = "debug,data=synthetic_faces/tiny_clips,length=5"
  config = small(json.loads(temporal.get_config(options).to_json_best_effort()))
  config["evaluate"]["probe"] = False
  where = save_run(tmp_path / "run", config)
  first = checkpoints.Checkpoints(where / "checkpoints")
  first.save(4, jax.jit(inference.open_procedure(config, where).init)(), {})
  first.close()
  report.main(
    [f"--workdir={where}", f"--data_dir={tmp_path / 'data'}", "--splits=test", "--which=4"]
  )
  found = read_page(where / "report.html")
  assert {"Scores", "test", "Attention"} <= set(found.headings)
  confusion = next(i["alt"] for i in found.images if i["alt"].startswith("Confusion"))
  assert "of 24 rows" in confusion


def test_a_folder_without_a_run_is_an_error_of_one_line(tmp_path):
  with pytest.raises(SystemExit, match="^error: .*holds no run"):
    report.main([f"--workdir={tmp_path}"])
