"""Safetensors files, read and written a piece at a time, so that a model is never held as a whole to move it.

A file is eight bytes with the length of a JSON header, the header, and the tensors' bytes in its order. Pieces go
through ordinary reads and writes: nothing is mapped into memory, and a bucket will do. A folder has one
`model.safetensors`, or several files and an index that says which tensor is in which.

Legend: R rows of a tensor, C columns; a tensor of one dimension has one column.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from etils import epath

from sbp_jax.errors import SbpError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BLOCK = 1 << 26  # bytes read or written at a time
DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: its file, dtype in the file's words, shape, first byte."""

    file: epath.Path
    dtype: str
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Source:
    """A tensor to be written: its name, shape and dtype, and what gives its rows in order, some at a time."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Callable[[], Iterable[np.ndarray]]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize


def files(folder: epath.Path) -> list[epath.Path]:
    """The files that hold the tensors of a folder, the index among them.

    Raises:
      SbpError: there are none, the index is damaged, or it names a file that is not there.
    """
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        raise SbpError(
            f"{folder} has neither {WEIGHTS} nor {INDEX}; give the folder of a model that `save_pretrained` of"
            " transformers wrote (models in .bin or .gguf files have to be loaded and saved by it once)"
        )
    shards = sorted(set(_weight_map(folder).values()))
    missing = [name for name in shards if not (folder / name).exists()]
    if missing:
        raise SbpError(f"{folder} lacks {', '.join(missing)}, which {INDEX} names; copy the model again, whole")
    return [folder / INDEX, *(folder / name for name in shards)]


def tensors(folder: epath.Path) -> dict[str, Tensor]:
    """All tensors of a folder by name; only headers are read.

    Raises:
      SbpError: a file is missing, damaged or cut off, or does not hold what the index says.
    """
    found: dict[str, Tensor] = {}
    paths = [path for path in files(folder) if path.name != INDEX]
    for path in paths:
        for name, tensor in _header(path).items():
            if name in found:
                raise SbpError(f"{name} is in {found[name].file} and in {path}; copy the model again, whole")
            found[name] = tensor
    if paths[0].name != WEIGHTS:
        for name, shard in _weight_map(folder).items():
            if name not in found or found[name].file.name != shard:
                raise SbpError(
                    f"{folder / shard} has no tensor {name}, which {INDEX} says; copy the model again, whole"
                )
    return found


def blocks(tensor: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Iterator[tuple[int, np.ndarray]]:
    """A part of a tensor, some rows at a time: the number of the first row, and [R, C] in the file's dtype.

    Raises:
      SbpError: the file ends before the tensor does.
    """
    dtype, width = DTYPES[tensor.dtype], tensor.shape[1] if len(tensor.shape) > 1 else 1
    step = max(1, BLOCK // (width * dtype.itemsize))
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.start + rows[0] * width * dtype.itemsize)
        for first in range(rows[0], rows[1], step):
            size = (min(first + step, rows[1]) - first) * width * dtype.itemsize
            block = np.frombuffer(_exactly(stream, size, tensor.file), dtype).reshape(-1, width)
            yield first, block[:, columns[0] : columns[1]]


def plan(sources: Sequence[Source], largest: int) -> dict[str, list[Source]]:
    """Which tensors go into which file, in order, each file of at most `largest` bytes or of one tensor."""
    shards: list[list[Source]] = [[]]
    size = 0
    for source in sources:
        if shards[-1] and size + source.bytes > largest:
            shards.append([])
            size = 0
        shards[-1].append(source)
        size += source.bytes
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{place:05d}-of-{len(shards):05d}.safetensors": shard for place, shard in enumerate(shards, 1)}


def index(shards: Mapping[str, Sequence[Source]]) -> dict[str, Any]:
    """The content of the index of several files."""
    weight_map = {source.name: name for name, shard in shards.items() for source in shard}
    size = sum(source.bytes for shard in shards.values() for source in shard)
    return {"metadata": {"total_size": size}, "weight_map": weight_map}


def write(stream: BinaryIO | None, sources: Sequence[Source]) -> None:
    """Writes one file, a piece of a tensor at a time; None: gathers the pieces all the same, for others to write."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file that does not say so
    end = 0
    for source in sources:
        start, end = end, end + source.bytes
        header[source.name] = {
            "dtype": _NAMES[source.dtype],
            "shape": list(source.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors start at a multiple of eight bytes
    if stream:
        stream.write(len(text).to_bytes(8, "little") + text)
    for source in sources:
        for piece in source.pieces():
            if stream:
                stream.write(np.ascontiguousarray(piece, source.dtype).view(np.uint8).data)


def _weight_map(folder: epath.Path) -> dict[str, str]:
    damaged = SbpError(f"{folder / INDEX} is damaged; copy the model again, whole")
    try:
        weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise damaged from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise damaged
    if not all(isinstance(name, str) and name == epath.Path(name).name for name in weight_map.values()):
        raise damaged
    return weight_map


def _header(path: epath.Path) -> dict[str, Tensor]:
    damaged = f"{path} is damaged or cut off; copy the model again, whole"
    length = path.stat().length
    with path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > length - 8:
            raise SbpError(damaged)
        text = stream.read(size)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        found, end = {}, 0
        for name, entry in header.items():
            shape, (first, last) = tuple(entry["shape"]), entry["data_offsets"]
            found[name] = Tensor(path, entry["dtype"], shape, 8 + size + first)
            itemsize = DTYPES[entry["dtype"]].itemsize if entry["dtype"] in DTYPES else None
            if not 0 <= first <= last or (itemsize and last - first != int(np.prod(shape)) * itemsize):
                raise ValueError(name)
            end = max(end, last)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SbpError(damaged) from error
    if length != 8 + size + end:
        raise SbpError(damaged)
    return found


def _exactly(stream: BinaryIO, size: int, path: epath.Path) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise SbpError(f"{path} is cut off; copy the model again, whole")
    return data
