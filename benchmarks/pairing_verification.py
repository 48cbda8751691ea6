"""Near-duplicates: hashing documents of 4 KB into shingles, and comparing pairs of documents by them.

`benchmarks/pairing.py` runs what `measured` lists. All are held to one core, and read the same texts: windows over the
articles of `data/wikipedia_vital`, each of which overlaps with the next, so that pairs have something to share.
"""

from collections.abc import Iterator

from train import PEERS, ROOT, Measured, peer

SCRIPT = str(ROOT / "benchmarks" / "ours_shingles.py")


def measured() -> Iterator[tuple[str, list[Measured], str]]:
    """Title, what to run in turns, and the figure of each comparison."""
    titles = {
        "documents_per_second": "Documents of 4 KB hashed a second, one core (ratio: higher is better; wanted: 4,000)",
        "pairs_per_second": "Pairs of them compared a second, one core (ratio: higher is better; wanted: 150,000)",
    }
    for figure, title in titles.items():
        both = [Measured("ours", None, (SCRIPT, figure)), Measured("Python sets", None, (_script("sets"), figure))]
        both += [peer(name, "minhash", "shingle_minhash.py", figure, name) for name in ("datasketch", "rensa")]
        yield title, both, figure


def _script(name: str) -> str:
    return str(PEERS / f"shingle_{name}.py")
