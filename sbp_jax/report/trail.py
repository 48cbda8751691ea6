"""The artifacts of an experiment for whoever follows a document through them: found by id, by ordinal, by what it read.

Shards are read one after another, of each the asked columns alone; what stays in memory is what was found.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sbp_jax.accounting.charges import Node
from sbp_jax.artifacts import Artifact
from sbp_jax.config import Experiment
from sbp_jax.errors import SbpError
from sbp_jax.report.results import rows_at

REAL = "documents"  # the instance that holds the real documents
COMPARED = 20_000  # ids of a shard that are compared with one that is nowhere
SUGGESTED = 3
REAL_COLUMNS = ("ordinal", "id", "source", "text")


@dataclass(frozen=True)
class Chain:
    """The instances behind one set of synthetic documents.

    Attributes:
      model: that wrote them.
      synthesized: all that was written.
      synthetic: what the filters made of it.
    """

    model: str
    synthesized: str
    synthetic: str


@dataclass(frozen=True)
class Trail:
    """One experiment.

    Attributes:
      nodes: the stage instances by name, each after its inputs.
      find: gives the artifact of an instance, the same one each time; None until it is complete.
      workdir: where they are, for messages.
    """

    experiment: Experiment
    nodes: Mapping[str, Node]
    find: Callable[[str], Artifact | None]
    workdir: str

    def artifact(self, name: str) -> Artifact:
        """The artifact of an instance.

        Raises:
          SbpError: it is not complete; the message has the command that makes it.
        """
        artifact = self.find(name)
        if artifact is None:
            raise SbpError(f"{name} is not complete in {self.workdir}; run `sbp run ... --until {name}`")
        return artifact

    def of_stage(self, *stages: str) -> list[str]:
        return [name for name, node in self.nodes.items() if node.stage in stages]

    def chains(self) -> list[Chain]:
        found = []
        for name in self.of_stage("filter"):
            synthesized = self.nodes[name].inputs["synthesized"]
            found.append(Chain(self.nodes[synthesized].inputs["model"], synthesized, name))
        return found

    def chain(self, name: str) -> Chain:
        """That with an instance of this name."""
        return next(chain for chain in self.chains() if name in (chain.synthesized, chain.synthetic))

    def missing(self, *stages: str) -> list[str]:
        """Instances of these stages that are not complete."""
        return [name for name in self.of_stage(*stages) if self.find(name) is None]


def matching(
    artifact: Artifact, column: str, values: Sequence[Any], columns: Iterable[str] | None = None, prefix: str = "part"
) -> Iterator[pa.Table]:
    """The rows whose `column` is among the values, a table for each shard that has some.

    Args:
      columns: those to read where there are such rows, left out where the artifact has no such column; None: all.
    """
    sought: pa.Array | None = None
    for path in artifact.shards(".parquet", prefix):
        with path.open("rb") as stream:
            file = pq.ParquetFile(stream)
            held = file.read([column])[column]
            sought = pa.array(values, held.type) if sought is None else sought
            found = pc.is_in(held, sought)
            if pc.any(found).as_py():
                there = file.schema_arrow.names
                yield file.read(None if columns is None else [name for name in columns if name in there]).filter(found)


def holding(artifact: Artifact, column: str, ordinals: Sequence[int], prefix: str = "part") -> Iterator[dict[str, Any]]:
    """The rows, without texts, with one of some real documents in `column` or among their `conditioning` documents."""
    sought = pa.array(ordinals, pa.int64())
    for path in artifact.shards(".parquet", prefix):
        with path.open("rb") as stream:
            file = pq.ParquetFile(stream)
            there = [name for name in (column, "conditioning") if name in file.schema_arrow.names]
            table = file.read(there)
            found = pc.is_in(table[column], sought).to_numpy().copy()
            if "conditioning" in there:
                lists = table["conditioning"].combine_chunks()
                hits = pc.is_in(pc.list_flatten(lists), sought)
                found[pc.list_parent_indices(lists).filter(hits).to_numpy()] = True
            if found.any():
                names = [name for name in file.schema_arrow.names if name != "text"]
                yield from file.read(names).filter(pa.array(found)).to_pylist()


def rows(tables: Iterable[pa.Table]) -> Iterator[dict[str, Any]]:
    for table in tables:
        yield from table.to_pylist()


def real_by_id(trail: Trail, ids: Sequence[str], columns: Sequence[str] = REAL_COLUMNS) -> dict[str, dict[str, Any]]:
    """The rows of real documents by their ids; those that are nowhere are left out."""
    return {row["id"]: row for row in rows(matching(trail.artifact(REAL), "id", ids, columns))}


def real_at(trail: Trail, ordinals: Sequence[int], text: bool = True) -> list[dict[str, Any]]:
    """The rows of real documents by their ordinals, in the order asked."""
    documents = trail.artifact(REAL)
    there = _column_names(documents)
    wanted = [name for name in REAL_COLUMNS if name in there and (text or name != "text")]
    return rows_at(documents, ordinals, wanted) if len(ordinals) else []


def synthetic_by_id(trail: Trail, chain: Chain, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of synthetic documents with the verdict on each: None where they are not filtered yet."""
    kept = trail.find(chain.synthetic)
    if kept is not None:
        accepted = [row | {"verdict": "accepted"} for row in rows(matching(kept, "id", ids))]
        return accepted + list(rows(matching(kept, "id", ids, prefix="rejected")))
    written = trail.find(chain.synthesized)
    return [] if written is None else [row | {"verdict": None} for row in rows(matching(written, "id", ids))]


