"""A plan for finding pairs: which search, what it holds, computes and writes, and how long that takes.

All of it is arithmetic; docs/planning.md gives the formulas and what they were compared with.
Legend: N documents, D width, K neighbours of each, S buckets of a document, B buckets.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

from sbp_jax.accounting import formulas
from sbp_jax.config import Model, Neighbors
from sbp_jax.errors import SbpError
from sbp_jax.model.encoder import Bert
from sbp_jax.model.parameters import count
from sbp_jax.planning.topology import GIB, slice_of
from sbp_jax.search import backends, bucketed, exact, partitioned, scann_search
from sbp_jax.text.shingles import WORDS
from sbp_jax.training.flops import peak_flops

CHIPS_A_HOST = 4  # of a TPU slice
PASSES = 6  # of bfloat16 that a float32 product at the highest precision takes on a TPU
CORE_FLOPS = 40e9  # float32 operations a second of a CPU core in a matrix product
QWEN3_EMBEDDING = Model(width=1024, layers=28, heads=16, kv_heads=8, head_dim=128, ffn=3072)
QWEN3_VOCABULARY, BERT_VOCABULARY = 151_669, 30_522
EMBEDDERS = {"all-minilm-l6-v2": 384, "qwen3-embedding-0.6b": 1024, "none": None}  # width; none: the user's own vectors
# Bytes of a row on disk, compressed, as measured; those of an ordinal of N documents are `_ordinal`.
NEIGHBOR, PAIR, SCREENED, SHINGLE, OFFSET = 5.6, 14.0, 8.0, 12, 8


@dataclass(frozen=True)
class Corpus:
    """What pairs are to be found in.

    Attributes:
      tokens: of a document that are embedded, on average.
      words: of a document, on average.
      kept: neighbours that become rows of `pairs`, accepted or not, as a fraction.
    """

    documents: int
    width: int
    top_k: int
    tokens: int
    words: int
    kept: float


@dataclass(frozen=True)
class Machines:
    """What they are to be found on.

    Attributes:
      devices: accelerators as JAX counts them, or one a host where the CPU computes.
      device_memory: bytes of each; 0 where the CPU computes.
      flops: dense bfloat16 operations a second of an accelerator, float32 ones of a host's cores.
      host_memory: bytes; None: not known.
    """

    name: str
    platform: str
    hosts: int
    devices: int
    chips: int
    device_memory: int
    flops: float
    host_memory: int | None


def slice_machines(topology: str, host_memory: int | None) -> Machines:
    """A TPU slice such as "v5p:4x4x8".

    Raises:
      SbpError: there is no such slice.
    """
    chip, chips = slice_of(topology)
    peak = peak_flops(chip.kind)
    assert peak is not None, chip.kind
    hosts, devices = math.ceil(chips / CHIPS_A_HOST), chips * chip.devices
    return Machines(topology, "tpu", hosts, devices, chips, int(chip.memory_gib * GIB), peak, host_memory)


def cpu_machines(hosts: int, host_memory: int, cores: int) -> Machines:
    name = f"{hosts:,} host{'s' if hosts > 1 else ''} of {cores} cores and {host_memory / GIB:,.0f} GiB"
    return Machines(name, "cpu", hosts, hosts, 0, 0, cores * CORE_FLOPS, host_memory)


def plan(corpus: Corpus, machines: Machines, embedder: str | None, utilisation: float) -> dict[str, Any]:
    """The plan as plain values: bytes, seconds, operations.

    Args:
      embedder: one of EMBEDDERS; None: the smallest that gives such a width.
      utilisation: share of an accelerator's peak that embedding reaches.

    Raises:
      SbpError: the embedder gives no vectors of that width.
    """
    chosen, reason = backends.suited(
        corpus.documents,
        corpus.width,
        corpus.top_k,
        machines.devices,
        machines.platform,
        machines.device_memory,
        machines.host_memory or 0,  # of no account where there are accelerators
    )
    searches = {name: estimate(corpus, machines) for name, estimate in SEARCHES.items()}
    embedded = _embedding(corpus, machines, _embedder(corpus.width, embedder), utilisation)
    return {
        "corpus": asdict(corpus),
        "machines": asdict(machines),
        "utilisation": utilisation,
        "backend": chosen,
        "reason": reason,
        "embedding": embedded,
        "searches": searches,
        "written": written(corpus),
    }


def written(corpus: Corpus) -> dict[str, int]:
    """Bytes that stay on disk, by what they hold."""
    documents, shingles = corpus.documents, max(corpus.words - WORDS + 1, 1)
    neighbors = documents * min(corpus.top_k, documents - 1)
    ordinal = _ordinal(documents)
    return {
        "embeddings": documents * 4 * corpus.width,
        "neighbors": round(neighbors * (NEIGHBOR + ordinal)),
        "screened": round(documents * (SCREENED + OFFSET + SHINGLE * shingles)),
        "pairs": round(neighbors * corpus.kept * (PAIR + ordinal)),
    }


def _ordinal(documents: int) -> float:
    """Bytes of an arbitrary document's ordinal in a compressed column."""
    return math.log2(documents) / 5


