"""The systems that live here, side by side: same data, same number of images, several seeds.

  python -m scripts.compare_systems                       # all of them
  python -m scripts.compare_systems --only=vit_mtl,emotion_gcn --seeds=1
  python -m scripts.compare_systems --data=ferplus        # those that photographs can be given to
  python -m scripts.compare_systems --debug               # whether it works, in minutes
  python -m scripts.compare_systems --markdown            # also the table of the README

Every run is the main job in a process of its own, in `--workdir`/DATA/SYSTEM/as-it-is/seed=N. Runs
that are finished are not run again and those that were stopped continue, so the same command goes
on where it was stopped; another config or number of images is refused in its folder. What a system
starts from, such as an encoder that learnt without labels, is a run of as many images before it.

Each system is its config as it stands, but for what would make a comparison unfair: it sees
`--images` images, is evaluated three times, and faces lack labels as those of s-Aff-Wild2 do, in
training and where checkpoints are chosen. Scores are those of the last split that is reported, with
all of its labels.

The table: mean over the seeds and a 95 % interval of that mean (Student's t) of the CCC of valence
and arousal, of F1 of expressions and of units, and of P where there are all three; parameters; the
median of images/s while training. Below, what the best constant answers would score on the same
labels. A system without a task has "-". The folder's compare.json has the score of every seed, and
the tables are of all that it has.
"""

import argparse
import collections
import importlib
import json
import re
import string
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from affjax import evaluate, workdir
from affjax.data import records
from scripts import sweep

DATA = ("synthetic_faces", "ferplus")
EVALUATIONS = 3
# Column -> name of a score. Those that no system has are left out.
COLUMNS = {
  "CCC": "va/ccc",
  "F1 expression": "expression/f1",
  "F1 units": "au/f1",
  "P": "p_mtl",
  "strict accuracy": "expression/strict/accuracy",
  "strict F1": "expression/strict/f1",
  "official accuracy": "expression/official/accuracy",
  "official F1": "expression/official/f1",
  "r2 of what is hidden": "reconstruction/r2",
}
# What stands in the README's table of each data set: the first of these that a system has.
HEADLINES = ("p_mtl", "expression/strict/accuracy", "expression/f1", "reconstruction/r2")


@dataclass(frozen=True)
class System:
  """A published system, or a twin of one.

  Attributes:
    row: its number among the 33 published systems that are to live here; 0: none of them.
    paper: authors, year.
    arxiv: its number there.
    config: as of the main job; its config gives `steps`, `batch_size`, `debug`.
    tasks: that it predicts.
    verified: what of it is checked, in a few words.
    inferred: what of it is our reading, in a few words.
    start: further arguments of the config, or flags of the main job; {NAME} in them is the folder
      of that system's run of the same seed, which comes first.
    ferplus: whether its config takes data=ferplus.
    lsd: whether it is of ABAW4's other challenge, six expressions learnt from posed faces that are
      all labelled: another config of synthetic_faces, whose scores stand beside no others.
  """

  row: int
  paper: str
  arxiv: str
  config: str
  tasks: tuple[str, ...]
  verified: str
  inferred: str
  start: tuple[str, ...] = ()
  ferplus: bool = False
  lsd: bool = False

  @property
  def needs(self) -> list[str]:
    """Names of the systems that it starts from."""
    parsed = (string.Formatter().parse(text) for text in self.start)
    return [name for parts in parsed for _, name, _, _ in parts if name]