def unknown(trail: Trail, asked: str) -> SbpError:
    """The error for an id that is nowhere: near ones, and which instances could not be looked into."""
    places = [REAL]
    for chain in trail.chains():
        places.append(chain.synthetic if trail.find(chain.synthetic) is not None else chain.synthesized)
    near: set[str] = set()
    for name in places:
        near |= _near(trail.find(name), asked, ("part", "rejected"))
    chosen = difflib.get_close_matches(asked, sorted(near), n=SUGGESTED, cutoff=0.0)
    names = (
        difflib.get_close_matches(asked.partition(":")[0], list(trail.nodes), n=1, cutoff=0.7) if ":" in asked else []
    )
    message = f"no document has the id {asked}"
    if names and names[0] != asked.partition(":")[0]:
        message += f", and no stage instance that name; did you mean {names[0]}:{asked.partition(':')[2]}"
    elif chosen:
        message += f"; did you mean {' or '.join(chosen)}"
    else:
        message += f"; ids are those of {', '.join(places)}, and training examples such as rows-synthetic:12"
    missing = [name for name in places if trail.find(name) is None]
    if missing:
        commands = ", ".join(f"`sbp run ... --until {name}`" for name in missing)
        message += f". Not complete yet and not searched: {', '.join(missing)}; run {commands}"
    return SbpError(message)


def _near(artifact: Artifact | None, asked: str, prefixes: Iterable[str]) -> set[str]:
    """A few ids that look like one: the same but for case, a longer one, or one of about its length."""
    near: set[str] = set()
    for prefix in prefixes if artifact is not None else ():
        for path in artifact.shards(".parquet", prefix) if artifact is not None else ():
            with path.open("rb") as stream:
                ids = pq.read_table(stream, columns=["id"])["id"]
            longer = ids.filter(pc.starts_with(ids, asked)).slice(0, SUGGESTED).to_pylist()
            lengths = pc.abs(pc.subtract(pc.utf8_length(ids), len(asked)))
            alike = ids.filter(pc.less_equal(lengths, 2)).slice(0, COMPARED).to_pylist()
            lowered = {entry.lower(): entry for entry in alike}
            close = difflib.get_close_matches(asked.lower(), list(lowered), n=SUGGESTED, cutoff=0.75)
            near |= {*longer, *(lowered[entry] for entry in close)}
    return near


def _column_names(artifact: Artifact) -> list[str]:
    for path in artifact.shards(".parquet")[:1]:
        with path.open("rb") as stream:
            return pq.ParquetFile(stream).schema_arrow.names
    return []
