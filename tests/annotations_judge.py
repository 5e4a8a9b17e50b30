"""Which ABAW label files are legal, and what they say: written from the formats' description alone.

`judge` shares no code with affjax and uses no regular expressions, so that a test can compare the
library's readers with it. The values and most names below are invented; the number formats, the
markers and the quirks are those of the official files.
"""

import random
from typing import NamedTuple

DIGITS = "0123456789"
NAME = DIGITS + "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_-."
EXPR7 = "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise"
AU12 = "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26"
COMPOUND = (
  "Fearfully_Surprised,Happily_Surprised,Sadly_Surprised,Disgustedly_Surprised,"
  "Angrily_Surprised,Sadly_Fearful,Sadly_Angry"
)


class Format(NamedTuple):
  """The header, then what a data line holds, in this order."""

  header: str
  path: str = ""  # "frame": video/00001.jpg, "flat": 0.jpg, "": none, data line k is frame k
  va: int = 0
  classes: int = 0  # one expression field if any
  aus: int = 0
  missing: bool = True  # whether an expression may be -1


FORMATS = {
  "mtl": Format("image,valence,arousal,expression,aus", "frame", va=2, classes=8, aus=12),
  "lsd": Format("image,expression", "flat", classes=6, missing=False),
  "video_va": Format("valence,arousal", va=2),
  "video_expr": Format(EXPR7 + ",Other", classes=8),
  "video_expr7": Format(EXPR7, classes=7),
  "video_au": Format(AU12, aus=12),
  "video_au8": Format("AU1,AU2,AU4,AU6,AU12,AU15,AU20,AU25", aus=8),
  "list_va": Format("image_location,valence,arousal", "frame", va=2),
  "list_expr": Format("image_location," + EXPR7 + ",Other", "frame", classes=8),
  "list_au": Format("image_location," + AU12, "frame", aus=12),
  "list_ce": Format("image_location," + COMPOUND, "frame", classes=7, missing=False),
}


# (task, edition of ABAW) -> what a submission is made of. Of VA, EXPR and AU editions 1-3 took one
# file for each video.
LATER = [5, 6, 8, 10]
SUBMISSIONS = {
  **{("mtl", edition): "mtl" for edition in (3, 4, 7, 11)},
  ("lsd", 4): "lsd",
  **{("ce", edition): "list_ce" for edition in (6, 7, 8)},
  **{("va", edition): "video_va" for edition in (1, 2, 3)},
  **{("expression", edition): "video_expr7" for edition in (1, 2)},
  ("expression", 3): "video_expr",
  ("au", 1): "video_au8",
  **{("au", edition): "video_au" for edition in (2, 3)},
  **{("va", edition): "list_va" for edition in LATER},
  **{("expression", edition): "list_expr" for edition in LATER},
  **{("au", edition): "list_au" for edition in LATER},
}


class Illegal(Exception):
  pass


def need(condition):
  if not condition:
    raise Illegal


def made_of(text, alphabet):
  return text != "" and all(character in alphabet for character in text)


def unsigned(text):
  return text[1:] if text.startswith(("+", "-")) else text


def judge(text: str, *, video: str = "", predictions: bool = False) -> list[tuple] | None:
  """Rows (image, va, expression, au) of a whole file (its line ends kept), None if illegal.

  va is two floats, each None where missing; expression and the entries of au are -1 where missing;
  what the format does not hold is None.
  """
  header, *lines = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]
  while lines and lines[-1] == "":
    lines.pop()
  for form in FORMATS.values():
    if form.header == header:
      try:
        return [judge_line(form, line, k, video, predictions) for k, line in enumerate(lines, 1)]
      except Illegal:
        return None
  return None


