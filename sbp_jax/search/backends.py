"""The three searches behind one function, and the choice between them."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from sbp_jax.config import Neighbors
from sbp_jax.parallel import hosts, machine
from sbp_jax.search import bucketed, exact, partitioned, scann_search
from sbp_jax.search.vectors import Stored

EXACT_BELOW = 4096  # documents; on a CPU nothing is faster for so few
EXACT_UP_TO = 200_000  # documents on a CPU without ScaNN: minutes
EXACT_SECONDS = 3600.0  # that the exact search may take on accelerators to be chosen there
PRODUCTS = 50e12  # floating-point operations a second of an accelerator in the exact search, cautiously
SHARE = 0.5  # of a memory that the search may use

Search = Callable[[int, int], tuple[np.ndarray, np.ndarray]]  # start, stop to indices and similarities [Q, K]


@dataclass(frozen=True)
class Choice:
    """The search to use, why, and what decides its result."""

    backend: str
    reason: str
    settings: dict[str, Any]


def choose(n: int, width: int, neighbors: Neighbors, devices: int, memory: int | None = None) -> Choice:
    """The backend that `neighbors.backend` names, or else the one that suits these machines.

    Args:
      n: documents.
      devices: of all hosts.
      memory: bytes of a host; None: those of the first one, since all hosts have to choose alike.
    """
    memory = hosts.first_says(machine.memory() >> 20) << 20 if memory is None else memory
    if neighbors.backend == "auto":
        limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)
        backend, reason = suited(n, width, neighbors.top_k, devices, jax.default_backend(), limit, memory)
    else:
        backend, reason = neighbors.backend, "neighbors.backend"
    unavailable = scann_search.unavailable() if backend == "scann" else None
    if hosts.first_says(unavailable is not None):
        long = neighbors.backend == "auto" and n > EXACT_UP_TO
        backend, reason = "bucketed" if long else "exact", f"ScaNN cannot be imported: {unavailable}"
    elif backend == "scann" and n < scann_search.SMALLEST:
        backend, reason = "exact", f"fewer than {scann_search.SMALLEST} documents, too few to learn hashes from"
    if backend == "exact":
        settings = {"top_k": min(neighbors.top_k, n - 1), "platform": jax.default_backend()}
    elif backend == "bucketed":
        settings = asdict(bucketed.settings(n, width, neighbors))
    else:
        settings = asdict(scann_search.settings(n, neighbors))
        settings["partitions"] = partitioned.partitions_for(n, width, int(SHARE * memory))
    return Choice(backend, reason, settings)


def start(
    choice: Choice,
    stored: Stored,
    neighbors: Neighbors,
    meshes: tuple[Mesh, Mesh],
    folder: Path,
    process: int = 0,
    processes: int = 1,
) -> Search:
    """Builds what the search needs, or finds it in the folder, and gives the search of a range of the vectors.

    Args:
      meshes: over all devices, which the exact search uses with all hosts at once, and over this host's.
      folder: on a disk that all hosts share.
    """
    everywhere, here = meshes
    if choice.backend == "exact":
        resident = exact.place(stored.rows, 0, len(stored), stored.width, everywhere)
        return lambda start, stop: exact.search(resident, np.arange(start, stop), neighbors.top_k)
    if choice.backend == "bucketed":
        settings = bucketed.settings(len(stored), stored.width, neighbors)
        join = bucketed.Bucketed(stored, settings, here, folder, process, processes)
        join.prepare()
        return join.search
    if (partitions := choice.settings["partitions"]) > 1:
        parts = partitioned.Partitioned(stored, neighbors, partitions, here, folder, process, processes)
        parts.prepare()
        return parts.search
    chosen = scann_search.settings(len(stored), neighbors)
    own = folder / f"host-{process}"
    own.mkdir(parents=True, exist_ok=True)
    vectors_ND = stored.mapped(own)
    index = scann_search.opened(vectors_ND, chosen, stored.fingerprint, own / "scann")
    return lambda start, stop: scann_search.search(index, vectors_ND, np.arange(start, stop), chosen)


def suited(
    n: int, width: int, top_k: int, devices: int, platform: str, device_memory: int, host_memory: int
) -> tuple[str, str]:
    """The backend to use on such machines, and why; `sbp plan pairs` asks it too.

    Args:
      devices: of all hosts.
      platform: of the devices, as JAX names it.
      device_memory, host_memory: bytes of each.
    """
    if n < EXACT_BELOW or n <= 2 * (top_k + 1):
        return "exact", f"fewer than {EXACT_BELOW:,} documents"
    if platform != "cpu":
        seconds = 2.0 * n * n * width / (PRODUCTS * devices)
        if 4 * width * math.ceil(n / devices) >= SHARE * device_memory:  # a rounded copy takes half as much again
            return "bucketed", f"{devices} devices ({platform}) do not hold all vectors"
        if seconds >= EXACT_SECONDS:
            return "bucketed", f"the exact search would take about {seconds / 3600:,.1f} h on {devices} devices"
        return "exact", f"about {seconds:,.0f} s on {devices} devices ({platform}) that hold all vectors"
    if n >= bucketed.LARGE:
        return "bucketed", f"{bucketed.LARGE:,} documents or more, which it finds more of in less time and memory"
    if partitioned.partitions_for(n, width, int(SHARE * host_memory)) == 1:
        return "scann", f"{n:,} documents, whose index fits into the memory of a host"
    return "bucketed", "an index would not fit into the memory of a host, and its buckets are on disk"
