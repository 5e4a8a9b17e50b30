"""Files of records: how many a split has, and how they are written in the order of its rows."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer

# For every record that is read, ArrayRecord (0.8.6) goes through a list of all records of its file.
# What reading takes is in the last line of `scripts/benchmark_loader.py`.
RECORDS = 1024
FILES = 256  # at most: a process may have 1,024 open


def count(records: int) -> int:
  """How many files a split of so many records is written to."""
  return min(max(1, -(-records // RECORDS)), FILES)


def lengths(records: int) -> list[int]:
  """Records of each of its files."""
  return [len(part) for part in np.array_split(np.arange(records), count(records))]


def write(
  builder: tfds.core.DatasetBuilder,
  split: str,
  examples: Iterator[dict[str, Any]],
  records: int,
) -> tfds.core.SplitInfo:
  """Writes a split, record i being what comes i-th.

  Args:
    builder: whose data set it is.
    split: its name.
    examples: of the builder's features; it is gone through to its end.
    records: how many they are.
  """
  serializer = example_serializer.ExampleSerializer(builder.info.features.get_serialized_info())
  template = builder._get_filename_template(split_name=split)
  size, parts = 0, lengths(records)
  for shard, length in enumerate(parts):
    path = template.sharded_filepath(shard_index=shard, num_shards=len(parts))
    writer = array_record_module.ArrayRecordWriter(os.fspath(path), "group_size:1")
    with contextlib.closing(writer):
      for _ in range(length):
        example = builder.info.features.encode_example(next(examples))
        record = serializer.serialize_example(example)
        writer.write(record)
        size += len(record)
  next(examples, None)  # what it does after the last
  return tfds.core.SplitInfo(
    name=split, shard_lengths=parts, num_bytes=size, filename_template=template
  )