def judge_line(form, line, k, video, predictions):
  if form.path:
    image, *fields = line.removesuffix(",").split(",")
    judge_path(form, image)
  else:
    image, fields = f"{video}/{k:05d}.jpg", line.split(",")
  expressions = 1 if form.classes else 0
  need(len(fields) == form.va + expressions + form.aus)
  va = tuple(judge_va(field, predictions) for field in fields[: form.va])
  aus = tuple(judge_int(field, 2, not predictions) for field in fields[form.va + expressions :])
  expression = None
  if form.classes:
    expression = judge_int(fields[form.va], form.classes, form.missing and not predictions)
  return image, va or None, expression, aus or None


def judge_path(form, image):
  name = image
  if form.path == "frame":
    name, slash, frame = image.partition("/")
    need(slash and made_of(frame[:5], DIGITS) and len(frame) == 9 and frame[5:] == ".jpg")
    need(frame != "00000.jpg")
  else:
    need(name.endswith(".jpg") and name != ".jpg")
  need(made_of(name, NAME) and not name.startswith("."))


def judge_va(field, predictions):
  mantissa, e, exponent = field.replace("E", "e").partition("e")
  whole, _, fraction = unsigned(mantissa).partition(".")
  need(made_of(whole + fraction, DIGITS))
  need(not e or made_of(unsigned(exponent), DIGITS))
  value = float(field)
  if value == -5 and not predictions:
    return None
  need(-1 <= value <= 1)
  return value


def judge_int(field, classes, missing):
  values = range(-1 if missing else 0, classes)
  need(field in [str(value) for value in values])
  return int(field)


def judge_submission(files: dict[str, str], kind: str, images: list[str]) -> list[tuple] | None:
  """Rows of a submission of FORMATS[kind], None if it is illegal or not what was asked for.

  Args:
    files: texts by the names of the videos, or one of any name where the format is a list.
    kind: a key of FORMATS.
    images: what was asked for: in the order of the list, or of the files' names.
  """
  form, rows = FORMATS[kind], []
  for video in sorted(files, key=lambda name: name + ".txt"):
    header, _, _ = files[video].removeprefix("\ufeff").partition("\n")
    if header.removesuffix("\r") != form.header:
      return None
    found = judge(files[video], video=video, predictions=True)
    if found is None:
      return None
    rows += found
  return rows if [image for image, *_ in rows] == list(images) else None