def _exact(corpus: Corpus, machines: Machines) -> dict[str, Any]:
    """Every vector against every other, in bfloat16 on accelerators; the candidates again, on every device."""
    n, width, devices = corpus.documents, corpus.width, machines.devices
    each, products = math.ceil(n / devices), formulas.exact_search(n, width, corpus.top_k, devices)
    number = 4 if machines.platform == "cpu" else 4 + 2  # those that are scanned are rounded, once
    block = exact.QUERIES * exact.BLOCK * 4 * 2
    seconds = products / _speed(machines, machines.hosts)
    host = 8 * n + 4 * each * width * machines.devices / machines.hosts  # while the devices are filled
    return _search(machines, products, seconds, number * each * width + block, host, 0)


def _bucketed(corpus: Corpus, machines: Machines) -> dict[str, Any]:
    """Centroids from a sample, on one host; every vector against them and every bucket with itself, on all of them."""
    n, width, k = corpus.documents, corpus.width, corpus.top_k
    chosen = bucketed.settings(n, width, Neighbors(top_k=k))
    trained, assigned, joined = formulas.bucketed_search(n, width, asdict(chosen)).values()
    passes = PASSES if machines.platform == "tpu" else 1
    seconds = trained / _speed(machines, 1) + (assigned + passes * joined) / _speed(machines, machines.hosts)
    entries = math.ceil(chosen.spill * n / chosen.groups)
    group = entries * (4 * width + 12 + 2 * 12 * k)
    sample = 2 * 4 * chosen.sample * width
    device = 4 * width * (chosen.sample * machines.hosts / machines.devices + chosen.buckets)
    disk = chosen.spill * n * (4 * width + 12 + 8 + 8 * k)
    made = _search(machines, trained + assigned + joined, seconds, device, 8 * n + max(group, sample), disk)
    return made | {"settings": asdict(chosen)}


def _scann(corpus: Corpus, machines: Machines) -> dict[str, Any]:
    """For each query the leaves, one look-up for two dimensions of each vector in those searched, and the best anew."""
    n, width = corpus.documents, corpus.width
    memory = machines.host_memory
    parts = partitioned.partitions_for(n, width, int(backends.SHARE * memory)) if memory else 1
    inside = math.ceil(n / parts)
    chosen = scann_search.settings(inside, Neighbors(top_k=corpus.top_k))
    flops = formulas.scann_search(n, width, asdict(chosen) | {"partitions": parts})
    seconds = flops / _speed(machines, machines.hosts) if machines.platform == "cpu" else None
    disk = (4 * width + 12) * n * (min(partitioned.ROUTED, parts) if parts > 1 else machines.hosts)
    held = partitioned.BUILDING * 4 * inside * width + 8 * n
    made = _search(machines, flops, seconds, 0, held, disk)
    return made | {"settings": asdict(chosen) | {"partitions": parts}}


SEARCHES = {"exact": _exact, "bucketed": _bucketed, "scann": _scann}


def _search(
    machines: Machines, flops: float, seconds: float | None, device: float, host: float, disk: float
) -> dict[str, Any]:
    """What one search takes; bytes of a device and of a host, and on a disk that are freed at the end."""
    return {
        "flops": float(flops),
        "device_bytes": round(device) if machines.chips else None,
        "host_bytes": round(host),
        "scratch_bytes": round(disk),
    } | _time(machines, seconds)


def _speed(machines: Machines, hosts: int) -> float:
    """Operations a second of so many of the hosts in a search."""
    each = backends.PRODUCTS if machines.platform == "tpu" else machines.flops
    return each * machines.devices * hosts / machines.hosts


def _time(machines: Machines, seconds: float | None) -> dict[str, float | None]:
    """`seconds` None: not known."""
    units = {"chip_hours": machines.chips, "host_hours": machines.hosts}
    hours = {name: None if seconds is None else seconds * number / 3600 for name, number in units.items()}
    return {"seconds": seconds} | hours


def _embedder(width: int, name: str | None) -> str:
    fitting = [embedder for embedder, largest in EMBEDDERS.items() if largest is None or largest >= width]
    if name is not None and name not in fitting:
        raise SbpError(f"--embedder {name} gives vectors of {EMBEDDERS[name]} numbers, not of {width}; lower --width")
    return name or fitting[0]


def _embedding(corpus: Corpus, machines: Machines, name: str, utilisation: float) -> dict[str, Any]:
    """Operations of embedding every document, forward alone."""
    flops = corpus.documents * corpus.tokens * embedder_flops(name, corpus.tokens)
    speed = machines.flops * (utilisation if machines.platform == "tpu" else 1)
    made = {"embedder": name, "parameters": embedder_parameters(name), "flops": flops}
    return made | _time(machines, flops / (speed * machines.devices))


def embedder_flops(name: str, tokens: int) -> float:
    """Operations for a token of a document of so many: 2 a parameter of a product, and attention."""
    if name == "none":
        return 0.0
    token, square = formulas.embedder(QWEN3_EMBEDDING if name == "qwen3-embedding-0.6b" else Bert())
    return token + tokens * square


def embedder_parameters(name: str) -> int:
    if name == "none":
        return 0
    if name == "qwen3-embedding-0.6b":
        return count(QWEN3_EMBEDDING, QWEN3_VOCABULARY)
    bert = Bert()
    layer = 4 * bert.width**2 + 2 * bert.width * bert.ffn + bert.ffn + 9 * bert.width
    return bert.layers * layer + bert.width * (BERT_VOCABULARY + bert.positions + 2 + 2)
