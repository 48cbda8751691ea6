"""Sets of tuples of 13 words, with nothing but Python: exact, as ours.

python benchmarks/peers/shingle_sets.py documents_per_second|pairs_per_second
"""

import json
import re
import sys

from stopwatch import versions
from windows import documents, pairs, per_second

WORD = re.compile(r"\w+")


def shingles(text: str) -> set[tuple[str, ...]]:
    words = WORD.findall(text.lower())
    return set(zip(*(words[start:] for start in range(13)), strict=False))


def main() -> None:
    texts = documents()
    if sys.argv[1] == "documents_per_second":
        value = per_second(len(texts), lambda: [shingles(text) for text in texts])
    else:
        sets, both = [shingles(text) for text in texts], pairs()
        value = per_second(len(both), lambda: [len(sets[d1] & sets[d2]) for d1, d2 in both])
    print(json.dumps({sys.argv[1]: value, "versions": versions(())}))


if __name__ == "__main__":
    main()
