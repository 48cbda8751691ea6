"""Records of ArrayRecord files: examples of a TensorFlow dataset, or lines of JSON.

A folder that `tensorflow_datasets` prepared with `file_format="array_record"` has a `features.json`, by which its
records are decoded; TensorFlow is not needed for that. Anywhere else a record is a JSON object.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath

from sbp_jax.errors import SbpError

SUFFIX = ".array_record"  # with -00000-of-00010 behind it in a TensorFlow dataset
FEATURES = "features.json"
READ = 1024  # records read at a time


def is_array_record(name: str) -> bool:
    return SUFFIX in name.lower()


def records(file: epath.Path) -> Iterator[bytes | dict[str, Any]]:
    """The records in order: the fields of an example, or bytes of JSON.

    Raises:
      SbpError: `tensorflow_datasets` is needed and not installed.
      ValueError: the file is damaged.
    """
    features = _features(str(file.parent)) if (file.parent / FEATURES).exists() else None
    try:
        with ArrayRecordDataSource(str(file)) as source:
            for start in range(0, len(source), READ):
                for record in source.__getitems__(range(start, min(start + READ, len(source)))):
                    yield record if features is None else _plain(features.deserialize_example_np(record))
    except RuntimeError as error:  # what the reader raises for all that it cannot read
        raise ValueError(str(error).splitlines()[0]) from error


@lru_cache(maxsize=8)
def _features(folder: str) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        what = f"{folder} is a TensorFlow dataset, and tensorflow_datasets is not installed"
        raise SbpError(f"{what}: pip install -r requirements-tfds.txt") from error
    return tfds.features.FeaturesDict.from_config(folder)


def _plain(example: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as other readers give them: text for bytes, Python's numbers for NumPy's.

    Bytes that are no UTF-8 become halves of surrogate pairs, which no document may hold.
    """
    return {name: _value(value) for name, value in example.items()}


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, Mapping):
        return _plain(value)
    return value.item() if getattr(value, "shape", None) == () else value
