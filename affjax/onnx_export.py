"""An export's model as an ONNX file: `python -m affjax.export --format=onnx`.

Its inputs are those of preprocess.json: `image`, [batch, size, size, 3] uint8 (of a temporal model
[batch, time, size, size, 3], and `present`, [batch, time] bool), for any batch. It gives what
labels.json says, under these names: values of `va`, probabilities of `expression` and `au`. Both
JSON files are in its metadata too, for whoever has only the one file.

It computes in float32 whatever the run did. Before it is written ONNX Runtime has to give what JAX
gives for batches of several sizes. Needs the extra "onnx": see `affjax.onnx_graph` for how little
that is, and why.
"""

import functools
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from affjax import contract, inference, workdir
from affjax.data import records

if TYPE_CHECKING:
  import onnx

BATCHES = (1, 3, 8)  # that the model is tried on
TOLERANCE = 1e-4  # of values and probabilities

Model = Callable[..., dict[str, jax.Array]]
Inputs = Mapping[str, jax.ShapeDtypeStruct]


def write(folder: Path) -> None:
  """Writes `model.onnx` to an export.

  Args:
    folder: it holds the weights and the contracts, and a manifest of them.

  Raises:
    ValueError: the extra is not installed; the model does what is not converted, or is too large;
      or what was made does not give what JAX gives.
  """
  try:
    import onnxruntime  # noqa: F401

    from affjax import onnx_graph
  except ImportError as e:
    raise ValueError(f'--format=onnx needs {e.name}: pip install "affjax[onnx]"') from e
  model, inputs = _open(folder)
  # Where nobody saves digits.
  with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
    try:
      made = onnx_graph.convert(model, inputs)
    except ValueError as e:
      raise ValueError(f"--format=onnx: {e}; use safetensors or stablehlo") from e
    _describe(made, folder)
    content = made.SerializeToString()
    compare(content, model, inputs)
  records.store(folder / contract.ONNX, content)


def _open(folder: Path) -> tuple[Model, Inputs]:
  """An export's model in float32, and what it takes, with a symbolic batch."""
  predictor = inference.load(folder)
  config = {**predictor.config, "dtype": "float32"}
  procedure = inference.open_procedure(config, folder / workdir.CONFIG)
  params, model_state = predictor.arrays
  tasks = list(predictor.labels)

  @jax.jit  # with weights as inputs: as constants they would be compiled, too
  def model(params: Any, model_state: Any, *given: jax.Array) -> dict[str, jax.Array]:
    return contract.read_out(procedure.predict(params, model_state, *given), tasks)

  batch = jax.export.symbolic_shape("batch")[0]
  parts = [predictor.contract[name] for name in ("input", "present")]
  shape = lambda part: jax.ShapeDtypeStruct((batch, *part["shape"][1:]), np.dtype(part["dtype"]))
  inputs = {part["name"]: shape(part) for part in parts if part}
  return functools.partial(model, params, model_state), inputs


def _describe(made: "onnx.ModelProto", folder: Path) -> None:
  """Gives a file what an export says of its model."""
  made.producer_name, made.producer_version = "affjax", importlib.metadata.version("affjax")
  told = {"step": contract.read_json(folder / contract.MANIFEST)["step"]}
  for name in (contract.PREPROCESS, contract.LABELS):
    told[name.removesuffix(".json")] = contract.read_json(folder / name)
  for name, value in told.items():
    made.metadata_props.add(key=name, value=json.dumps(value))


def compare(content: bytes, model: Model, inputs: Inputs) -> None:
  """Raises ValueError unless ONNX Runtime gives for a file what JAX gives for a model.

  Args:
    content: of the ONNX file.
    model: of arrays, in the order of `inputs`.
    inputs: name -> shape with any batch, and type.
  """
  import onnxruntime

  session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
  rng = np.random.default_rng(0)
  given = {name: _drawn(rng, (max(BATCHES), *x.shape[1:]), x.dtype) for name, x in inputs.items()}
  own = jax.device_get(model(*given.values()))  # what an image gives is its own
  for batch in BATCHES:
    there = given.get("present", np.ones(max(BATCHES), bool))[:batch]
    some = {name: array[:batch] for name, array in given.items()}
    for name, found in zip(own, session.run(list(own), some), strict=True):
      expected = own[name][:batch]
      same = found.shape == expected.shape
      error = np.abs(found - expected)[there].max() if same else np.inf
      if not error <= TOLERANCE:
        raise ValueError(
          f"{contract.ONNX}: {name} of a batch of {batch} is {error:.2g} from the run's, at most"
          f" {TOLERANCE} may be: nothing is written; use safetensors or stablehlo"
        )


def _drawn(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Pictures of noise, each about a brightness of its own; vectors; which frames there are."""
  if np.issubdtype(dtype, np.bool_):
    return rng.uniform(size=shape) < 0.7
  if np.issubdtype(dtype, np.floating):
    return rng.normal(size=shape).astype(dtype)
  bright = rng.uniform(0, 255, (shape[0], *[1] * (len(shape) - 1)))
  return (bright + rng.normal(0, 60, shape)).clip(0, 255).astype(dtype)
