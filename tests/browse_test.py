"""A page of samples: those that were asked for, with their own labels, and whole counts."""

import base64
import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from report_test import read_page

from affjax.data import browse, page, prepare, records


@pytest.fixture(scope="module")
def tiny(tiny_faces):
  return records.builder("synthetic_faces", "tiny", tiny_faces)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  """A set of a user's own with names that are meant to harm, labels in part, and sizes."""
  source = tmp_path_factory.mktemp("own") / "source"
  source.mkdir()
  rows = ["path,person,split,valence,arousal,expression,AU1"]
  for i in range(12):
    name = f'a&b"{i}.png'
    image = np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), np.uint8)
    (source / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
    person = '<img src=x onerror="alert(1)">' if i % 2 else "<b>"
    labels = ["0.5,-0.5,anger,1", ",,fear,", "-0.25,0.75,,0", ",,,"][i % 4]
    quoted = [f'"{text}"' for text in (name.replace('"', '""'), person.replace('"', '""'))]
    rows.append(f"{','.join(quoted)},{'train' if i < 8 else 'validation'},{labels}")
  (source / "labels.csv").write_text("\n".join(rows))
  build = records.builder("image_folder", "own", str(source.parent / "data"))
  prepare.prepare(build, str(source))
  return build


def shown(found):
  """The bytes of the images of a page, and what is said of them."""
  faces = [i for i in found.images if "svg" not in i["src"]]
  return [(base64.b64decode(i["src"].partition(",")[2]), i["alt"]) for i in faces]


def test_samples_are_images_of_the_records_with_their_own_labels(tiny, tmp_path):
  path = browse.browse(tiny, tmp_path / "page.html", count=20, seed=3)
  found = read_page(path)
  table, split = records.label_table(tiny, "train"), records.shards(tiny, "train")
  names = records.metadata(tiny)["labels"]
  rows = {key.decode(): row for row, key in enumerate(table["key"].tolist())}
  samples = shown(found)
  assert len({alt for _, alt in samples}) == 20
  for image, alt in samples:
    key, _, said = alt.partition(": ")
    row = rows[key]
    assert image == records.image_of(split.record(row))
    valence, expression, units = said.split("; ")
    assert valence == "V {:+.2f} A {:+.2f}".format(*table["labels/va"][row])
    assert expression == f"{names['expression'][table['labels/expression'][row].argmax()]} 1.0"
    on = [n[2:] for n, v in zip(names["au"], table["labels/au"][row], strict=True) if v]
    assert units == "AU " + (" ".join(on) or "none")
  draw = lambda name, seed: browse.browse(tiny, tmp_path / name, count=20, seed=seed).read_bytes()
  assert draw("again.html", 3) == path.read_bytes()
  assert draw("other.html", 4) != path.read_bytes()


def test_counts_are_those_of_the_summary(tiny, tmp_path):
  found = read_page(browse.browse(tiny, tmp_path / "page.html", count=1))
  splits = records.summary(tiny)["splits"]
  assert [h for h in found.headings if h.startswith("Labels of")] == [
    "Labels of train", "Labels of validation", "Labels of test",
  ]  # fmt: skip
  for name, counts in splits.items():
    (part,) = re.findall(rf"Labels of {name}valence.*?(?=Labels of|Samples)", found.text)
    for expression, count in counts["expression"]["votes"].items():
      share = count / counts["expression"]["labelled"]
      assert f"{expression}{count:.0f}{share:.1%}" in part
    for unit, on in counts["au"]["positive"].items():
      assert f"{unit}{on:.0f}{on / counts['images']:.1%} of {counts['images']}" in part
    assert f"{name}{counts['images']}{counts['images'] // 2}0000" in found.text  # in the table
  assert "All images have 112 x 112 pixels" in found.text


def brute_force(table, names, **wanted):
  """Rows, found one by one."""
  rows = []
  for row in range(len(table["key"])):
    fits = True
    for kind, name in wanted.items():
      mask = lambda task, row=row: table[f"mask/{task}"][row].ravel()
      if kind == "expression":
        fits &= mask(kind)[0] > 0 and names[kind][table["labels/expression"][row].argmax()] == name
      elif kind == "au":
        at = names[kind].index(name)
        fits &= mask(kind)[at] > 0 and table["labels/au"][row][at] > 0
      elif kind in ("labelled", "unlabelled"):
        fits &= mask(name).any() == (kind == "labelled")
      elif kind == "key":
        fits &= name in table[kind][row].decode()
      else:
        fits &= table[kind][row].decode() == name
    rows += [row] * bool(fits)
  return rows


@pytest.mark.parametrize(
  "wanted",
  [
    {},
    {"expression": "anger"},
    {"expression": "fear"},
    {"au": "AU1"},
    {"labelled": "va"},
    {"unlabelled": "expression"},
    {"unlabelled": "va", "expression": "fear"},
    {"person": "<b>", "labelled": "au"},
    {"key": "0"},
  ],
)
def test_a_filter_finds_what_a_search_of_the_table_finds(photographs, wanted):
  names, table = records.metadata(photographs)["labels"], records.label_table(photographs, "train")
  terms = [f"{kind}={name}" for kind, name in wanted.items()]
  found = browse.matching(table, names, terms)
  assert found.tolist() == brute_force(table, names, **wanted)
  assert len(found) or "key" in wanted


def test_sorted_samples_come_in_the_order_of_the_label(tiny, tmp_path):
  table = records.label_table(tiny, "test")
  options = dict(split="test", count=7)
  for by, sign in (("arousal", 1), ("-arousal", -1)):
    found = read_page(browse.browse(tiny, tmp_path / "page.html", sort=by, **options))
    values = [float(re.search(r"A ([+-][\d.]+)", alt)[1]) for _, alt in shown(found)]
    expected = np.sort(sign * table["labels/va"][:, 1])[:7] * sign
    np.testing.assert_allclose(values, expected, atol=0.005)
  found = read_page(browse.browse(tiny, tmp_path / "page.html", sort="-key", **options))
  keys = [alt.partition(":")[0] for _, alt in shown(found)]
  assert keys == sorted((key.decode() for key in table["key"]), reverse=True)[:7]


def test_names_that_are_anybody_s_are_text(photographs, tmp_path):
  found = read_page(browse.browse(photographs, tmp_path / "page.html"))
  assert len(shown(found)) == 8
  assert '<img src=x onerror="alert(1)">' in found.text
  assert all(image["src"].startswith("data:image/") for image in found.images)
  assert "width 30 to 30 pixels, median 30; height 20 to 27" in found.text
  assert "train820444" in found.text  # images, people, videos; without va, expressions, units


def test_a_set_may_say_anything_of_its_labels(tiny_faces, tmp_path):
  shutil.copytree(tiny_faces, tmp_path / "data")
  build = records.builder("synthetic_faces", "tiny", str(tmp_path / "data"))
  path = next((tmp_path / "data").rglob("metadata.json"))
  described = json.loads(path.read_text())
  described["labels"]["expression"][0] = "</style><script>alert(1)</script>"
  described["labels"]["va"][0] = '"><b>\ud800'
  path.write_text(json.dumps(described))
  found = read_page(browse.browse(build, tmp_path / "page.html", count=96))
  assert "</style><script>alert(1)</script>" in found.text


def test_the_plane_has_a_cell_for_every_place_with_images():
  rng = np.random.default_rng(0)
  va = rng.uniform(-1.2, 1.2, (200, 2))
  root = ElementTree.fromstring(browse.plane(va, ("<v>", "&")))
  cells = [node for node in root if node.tag.endswith("rect")]
  inside = ((np.clip(va, -1, 0.9999) + 1) / 2 * browse.CELLS).astype(int)
  assert len(cells) == len({tuple(cell) for cell in inside.tolist()})
  one = ElementTree.fromstring(browse.plane(np.array([[0.99, 0.99]])))
  (cell,) = [node for node in one if node.tag.endswith("rect")]
  assert cell.get("x") == str(40 + 12 * (browse.CELLS - 1))  # right
  assert cell.get("y") == "10"  # above


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (["synthetic_face"], "data set 'synthetic_face': use one of aff_wild2"),
    (["synthetic_faces/small"], "has no config 'small'"),
    (["synthetic_faces/tiny", "--split=dev"], "has no split 'dev'; it has train, validation, test"),
    (["synthetic_faces/tiny", "--filter", "expression=angry"], "use one of neutral, anger"),
    (["synthetic_faces/tiny", "--filter", "au=AU99"], "use one of AU1, AU2"),
    (["synthetic_faces/tiny", "--filter", "age=3"], "use one of expression=..., au=..."),
    (["synthetic_faces/tiny", "--filter", "labelled=x"], "use one of va, expression, au"),
    (["synthetic_faces/tiny", "--filter", "unlabelled=va"], "no image of train fits"),
    (["synthetic_faces/tiny", "--sort=size"], "--sort=size: use one of key, valence, arousal"),
    (["synthetic_faces/tiny", "--count=0"], "use at least 1"),
    (["ferplus"], "python -m affjax.data.prepare ferplus --source=FOLDER"),
  ],
)
def test_a_mistake_is_answered_in_one_line(arguments, says, tiny_faces, tmp_path):
  output = tmp_path / "page.html"
  with pytest.raises(SystemExit) as found:
    browse.main([*arguments, f"--data_dir={tiny_faces}", f"--output={output}"])
  assert str(found.value).startswith("error: ")
  assert says in str(found.value)
  assert len(str(found.value).splitlines()) == 1
  assert not output.exists()


