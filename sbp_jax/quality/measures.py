"""What is measured, in words: the definitions that a reader of the numbers needs, each beside its label and unit."""

from dataclasses import dataclass

from sbp_jax.quality.corpus import NEAREST, NOVEL
from sbp_jax.quality.duplicates import NEAR
from sbp_jax.quality.relevance import QUANTILE
from sbp_jax.quality.variety import DISTINCT, OPENING, PASSAGE

QUALITY, JUDGED = "quality.json", "judged.json"  # files of the two stages
HEAVY = 0.2  # share of 4-word n-grams that repeat an earlier one, above which a document repeats itself
LONGEST_N = 1_000_000  # N of Duplicate@N, where the sets are as large
SMALLER, GREATER, NEITHER = "smaller", "greater", None


@dataclass(frozen=True)
class Measure:
    """A column of the table.

    Attributes:
      label: a few words.
      definition: exactly what it is.
      unit: "share" (a fraction of 1), "words", "tokens", or "" for a pure number.
      better: "smaller" or "greater" where one of them is; None where only the distance to real text says something.
    """

    label: str
    definition: str
    unit: str
    better: str | None


_SHINGLES = "13-word shingles"
MEASURES = {
    "repetition_rate": Measure(
        "repetition rate",
        f"documents of which more than {HEAVY:.0%} of the 4-word n-grams repeat an earlier one of the same document",
        "share",
        SMALLER,
    ),
    "repetition": Measure(
        "repeated n-grams",
        "mean share of a document's 4-word n-grams that repeat an earlier one of it; 0 where it has none",
        "share",
        SMALLER,
    ),
    "duplicates": Measure(
        "Duplicate@N",
        "expected share of documents that have a near-duplicate among N documents of their kind, N being the same for"
        f" all kinds; a near-duplicate shares {NEAR:.0%} of the distinct {_SHINGLES} of the smaller, or is as empty",
        "share",
        SMALLER,
    ),
    "duplicates_all": Measure("Duplicate@all", "as Duplicate@N, among all documents of the kind", "share", SMALLER),
    "pair_copying": Measure(
        "pair copying",
        f"documents that share {NEAR:.0%} of the distinct {_SHINGLES} of the smaller one with a document that was read"
        " for them, or that are shorter than a shingle and, with 5 words or more, one run of it; in real pairs those"
        " were rejected",
        "share",
        SMALLER,
    ),
    "seed_overlap": Measure(
        "overlap with what was read",
        f"mean share of a document's distinct {_SHINGLES} that are in any document that was read for it",
        "share",
        SMALLER,
    ),
    "seed_run": Measure(
        "longest run of what was read",
        "mean number of words of the longest run that a document has in common with one that was read for it",
        "words",
        SMALLER,
    ),
    "unrelated": Measure(
        "pair irrelevance",
        f"documents no nearer to their seed than the {QUANTILE:.0%} quantile of random pairs of real documents, by the"
        " cosine of embeddings",
        "share",
        SMALLER,
    ),
    "similarity": Measure("similarity to the seed", "mean cosine of the embeddings of seed and document", "", NEITHER),
    "unrelated_words": Measure(
        "pair irrelevance by words",
        "as pair irrelevance, by the cosine of the words that both have, weighted by rarity among real documents",
        "share",
        SMALLER,
    ),
    "similarity_words": Measure("similarity by words", "mean of that cosine", "", NEITHER),
    "copied": Measure(
        "copied from the corpus",
        f"mean share of a document's distinct {_SHINGLES} that are in any capped document but itself",
        "share",
        SMALLER,
    ),
    "corpus_copying": Measure(
        "copies of a real document",
        f"documents that share {NEAR:.0%} of the distinct {_SHINGLES} of the smaller one with one capped document other"
        f" than themselves; looked for among the {NEAREST} that share most",
        "share",
        SMALLER,
    ),
    "corpus_run": Measure(
        "longest run of the corpus",
        f"mean number of words of the longest run in common with one of the {NEAREST} capped documents that share most"
        " shingles; 0 where it is below 13",
        "words",
        SMALLER,
    ),
    "held_out": Measure(
        "held-out text",
        f"mean share of a document's distinct {_SHINGLES} that are in a validation or test document but itself, and in"
        " no capped one but itself",
        "share",
        SMALLER,
    ),
    "contaminated": Measure(
        "contamination",
        "documents that hold an item of a set in pairs.decontaminate or of a task; null where nobody looked",
        "share",
        SMALLER,
    ),
    **{
        f"novel_{length}": Measure(
            f"novel {length}-grams",
            f"distinct {length}-word n-grams of documents that are in no capped document but itself, over all of them",
            "share",
            NEITHER,
        )
        for length in NOVEL
    },
    "words": Measure("words", "mean number of words of a document", "words", NEITHER),
    "tokens": Measure("tokens", "mean number of tokens of a document, without its end", "tokens", NEITHER),
    "finished": Measure("finished", "documents that end where the model ended them", "share", GREATER),
    **{
        f"distinct_{length}": Measure(
            f"distinct-{length}",
            f"different {length}-word n-grams over all of them, in as many words of each kind of documents",
            "share",
            NEITHER,
        )
        for length in DISTINCT
    },
    "opening": Measure(
        "most frequent opening",
        f"documents that begin with the same {OPENING} words as most others do, of as many documents of each kind",
        "share",
        SMALLER,
    ),
    "passage": Measure(
        "most frequent passage",
        f"documents that hold the run of {PASSAGE} words which most of them hold, of as many documents of each kind",
        "share",
        SMALLER,
    ),
    "compression": Measure(
        "compression",
        "bytes over the bytes that zstd (level 9, long matches) makes of them, in as many bytes of each kind",
        "",
        SMALLER,
    ),
    "other_language": Measure(
        "other language",
        "documents in another language than their seed, of those where both are known",
        "share",
        NEITHER,
    ),
}