_ALL = ("va", "expression", "au")
_TALLEC = dict(row=13, paper="Tallec et al., 2022", arxiv="2208.03506")
_ANTONIADIS = dict(row=32, paper="Antoniadis et al., 2021", arxiv="2106.03487")
_KOLLIAS = dict(row=2, paper="Kollias, 2022", arxiv="2207.01138", ferplus=True)
_LI = dict(row=20, paper="Li et al., 2022", arxiv="2207.11679")
# What a system starts from stands before it.
SYSTEMS = {
  "vit_mtl": System(
    **_TALLEC,
    config="configs/vit_mtl.py",
    tasks=_ALL,
    verified="uncertainty weights against their closed form; ViT against timm's",
    inferred="tokens go through a ViT; layout, sizes, schedule",
    ferplus=True,
  ),
  "vit_mtl_plain": System(
    row=0,
    paper="Dosovitskiy et al., 2020",
    arxiv="2010.11929",
    config="configs/vit_mtl.py:plain=true",
    tasks=_ALL,
    verified="ViT as above",
    inferred="the twin without tokens: mean of the map, three linear heads, equal weights",
    ferplus=True,
  ),
  "mt_transformer": System(
    **_TALLEC,
    config="configs/mt_transformer.py",
    tasks=_ALL,
    verified="decoder, rates of three groups and loss of the units against the formulas of the"
    " authors' code for units; InceptionV3 against Keras'",
    inferred="tokens of valence, arousal, expressions; which uncertainty weights; a narrow VGG,"
    " from random numbers, in place of ImageNet's CNN; one peak of the decoder's rates, 2.5e-4",
    ferplus=True,
  ),
  "emotion_gcn": System(
    **_ANTONIADIS,
    config="configs/emotion_gcn.py",
    tasks=("va", "expression"),
    verified="graph and adjacency against the formulas of the authors' code; DenseNet-121 against"
    " Keras'",
    inferred="random vectors in place of GloVe's; a narrow VGG in place of the CNN; AdamW; CCC and"
    " class weights as everywhere here",
  ),
  "emotion_gcn_linear": System(
    **_ANTONIADIS,
    config="configs/emotion_gcn.py:head=linear",
    tasks=("va", "expression"),
    verified="as above",
    inferred="the twin without a graph: a dense layer for each task",
  ),
  "abaw4_trunk": System(
    **_KOLLIAS,
    config="configs/abaw4_baseline.py:stage=pretrain",
    tasks=("expression",),
    verified="VGG16 against Keras'",
    inferred="expressions of our faces in place of VGGFace; a narrow VGG",
  ),
  "abaw4_mtl": System(
    **_KOLLIAS,
    config="configs/abaw4_baseline.py:stage=frozen",
    tasks=_ALL,
    verified="as above; frozen convolutions stay to the bit",
    inferred="losses, augmentation, length; no weights of VGGFace",
    start=("--config.initialise.source={abaw4_trunk}",),
  ),
  "abaw4_all": System(
    **_KOLLIAS,
    config="configs/abaw4_baseline.py",
    tasks=_ALL,
    verified="as above",
    inferred="the twin whose layers all learn, from random numbers",
  ),
  "abaw4_lsd": System(
    **_KOLLIAS,
    config="configs/abaw4_baseline.py:task=lsd",
    tasks=("expression",),
    verified="ResNet-50 against Keras'",
    inferred="renders in place of the licensed ones; a small ResNet",
    lsd=True,
  ),
  "senet": System(
    row=30,
    paper="Cafarelli et al., 2021",
    arxiv="2101.09231",
    config="configs/senet.py",
    tasks=("expression",),
    verified="SE-ResNet-50 against a plain PyTorch definition",
    inferred="no weights of VGGFace2; a narrow SE-ResNet-18",
    ferplus=True,
  ),
  "mae": System(
    row=20,
    paper="He et al., 2021",
    arxiv="2111.06377",
    config="configs/mae.py",
    tasks=(),
    verified="size of ViT-B/16 and its decoder; what is hidden has no influence",
    inferred="renders in place of CelebA; a small ViT",
    ferplus=True,
  ),
  "mae_vit_mtl": System(
    **_TALLEC,
    config="configs/vit_mtl.py",
    tasks=_ALL,
    verified="as vit_mtl",
    inferred="that it starts from masked autoencoding is of row 20",
    start=("--config.initialise.source={mae}",),
    ferplus=True,
  ),
  "emma_prior": System(
    **_LI,
    config="configs/emma.py:stage=prior",
    tasks=("expression",),
    verified="DAN against a plain PyTorch definition",
    inferred="renders in place of MS-Celeb-1M and AffectNet; a narrow CNN",
    start=("--config.initialise.source={abaw4_lsd}",),
  ),
  "emma": System(
    **_LI,
    config="configs/emma.py",
    tasks=_ALL,
    verified="valence and arousal from scores alone; the frozen CNN stays to the bit, its"
    " statistics too",
    inferred="means over tasks of equal weight; small networks",
    start=("prior={emma_prior}", "--config.initialise.source={mae}"),
  ),
  "cotex": System(
    **_LI,
    config="configs/cotex.py:data=synthetic_faces/lsd",
    tasks=("expression",),
    verified="agreement against its definition; masks cost nothing that they hide",
    inferred="half of the patches are hidden; small ViTs",
    start=("start={mae}",),
    ferplus=True,
    lsd=True,
  ),
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--data", choices=DATA, default=DATA[0])
  add("--images", type=int, default=24_000, help="that each run learns from, 24,000 unless given")
  add("--seeds", type=int, default=3, help="how many: 0, 1, 2, ...; 3 unless given")
  add("--only", default="", metavar="NAME,...", help=f"of {', '.join(SYSTEMS)}; all unless given")
  add("--debug", action="store_true", help="each as small as its config makes it; 20 updates")
  add("--markdown", action="store_true", help="also print the README's table")
  add("--workdir", type=Path, help="where the runs live; runs/compare or -debug unless given")
  add("rest", nargs="*", metavar="--FLAG=VALUE", help="after --: goes to every run")
  options = parser.parse_args(argv)
  for name in ("images", "seeds"):
    if getattr(options, name) < 1:
      parser.error(f"--{name}={getattr(options, name)}: use at least 1")
  for flag in options.rest:
    if re.match(r"--config\.(steps|batch_size|seed)\b", flag):
      parser.error(f"{flag}: all see as many images, with seeds 0, 1, ...: use --images, --seeds")
  options.workdir = options.workdir or Path("runs") / ("compare" + "-debug" * options.debug)
  return options


def chosen(only: str, data: str) -> list[str]:
  """The systems that are to be run, and those that they start from, in the order of SYSTEMS.

  Raises:
    ValueError: a name that there is not, or a system that cannot be given the data.
  """
  named = [name for name in only.split(",") if name]
  able = [name for name, system in SYSTEMS.items() if data != "ferplus" or system.ferplus]
  if unable := [name for name in named if name not in able]:
    raise ValueError(
      f"--only={only}: {unable[0]} is none that --data={data} has: {', '.join(able)}"
    )
  wanted = list(named or able)
  for name in wanted:  # it grows
    wanted += [need for need in SYSTEMS[name].needs if need not in wanted]
  return [name for name in SYSTEMS if name in wanted]


def with_arguments(config: str, arguments: Iterable[str]) -> str:
  """`configs/x.py:a=1` and ["b=2"] -> `configs/x.py:a=1,b=2`."""
  file, _, given = config.partition(":")
  return ":".join(filter(None, [file, ",".join(filter(None, [given, *arguments]))]))


def read_config(config: str) -> Any:
  """What a config's file says, from `configs/x.py:a=1`."""
  file, _, argument = config.partition(":")
  return importlib.import_module(f"configs.{Path(file).stem}").get_config(argument)


def command(system: System, options: argparse.Namespace, runs: Mapping[str, Path]) -> list[str]:
  """The config of a system with its arguments, then flags.

  Args:
    system: of SYSTEMS.
    options: of the command line.
    runs: name -> folder of a run of the same seed that it may start from.
  """
  start = [text.format_map(runs) for text in system.start]
  arguments = [text for text in start if not text.startswith("--")]
  arguments += ["data=ferplus"] * (options.data == "ferplus")
  arguments += ["debug"] * options.debug
  flags = [text for text in start if text.startswith("--")]
  flags += ["--config.evaluate.probe=False", "--config.draw_report=False"]
  if system.tasks and not system.lsd and options.data == "synthetic_faces":
    flags.append("--config.data.view.masks=s_aff_wild2")
  if options.debug and options.data == "synthetic_faces":
    flags.append("--config.data.config=tiny")
  if not options.debug:
    # By the argument: rates are made for a number of steps.
    batch_size = read_config(with_arguments(system.config, arguments)).batch_size
    steps = max(options.images // batch_size, 1)
    arguments.append(f"steps={steps}")
    every = -(-steps // EVALUATIONS)
    flags += [f"--config.evaluate.every={every}", f"--config.checkpoint.every={every}"]
  return [with_arguments(system.config, arguments), *flags, *options.rest]


def folder(options: argparse.Namespace, name: str, seed: int) -> Path:
  """Where a run lives."""
  return sweep.folder(options.workdir / options.data / name, (), seed)


def run(options: argparse.Namespace, name: str, seed: int) -> str:
  """Runs one to its end unless it is there; returns why it was refused, or nothing."""
  needed = {need: folder(options, need, seed) for need in SYSTEMS[name].needs}
  config, *rest = command(SYSTEMS[name], options, needed)
  of_sweep = argparse.Namespace(
    config=config, rest=rest, workdir=options.workdir / options.data / name
  )
  return sweep.run(of_sweep, (), seed)


def result(where: Path) -> dict[str, Any]:
  """What a finished run has: scores and floors of the last split that is reported, and so on."""
  found = records.read_json(where / evaluate.SCORES, "remove the folder to run it again")
  config, split = workdir.read_config(where), list(found["scores"])[-1]
  _, parameters, rate = sweep.result(where, split, None)
  return {
    "split": split,
    "images": config["steps"] * config["batch_size"],
    "expressions": config["labels"].get("expression", []),
    "scores": found["scores"][split],
    "floors": found["floors"][split],
    "parameters": parameters,
    "images_per_second": rate,
  }


def gathered(options: argparse.Namespace, name: str) -> dict[str, Any]:
  """The results of a system's seeds, together."""
  found = [result(folder(options, name, seed)) for seed in range(options.seeds)]
  scores = {score: [one["scores"][score] for one in found] for score in found[0]["scores"]}
  rate = float(np.median([one["images_per_second"] for one in found]))
  return found[0] | {"scores": scores, "images_per_second": rate}


def number(value: float) -> str:
  """0.8123 -> .812, as the README writes them."""
  return re.sub(r"^(-?)0\.", r"\1.", f"{value:.3f}")


def cell(values: Sequence[float] | None) -> str:
  """Mean and interval over the seeds; "-" where there is no such score."""
  if not values:
    return "-"
  mean, half = sweep.interval(values)
  return number(mean) + (f" ± {number(half)}" if len(values) > 1 else "")


def markdown(rows: Sequence[Sequence[str]]) -> str:
  """A table; the first row is its head."""
  line = lambda cells: f"| {' | '.join(cells)} |"
  return "\n".join([line(rows[0]), line(["---"] * len(rows[0])), *map(line, rows[1:])])


def _floors(found: Mapping[str, Any], columns: Mapping[str, str]) -> list[list[str]]:
  """A row for each choice of split and expressions, since constant answers differ by these."""
  kinds = collections.defaultdict(dict)
  for system in found.values():
    kinds[system["split"], tuple(sorted(system["expressions"]))] |= system["floors"]
  return [
    [
      f"best constant answers, {split}" + f", {len(names)} expressions" * bool(names),
      *(number(floors[score]) if score in floors else "-" for score in columns.values()),
      "",
      "",
    ]
    for (split, names), floors in kinds.items()
  ]


def table(rows: Mapping[str, Any]) -> str:
  """Of one data set, from what `compare.json` has of it."""
  found = {name: row for name, row in rows.items() if "refused" not in row}
  there = {score for row in found.values() for score in row["scores"]}
  columns = {title: score for title, score in COLUMNS.items() if score in there}
  body = []
  for name, row in found.items():
    scores = [cell(row["scores"].get(score)) for score in columns.values()]
    millions = f"{row['parameters'] / 1e6:.2f} M".removeprefix("0")
    body.append([name, *scores, millions, f"{row['images_per_second']:.0f}"])
  body += _floors(found, columns)
  refused = [
    f"{name}: refused: {row['refused']}" for name, row in rows.items() if name not in found
  ]
  head = ["system", *columns, "parameters", "images/s"]
  return "\n".join([markdown([head, *body]), *refused])


def _headline(row: Mapping[str, Any] | None) -> str:
  """The score that a system is known by, with its name."""
  scores = (row or {}).get("scores", {})
  score = next((name for name in HEADLINES if name in scores), None)
  title = {name: title for title, name in COLUMNS.items()}
  return f"{title[score]} {cell(scores[score])}" if score else "-"


def readme(found: Mapping[str, Mapping[str, Any]]) -> str:
  """The README's table, from the whole of `compare.json`."""
  rows = [["row", "paper", "config", "verified", "inferred", "score", "FER+"]]
  for name, system in SYSTEMS.items():
    file, _, argument = system.config.partition(":")
    shown = Path(file).stem + f":{argument}" * bool(argument)
    after = f", after {', '.join(system.needs)}" if system.needs else ""
    rows.append(
      [
        str(system.row or ""),
        f"[{system.paper}](https://arxiv.org/abs/{system.arxiv})",
        f"[`{shown}`]({file}){after}",
        system.verified,
        system.inferred,
        *(_headline(found.get(data, {}).get(name)) for data in DATA),
      ]
    )
  return markdown(rows)


def ran(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
  """Runs what is not there yet; name -> its results, or why it was refused."""
  rows: dict[str, Any] = {}
  with tqdm(total=len(names) * options.seeds, unit="run", desc="compare") as bar:
    for name in names:
      refused = [f"{n}: {rows[n]['refused']}" for n in SYSTEMS[name].needs if "refused" in rows[n]]
      why = "; ".join(refused)
      for seed in range(options.seeds):
        bar.set_postfix_str(f"{name}, seed {seed}")
        why = why or run(options, name, seed)
        bar.update()
      rows[name] = {"refused": why} if why else gathered(options, name)
  return rows


def compare(argv: Sequence[str] | None = None) -> None:
  """Runs what is not there yet, and prints the tables."""
  options = parse(argv)
  names = chosen(options.only, options.data)
  kept = options.workdir / "compare.json"
  found = records.read_json(kept, "remove it") if kept.is_file() else {}
  rows = found.get(options.data, {}) | ran(options, names)
  found[options.data] = {name: rows[name] for name in SYSTEMS if name in rows}
  workdir.write(kept, json.dumps(found, indent=1))
  print(table(found[options.data]))
  if options.markdown:
    print(f"\n{readme(found)}")


if __name__ == "__main__":
  try:
    compare()
  except ValueError as e:
    sys.exit(f"error: {e}")
  except KeyboardInterrupt:
    sys.exit("stopped; the same command goes on")