def test_the_command_prints_where_the_page_is(tiny_faces, tmp_path, capsys):
  output = tmp_path / "folder" / "page.html"
  options = ["--filter", "expression=neutral", "--count=3", f"--output={output}"]
  browse.main(["synthetic_faces/tiny", f"--data_dir={tiny_faces}", *options])
  assert capsys.readouterr().out.startswith(f"{output} (0.")
  found = read_page(output)
  assert len(shown(found)) == 3
  assert "that fit expression=neutral" in found.text


def test_a_damaged_record_is_named(tiny_faces, tmp_path):
  shutil.copytree(tiny_faces, tmp_path / "data")
  build = records.builder("synthetic_faces", "tiny", str(tmp_path / "data"))
  records.label_table(build, "train")
  shard = Path(records.shards(build, "train").paths[0])
  content = bytearray(shard.read_bytes())
  content[100_000:140_000] = bytes(40_000)
  shard.write_bytes(content)
  with pytest.raises(ValueError, match=f"record .* of {re.escape(str(shard))}"):
    browse.browse(build, tmp_path / "page.html", count=96)
  assert not (tmp_path / "page.html").exists()


def test_only_pictures_are_put_in_a_page():
  with pytest.raises(ValueError, match="use JPEG, PNG or SVG"):
    page.picture(b"GIF89a", "a picture")
  assert 'alt="&lt;&quot;&gt;"' in page.picture(b"\xff\xd8\xff", '<">')


def test_numbers_stand_to_the_right_and_others_to_the_left():
  made = page.table(["", "a", "b"], [["x", 1200, "word"], ["y", None, 0.5]])
  assert made.count('<td class="number">') == 2
  assert "1,200" in made
  assert "<td>0.5</td>" in made
