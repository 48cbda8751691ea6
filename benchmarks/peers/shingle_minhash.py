"""MinHash of 128 permutations over shingles of 13 words: an estimate of Jaccard, not of containment.

python benchmarks/peers/shingle_minhash.py documents_per_second|pairs_per_second datasketch|rensa
"""

import json
import re
import sys
from typing import Any

import datasketch
import rensa
from stopwatch import versions
from windows import documents, pairs, per_second

WORD = re.compile(r"\w+")
PERMUTATIONS = 128


def shingles(text: str) -> list[str]:
    words = WORD.findall(text.lower())
    return [" ".join(words[start : start + 13]) for start in range(len(words) - 12)]


def by_datasketch(text: str) -> Any:
    found = datasketch.MinHash(PERMUTATIONS)
    found.update_batch([shingle.encode() for shingle in shingles(text)])
    return found


def by_rensa(text: str) -> Any:
    found = rensa.RMinHash(PERMUTATIONS, 0)
    found.update(shingles(text))
    return found


def main() -> None:
    figure, name = sys.argv[1:]
    sketch = {"datasketch": by_datasketch, "rensa": by_rensa}[name]
    texts = documents()
    if figure == "documents_per_second":
        value = per_second(len(texts), lambda: [sketch(text) for text in texts])
    else:
        sketches, both = [sketch(text) for text in texts], pairs()
        value = per_second(len(both), lambda: [sketches[d1].jaccard(sketches[d2]) for d1, d2 in both])
    print(json.dumps({figure: value, "versions": versions((name,))}))


if __name__ == "__main__":
    main()
