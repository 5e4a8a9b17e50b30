"""What a training step costs on TPUs, by their compiler, before and after each choice.

  pip install -e ".[tpu-aot]"                                         # no TPU is needed
  python -m scripts.benchmark_tpu                                     # S/16, 112 px: minutes
  python -m scripts.benchmark_tpu --variants S/16 B/16 --sizes 112 224   # an hour

The first rows add one change to the row above, up to what the recipe of the licensed data does
(`--config=configs/vit_mtl.py:data=s_aff_wild2`); the others are that with one option. Numbers are
of one chip and one image: floating-point operations; bytes that operations read and write, in
memory and on the chip, so more than the memory's traffic; temporaries; messages; cycles as the
compiler estimates them, all operations one after the other.
"""

import argparse
import contextlib
import io
import json
import time
from typing import Any

from affjax import cost, dry_run
from configs import vit_mtl

# Name -> changes; each row has those of the rows above too.
ROWS: dict[str, dict[str, Any]] = {
  "float32, exact GELU": {"dtype": "float32", "model.encoder.gelu": "exact"},
  "bfloat16": {"dtype": "bfloat16"},
  "tanh GELU": {"model.encoder.gelu": "tanh"},
}
# Beside the last of those, one at a time.
OPTIONS: dict[str, dict[str, Any]] = {
  "state split (fsdp)": {"mesh.rules": "fsdp"},
  "blocks computed anew (remat)": {"model.encoder.remat": True},
}


def rows() -> dict[str, dict[str, Any]]:
  """Name -> changes of the recipe."""
  changes: dict[str, Any] = {}
  found = {}
  for name, more in ROWS.items():
    changes = changes | more
    found[name] = changes
  return found | {name: changes | more for name, more in OPTIONS.items()}


def config_of(variant: str, size: int, batch_size: int, changes: dict[str, Any]) -> dict[str, Any]:
  """The recipe of the licensed data at a size, with changes."""
  config = vit_mtl.get_config(f"data=s_aff_wild2,variant={variant},batch_size={batch_size}")
  config.image_size = config.data.image_size = size
  config.update_from_flattened_dict(changes)
  return json.loads(config.to_json_best_effort())


def measure(config: dict[str, Any], topology: str) -> tuple[cost.Cost, float]:
  """Its cost on one chip, and the seconds that compiling took."""
  start = time.perf_counter()
  with contextlib.redirect_stdout(io.StringIO()):
    found = dry_run.run(config, topology=topology, opens=False)
  return found, time.perf_counter() - start


def line(name: str, found: cost.Cost, images: float, seconds: float) -> str:
  """A row of the table; `images` are those of one chip."""
  sent = sum(kind.bytes for kind in found.collectives.values())
  count = sum(kind.count for kind in found.collectives.values())
  return (
    f"{name:30}{found.flops / images / 1e9:10.2f}{found.accessed / images / 1e6:12.1f}"
    f"{found.temporaries / images / 1e6:12.2f}{sent / images / 1e6:10.2f} in {count:4}"
    f"{found.cycles / images / 1e3:12.1f}{seconds:13.0f}"
  )


def main() -> None:
  """Compiles and prints, a row as soon as it is known."""
  options = parse()
  chips = len(dry_run.tpus(options.topology))
  images = options.batch_size / chips
  for variant in options.variants:
    for size in options.sizes:
      print(
        f"\nViT-{variant}, {size} px, {images:g} images on each of {chips} chips; for an image:"
      )
      print(
        f"{'':30}{'GFLOP':>10}{'MB accessed':>12}{'MB temp.':>12}{'MB sent':>10}{'':>8}"
        f"{'kilocycles':>12}{'compiled, s':>13}"
      )
      for name, changes in rows().items():
        if options.rows and name not in options.rows:
          continue
        config = config_of(variant, size, options.batch_size, changes)
        found, seconds = measure(config, options.topology)
        print(line(name, found, images, seconds), flush=True)


def parse() -> argparse.Namespace:
  """Reads the command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  add = parser.add_argument
  add("--variants", nargs="+", default=["S/16"])
  add("--sizes", nargs="+", type=int, default=[112], help="pixels")
  add("--batch_size", type=int, default=256, help="of all chips together")
  add("--topology", default="v5e:2x4")
  add("--rows", nargs="+", choices=[*ROWS, *OPTIONS], help="default: all")
  return parser.parse_args()


if __name__ == "__main__":
  main()
