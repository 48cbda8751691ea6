"""Pairs: copies and what does not fit are rejected with evidence, too few are an error, parts share no seed."""

import numpy as np
import pyarrow as pa
import pytest
from etils import epath

from sbp_jax.artifacts import Artifact, Output, Recipe, arrayrecord, parquet
from sbp_jax.config import Execution, Pairs, Tokenizer
from sbp_jax.data.rows import RowSource
from sbp_jax.errors import SbpError
from sbp_jax.stages import group, pack_pairs, pairs, screen
from sbp_jax.text.tokenizer import TextTokenizer, train

SETTINGS = Tokenizer(vocab_size=300)


def sentence(seed: int, words: int = 40) -> str:
    return " ".join(f"word{number}" for number in np.random.default_rng(seed).integers(0, 10**6, words))


class Corpus:
    """Documents, what was screened of them, their tokens (as many as words) and neighbours, as artifacts."""

    def __init__(
        self,
        folder,
        texts: list[str],
        neighbors: list[tuple[int, int, float]],
        per_shard: int = 100,
        sources: list[str] | None = None,
        evaluations: tuple[str, ...] = (),
    ):
        self.folder = folder
        names = ("ingest", "splits", "tokens", "nn", "tokenizer")
        documents, splits, tokens, found, tokenizer = map(self.output, names)
        for shard, first in enumerate(range(0, len(texts), per_shard)):
            ordinals = list(range(first, min(first + per_shard, len(texts))))
            columns = {
                "text": [texts[i] for i in ordinals],
                "source": [(sources or ["s"] * len(texts))[i] for i in ordinals],
            }
            for output, more in ((documents, columns), (splits, {"split": ["capped"] * len(ordinals)})):
                part = pa.table({"ordinal": ordinals} | more)
                output.shard(shard, ".parquet", lambda writing, part=part: parquet.write(writing, part))
        self.ids = [(1000 * place + np.arange(len(text.split()))).astype("<i4") for place, text in enumerate(texts)]
        tokens.shard(0, ".array_record", lambda writing: arrayrecord.write(writing, [i.tobytes() for i in self.ids]))
        neighbors = sorted(neighbors, key=lambda found: (found[0], -found[2], found[1]))
        bounds = [i for i in range(len(neighbors)) if i == 0 or neighbors[i][0] != neighbors[i - 1][0]]
        bounds = [b for i, b in enumerate(bounds) if i % max(1, per_shard // 10) == 0] + [len(neighbors)]
        for shard, (first, last) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
            query, neighbor, similarity = zip(*neighbors[first:last], strict=True)
            part = pa.table({"query": query, "neighbor": neighbor, "similarity": pa.array(similarity, pa.float32())})
            found.shard(shard, ".parquet", lambda writing, part=part: parquet.write(writing, part))
        self.text_tokenizer: TextTokenizer = train(texts, SETTINGS)
        with tokenizer.writing("tokenizer.json") as writing:
            self.text_tokenizer.save(writing.path)
        counts = {"bytes": 600, "tokens": 100, "documents": len(self.ids)}
        self.tokens, self.neighbors, self.tokenizer = tokens.finish(counts), found.finish(), tokenizer.finish()
        self.screened = screen.run(
            self.output("screened"),
            documents=documents.finish(),
            splits=splits.finish(),
            evaluations=screen.Evaluations(evaluations),
            execution=Execution(),
        )

    def output(self, name: str) -> Output:
        return Output(epath.Path(self.folder / name), Recipe(name, 1, {}, {}), name)

    def pairs(self, settings: Pairs, context: int = 200, name: str = "pairs", window: bool = True) -> Artifact:
        inputs = {"neighbors": self.neighbors, "screened": self.screened, "tokens": self.tokens}
        config = {"pairs": settings, "context": context, "window": window}
        return pairs.run(self.output(name), **inputs, **config, execution=Execution())

    def verdicts(self, settings: Pairs, name: str = "pairs", window: bool = True) -> dict[tuple[int, int], str]:
        table = parquet.read(self.pairs(settings, name=name, window=window)).to_pylist()
        return {(row["d1"], row["d2"]): row["verdict"] for row in table}

    def group(self, accepted: Artifact, name: str = "groups", **config) -> Artifact:
        config = {"conditioning": 1, "near_duplicate": 0.5, "common": 10, "validation": 0.3, "context": 200} | config
        inputs = {"pairs": accepted, "screened": self.screened, "tokens": self.tokens}
        return group.run(self.output(name), **inputs, **config, execution=Execution())

    def pack(
        self, accepted: Artifact, part: str, validation: float = 0.3, context: int = 200, seed: int = 0, **config
    ) -> Artifact:
        name = f"{part}{seed}{validation}{context}{config}"
        config |= {"validation": validation, "context": context, "seed": seed}
        return self.pack_groups(self.group(accepted, f"groups{name}", **config), name, part, context, seed)

    def pack_groups(self, grouped: Artifact, name: str, part: str, context: int = 200, seed: int = 0) -> Artifact:
        return pack_pairs.run(
            self.output(name),
            groups=grouped,
            tokens=self.tokens,
            tokenizer=self.tokenizer,
            settings=SETTINGS,
            part=part,
            context=context,
            seed=seed,
            execution=Execution(),
        )


def test_planted_copies_and_long_pairs_are_rejected_with_evidence(tmp_path):
    texts = [sentence(0), sentence(1), sentence(2, 120), sentence(3, 80)]
    texts += [f"An introduction. {sentence(0)} And an end.", sentence(1)[: len(sentence(1)) // 4] + sentence(5)]
    neighbors = [
        *[(0, 4, 0.99), (0, 1, 0.8), (1, 2, 0.8), (1, 5, 0.75), (2, 3, 0.8), (3, 2, 0.7)],
        *[(4, 0, 0.3), (5, 1, 0.5), (5, 2, 0.46)],
    ]
    # 120 + 80 words with E, S and E are 203 tokens: one too many for a row of context 201, which holds 202.
    for context, verdict in ((201, "too_long"), (202, "accepted")):
        corpus = Corpus(tmp_path / str(context), texts, neighbors, per_shard=3)
        artifact = corpus.pairs(Pairs(threshold=0.5, minimum=1), context)
        rows = {(row["d1"], row["d2"]): row for row in parquet.read(artifact).to_pylist()}
        assert {pair: row["verdict"] for pair, row in rows.items()} == {
            (0, 4): "near_duplicate",
            (0, 1): "accepted",
            (1, 2): "accepted",
            (1, 5): "accepted",
            (2, 3): verdict,
            (3, 2): verdict,
            (5, 1): "accepted",  # what equals the threshold is in
            (5, 2): "too_distant",
        }
        assert list(rows) == [pair[:2] for pair in neighbors if pair[:2] != (4, 0)]
        copy = rows[0, 4]
        assert copy["containment"] == 1 and 0.7 < copy["jaccard"] < 1 and copy["tokens"] == 40 + 45 + 3
        assert (copy["shared"], copy["boilerplate"]) == (28, 0) and copy["length_ratio"] == np.float32(40 / 45)
        assert rows[0, 1]["containment"] == rows[0, 1]["jaccard"] == rows[0, 1]["shared"] == 0
        assert rows[2, 3]["tokens"] == rows[3, 2]["tokens"] == 203
        assert [row["rank"] for row in rows.values()] == [0, 1, 0, 1, 0, 0, 0, 1]
        assert {pair: row["target_rank"] for pair, row in rows.items() if pair[1] in (1, 2)} == {
            **{(0, 1): 0, (5, 1): 1},
            **{(1, 2): 0, (3, 2): 1, (5, 2): 2},
        }
        assert {pair for pair, row in rows.items() if row["mutual"]} == {(2, 3), (3, 2), (1, 5), (5, 1)}
        assert {row["rule_version"] for row in rows.values()} == {pairs.VERSION}
        stats = artifact.stats
        too_long = 2 if verdict == "too_long" else 0
        assert (stats["candidates"], stats["accepted"], stats["too_distant"]) == (7, 6 - too_long, 1)
        assert (stats["near_duplicate"], stats["too_long"]) == (1, too_long)
        assert stats["documents_covered"] == (4 if too_long else 5)
        assert stats["similarity_histogram"]["0.80"] == 3 and sum(stats["similarity_histogram"].values()) == 9
        assert not (tmp_path / str(context) / "pairs" / "scratch").exists()


def ladder(folder, texts: list[str] | None = None) -> Corpus:
    """One hundred neighbours, similarities falling from 0.9."""
    neighbors = [(place % 10, (place % 10 + 1 + place // 10) % 11, 0.9 - place / 200) for place in range(100)]
    return Corpus(folder, texts or [sentence(place) for place in range(11)], neighbors, per_shard=40)


def test_too_few_pairs_is_an_error_that_names_a_threshold_that_works(tmp_path):
    corpus = ladder(tmp_path)
    with pytest.raises(
        SbpError, match="11 pairs were accepted at pairs.threshold = 0.85, .*minimum = 50; lower"
    ) as error:
        corpus.pairs(Pairs(threshold=0.85, minimum=50))
    assert not (tmp_path / "pairs" / "manifest.json").exists()
    lower = float(str(error.value).split("pairs.threshold to ")[1].split(",")[0])
    assert 0.6 < lower < 0.7
    assert corpus.pairs(Pairs(threshold=lower, minimum=50), name="again").stats["accepted"] >= 50
    with pytest.raises(SbpError, match="no lower threshold gives enough; raise splits.capped"):
        corpus.pairs(Pairs(threshold=0.85, minimum=101), name="never")
    with pytest.raises(SbpError, match="raise tuning.context"):
        corpus.pairs(Pairs(threshold=0.4, minimum=50), context=81, name="narrow")


def test_a_corpus_of_copies_is_told_how_many_were_copies(tmp_path):
    corpus = ladder(tmp_path, [sentence(0)] * 11)
    with pytest.raises(SbpError, match="0 pairs .*rejected: near_duplicate 100"):
        corpus.pairs(Pairs(threshold=0.1, minimum=1))


def test_a_killed_run_resumes_to_the_same_counts(tmp_path):
    corpus = ladder(tmp_path)
    whole = corpus.pairs(Pairs(threshold=0.5, minimum=1), name="whole")
    corpus.pairs(Pairs(threshold=0.5, minimum=1), name="killed")
    (tmp_path / "killed" / "part-00001.parquet").unlink()
    resumed = corpus.pairs(Pairs(threshold=0.5, minimum=1), name="killed")
    assert resumed.files == whole.files and resumed.stats == whole.stats


def unpacked(artifact: Artifact, tokenizer: TextTokenizer) -> list[tuple[int, int]]:
    """The pairs in the rows, by the thousands of their tokens, each checked for its layout and loss."""
    found = []
    for row in RowSource(artifact):
        for segment in range(1, row.segments.max() + 1):
            places = np.flatnonzero(row.segments == segment)
            tokens = row.tokens[places[0] : places[-1] + 2]
            middle = int(np.flatnonzero(tokens == tokenizer.separator)[0])
            assert tokens[0] == tokens[-1] == tokenizer.end_of_document
            assert set(row.documents[places]) == {tokens[middle + 1] // 1000}
            np.testing.assert_array_equal(row.mask[places], np.arange(len(places)) >= middle)
            found.append((int(tokens[1]) // 1000, int(tokens[middle + 1]) // 1000))
    return found


def test_every_pair_of_a_part_is_packed_once_and_training_never_reads_a_held_out_seed(tmp_path):
    """A seed read in tuning would make the held-out loss that of memory, and choose the most overfitted checkpoint."""
    texts = [sentence(place, 20 + place) for place in range(5, 45)]  # ids below 5000 may equal those of E or S
    neighbors = [(a, b, 0.9) for a in range(5, 40) for b in range(5, 40) if a != b and (a + b) % 5 == 0]
    corpus = Corpus(tmp_path, texts, neighbors)
    accepted = corpus.pairs(Pairs(threshold=0.5, minimum=1))
    train_part, validation = corpus.pack(accepted, "train"), corpus.pack(accepted, "validation")
    packed = unpacked(train_part, corpus.text_tokenizer), unpacked(validation, corpus.text_tokenizer)
    seeds = [{d1 for d1, _ in part} for part in packed]
    pairs = [(a, b) for a, b, _ in neighbors]
    assert sorted(packed[1]) == sorted(pair for pair in pairs if pair[0] in seeds[1])
    assert sorted(packed[0]) == sorted(pair for pair in pairs if not seeds[1] & set(pair))
    assert 3 <= len(seeds[1]) <= 18
    assert packed[0] != sorted(packed[0])
    for artifact, part in zip((train_part, validation), packed, strict=True):
        stats = artifact.stats
        assert stats["pairs"] == len(part) and stats["context"] == 200
        assert stats["targets"] == sum(len(corpus.ids[d2]) + 1 for _, d2 in part)
    other = {d1 for d1, _ in unpacked(corpus.pack(accepted, "validation", seed=1), corpus.text_tokenizer)}
    assert other != seeds[1]
    assert corpus.pack(accepted, "train", validation=0.0).stats["pairs"] == len(neighbors)


def test_a_part_that_cannot_be_made_says_why(tmp_path):
    corpus = ladder(tmp_path)
    accepted = corpus.pairs(Pairs(threshold=0.5, minimum=1))
    with pytest.raises(SbpError, match="no pairs in the validation part; change tuning.validation"):
        corpus.pack(accepted, "validation", validation=0.0)
    with pytest.raises(SbpError, match="unknown part 'test'"):
        corpus.pack(accepted, "test")
    with pytest.raises(SbpError, match="a pair of 83 tokens exceeds tuning.context = 81"):
        corpus.pack(accepted, "train", context=81)