def fixtures() -> dict[str, tuple[str, str]]:
  """Legal files by name, each with its video's name ("" for a list)."""
  return {
    "mtl": (
      "",
      "image,valence,arousal,expression,aus\n"
      "some_video/00001.jpg,-0.01233333333333,0.0,7,0,0,0,0,0,0,0,0,0,0,0,0\n"
      "some_video/00001.jpg,-0.01233333333333,0.0,7,0,0,0,0,0,0,0,0,0,0,0,0\n"
      "some_video/00002.jpg,-0.0123333333333,0.4166666666667,0,0,1,0,0,0,0,0,0,0,0,1,0\n"
      "some_video/00008.jpg,1.0,-1,4,0,0,0,1,1,1,1,0,0,0,1,0\n"
      "some_video/00066.jpg,0.08,0.031,-1,0,0,1,0,0,0,0,0,0,0,1,1\n"
      "some_video/00070.jpg,0.08,0.031,3,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1\n"
      "12-34-640x360_left/00003.jpg,-5,-5,4,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1\n"
      "12-34-640x360_left/00912.jpg,-5.0,-5.0,-1,1,0,1,0,0,0,0,0,0,0,0,0\n"
      "12-34-640x360_right/02534.jpg,-5,0.25,-1,-1,0,1,-1,0,0,0,0,0,0,0,0\n",
    ),
    "mtl submission": (  # the test list of 2024 ends its lines with a comma
      "",
      "image,valence,arousal,expression,aus\n"
      "video45_1/00001.jpg,0.125,-0.5,0,0,0,0,0,0,0,0,0,0,0,1,0,\n"
      "video45_1/00001.jpg,0.125,-0.5,0,0,0,0,0,0,0,0,0,0,0,1,0,\n"
      "video45_1/00004.jpg,1e-3,2.5E-05,6,1,1,0,0,0,0,0,0,0,0,1,1",
    ),
    "lsd": ("", "image,expression\n0.jpg,0\n1.jpg,5\n10.jpg,3,\n106119.jpg,2\n"),
    "video_va": (
      "12-34-640x360_right",
      "valence,arousal\r\n-5,-5\r\n-5.0,-5.0\r\n0.061,-0.154\r\n-0.5,.5\r\n0,1\r\n0.2,-5\r\n",
    ),
    "video_expr": (
      "some_video",
      "Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other\n-1\n-1\n0\n0\n7\n4\n\n",
    ),
    "video_expr7": (
      "some_video",
      "\ufeffNeutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise\n-1\n0\n6\n6\n5",
    ),
    "video_au": (
      "some_video_left",
      "AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26\n"
      "-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1\n"
      "0,0,0,1,1,1,1,0,0,0,1,0\n"
      "0,0,0,1,1,1,1,0,0,0,1,0\n"
      "1,0,-1,0,0,0,0,0,0,0,0,1\n",
    ),
    "video_au8": (
      "some_video",
      "AU1,AU2,AU4,AU6,AU12,AU15,AU20,AU25\n"
      "0,0,1,0,0,0,0,1\n"
      "-1,-1,-1,-1,-1,-1,-1,-1\n"
      "1,1,0,0,0,0,1,0\n",
    ),
    "list_va": (
      "",
      "image_location,valence,arousal\n"
      "some_video/00001.jpg,0.2415,-0.0333333333333\n"
      "some_video/00002.jpg,-1,1\n"
      "some_video/00003.jpg,0.0,-0.0,\n"
      "some_video_right/00001.jpg,0.5,0.5\n",
    ),
    "list_expr": (
      "",
      "image_location,Neutral,Anger,Disgust,Fear,Happiness,Sadness,Surprise,Other\n"
      "some_video/00001.jpg,0\n"
      "some_video/00002.jpg,7\n"
      "some_video/00003.jpg,7,\n",
    ),
    "list_au": (
      "",
      "image_location,AU1,AU2,AU4,AU6,AU7,AU10,AU12,AU15,AU23,AU24,AU25,AU26\n"
      "some_video/00001.jpg,0,0,0,1,1,1,1,0,0,0,1,0\n"
      "some_video/00002.jpg,1,1,0,0,0,0,0,0,0,0,1,1\n",
    ),
    "list_ce": (
      "",
      "image_location,Fearfully_Surprised,Happily_Surprised,Sadly_Surprised,"
      "Disgustedly_Surprised,Angrily_Surprised,Sadly_Fearful,Sadly_Angry\n"
      "5/00001.jpg,0\n"
      "5/00002.jpg,6\n"
      "12/00001.jpg,3,\n",
    ),
  }


def legal_file(
  rng: random.Random, kind: str, rows: int, *, predictions: bool = False
) -> tuple[str, str]:
  """A random legal file of FORMATS[kind]: its text and its video's name ("" for a list)."""
  form = FORMATS[kind]
  video, frame, lines = random_video(rng), 0, []
  for _ in range(rows):
    if form.path == "frame" and rng.random() < 0.1:
      video, frame = random_video(rng), 0
    frame += rng.choice([1, 1, 1, 6, 58])
    path = {"frame": [f"{video}/{frame:05d}.jpg"], "flat": [f"{frame - 1}.jpg"], "": []}[form.path]
    line = ",".join(path + random_labels(rng, form, predictions))
    if form.path and rng.random() < 0.1:
      line += ","
    lines.append(rng.choice(lines) if form.path and lines and rng.random() < 0.1 else line)
  ends = rng.choice([["\n"], ["\r\n"], ["\n", "\r\n"]])
  text = "".join(line + rng.choice(ends) for line in [form.header, *lines])
  if rng.random() < 0.2:
    text = text.removesuffix("\n").removesuffix("\r")
  elif rng.random() < 0.2:
    text += rng.choice(["\n", "\n\n\n", "\r\n", "\r\n\n"])
  return rng.choice(["", "", "", "\ufeff"]) + text, "" if form.path else video


def random_video(rng):
  name = rng.choice(["some_video", "video45_1", "426", "12-34-640x360", "a", "A.b..c", "-_"])
  return name + rng.choice(["", "", "_left", "_right"])


def random_labels(rng, form, predictions):
  missing = 0 if predictions else rng.choice([0, 0.1, 1])
  value = rng.uniform(-1, 1)
  va = [f"{value:.3f}", f"{value:.13f}", repr(value), f"{value:+.2e}".upper(), f"{value:.0f}"]
  va += ["0", "1", "-1", "0.0", "-0.0", "+1.0", "1.", "-.5", "00.5", "1e-400"]
  fields = []
  for _ in range(form.va):
    fields.append(rng.choice(["-5", "-5.0", "-5.00"] if rng.random() < missing else va))
  if form.classes:
    absent = form.missing and rng.random() < missing
    fields.append("-1" if absent else str(rng.randrange(form.classes)))
  for _ in range(form.aus):
    fields.append("-1" if rng.random() < missing else rng.choice("01"))
  return fields


ALPHABET = DIGITS + ',./-+eE_a \t"\0\r\x0b\x0c\x1c\x85\u2028\ufeff\u0663\uff11\u00b2\u2212\\'
LEGAL = ["0", "1", "-1", "3", "-5", "-5.0", "0.25", "-1e-3", "some_video/00007.jpg", "7.jpg"]
NASTY = (  # mostly illegal wherever they stand
  ["nan", "inf", "-inf", "1.5", "-1.01", "-5", "-5.0", "-5.00", "-50e-1", "5", "-4.999", "-1", "2"]
  + ["7", "8", "12", "07", "00", "+1", "+0", "1.0", "1e-3", "1e0", "1e400", "-1e400", "1e-400"]
  + ["1_0", "0_1", "0x1", "", "-", "+", ".", "-.", "e", ".e1", "1e", "1e+", "e5", "1e1.", "1.2.3"]
  + [" 0", "0 ", "\t0", "0\t", "\0", "0\0", '"0"', "-0", "-0.0", "--1", "+-1", "- 1", "1e 1", "1d0"]
  + ["\u0660", "\uff10", "\u00b2", "\u22121", "0\u00a0", "\u20280", "True", "None", "-1.0", "0.0"]
  + ["../00001.jpg", "../x/00001.jpg", "./00001.jpg", "a..jpg", ".a/00001.jpg", "a/../00001.jpg"]
  + ["a", "/00001.jpg", "//00001.jpg", "a//00001.jpg", "a/b/00001.jpg", "a\\00001.jpg", "00001.jpg"]
  + ["a/00000.jpg", "a/1.jpg", "a/0001.jpg", "a/000001.jpg", "a/99999.jpg", "a/00001.png", "a/"]
  + ["a/00001.JPG", "a/00001.jpeg", "a/00001jpg", "a/00001", "a/.jpg", "a/-0001.jpg", "a/+0001.jpg"]
  + ["a/0_001.jpg", "a/ 0001.jpg", "a/0000\u0661.jpg", "a b/00001.jpg", "\u00e9/00001.jpg"]
  + ["a/00001.jpg ", "a/00001.jpg.jpg", "a\0/00001.jpg", "a:b/00001.jpg", ".jpg", "..jpg", "0.png"]
  + ["a/00001.jpg/", "~/00001.jpg", "..a/00001.jpg", "a../00001.jpg", "C:/00001.jpg", "0.jpg/"]
)

KINDS = ["flip", "insert", "delete", "twice", "drop", "copy", "swap", "commas", "legal", "same"]
KINDS += ["nasty", "nasty"]


def mutate(rng: random.Random, line: str) -> str:
  """The data line `line` (without its end) changed in one place, or left as it is; still one."""
  fields = line.split(",")
  i, j = rng.randrange(len(fields)), rng.randrange(len(fields))
  at, character = rng.randrange(len(line) + 1), rng.choice(ALPHABET)
  kind = rng.choice(KINDS)
  if kind == "flip":
    return line[:at] + character + line[at + 1 :]
  if kind == "insert":
    return line[:at] + character + line[at:]
  if kind == "delete":
    return line[:at] + line[at + 1 :]
  if kind == "twice":
    return line[: at + 1] + line[at:]
  if kind == "drop":
    del fields[i]
  elif kind == "copy":
    fields.insert(j, fields[i])
  elif kind == "swap":
    fields[i], fields[j] = fields[j], fields[i]
  elif kind in ("nasty", "legal"):
    fields[i] = rng.choice(NASTY if kind == "nasty" else LEGAL)
  elif kind == "commas":
    fields += [""] * rng.choice([1, 1, 2])
  return ",".join(fields)


def legal_submission(rng: random.Random, kind: str) -> dict[str, str]:
  """A random legal submission of FORMATS[kind]: texts by name, as `judge_submission` takes them."""
  if FORMATS[kind].path:
    return {"predictions": legal_file(rng, kind, rng.randrange(1, 12), predictions=True)[0]}
  names = ["b", "a", "a-b", "46-30-484x360_left"]
  return {name: legal_file(rng, kind, rng.randrange(1, 6), predictions=True)[0] for name in names}


FILE_KINDS = [
  "drop",
  "twice",
  "swap",
  "empty",
  "cut",
  "ends",
  "bom",
  "header",
  "other",
  "tail",
  "byte",
]
FILE_KINDS += ["line"] * 8 + ["lose", "rename", "double"]


def mutate_submission(rng: random.Random, files: dict[str, str]) -> dict[str, str]:
  """A submission changed in one place, or left as it is."""
  files = dict(files)
  name, kind = rng.choice(sorted(files)), rng.choice(FILE_KINDS)
  text = files[name]
  if kind in ("lose", "rename", "double"):
    if kind != "lose" and len(files) > 1:
      files[rng.choice(["c", "a_left", "b"])] = text
    if kind != "double" and len(files) > 1:
      del files[name]
    return files
  header, *lines = text.split("\n")
  at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
  if kind == "line":
    lines[at] = mutate(rng, lines[at])
  elif kind == "drop":
    del lines[at]
  elif kind == "twice":
    lines.insert(to, lines[at])
  elif kind == "swap":
    lines[at], lines[to] = lines[to], lines[at]
  elif kind == "empty":
    lines.insert(at, rng.choice(["", "\r", " ", ","]))
  elif kind == "header":
    header = rng.choice([mutate(rng, header), *(form.header for form in FORMATS.values())])
  elif kind == "other":
    return files | {name: legal_file(rng, rng.choice(sorted(FORMATS)), 4, predictions=True)[0]}
  whole = "\n".join([header, *lines])
  if kind == "cut":
    whole = whole[: rng.randrange(len(whole))]
  elif kind == "ends":
    whole = whole.replace("\n", rng.choice(["\r\n", "\r", "\n\n", "\x0b", "\u2028"]))
  elif kind == "byte":  # no UTF-8, once it is written with surrogateescape
    whole = whole[: (at := rng.randrange(len(whole) + 1))] + "\udcff" + whole[at:]
  elif kind == "bom":
    whole = "\ufeff" + whole
  elif kind == "tail":
    whole += rng.choice(["\n", "\n\n", "\r\n", "\r", ",", "0", " ", "\0", "\nx"])
  return files | {name: whole}
