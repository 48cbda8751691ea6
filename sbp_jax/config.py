"""The experiment as frozen dataclasses: every default once, with its unit and one line of meaning.

A file in `configs/` returns an `Experiment`. Fields of `Execution` say how the work is carried out; they never
change what is computed beyond rounding and are no part of any artifact's recipe.
"""

from dataclasses import dataclass, field

NOT_IN_RECIPE = {"recipe": False}  # cannot change a result, or what it names is in the recipe by its content
IN_RECIPE_WHERE_SET = {"where_set": True}  # a field that came later; without it recipes are as they were
GROWS = {"grows": True}  # entries by name, of which --set makes one that is not there yet


@dataclass(frozen=True)
class Corpus:
    """Where the real documents are."""

    paths: tuple[str, ...] = field(
        default=(), metadata=NOT_IN_RECIPE
    )  # files, folders or globs: .jsonl or .json lines (.gz, .zst), .parquet, .arrow, .array_record, folders of .txt
    text_field: str = "text"  # field that holds the document
    id_field: str | None = "id"  # field that holds a unique id; None: a hash of the text
    source_field: str | None = "source"  # field that says where the document is from; without it: its file's name
    # Regular expression for the part of that field which counts, such as the host of a URL; None: all of it.
    source_pattern: str | None = None
    # Field that names a document's split: validation, test, capped, oracle or unused; without one the hash decides.
    split_field: str | None = None
    sample: float = 1.0  # fraction of the documents to read, chosen by a hash of the text
    # Characters past which a document is cut into parts, between paragraphs where it can be; None: none is. A pair has
    # to fit `tuning.context`, so that a corpus of long documents has few.
    max_characters: int | None = field(default=None, metadata=IN_RECIPE_WHERE_SET)
    max_skipped: float = field(
        default=0.01, metadata=NOT_IN_RECIPE
    )  # fraction of bad documents above which ingestion stops instead of skipping them
    documents_per_shard: int = (
        50_000  # of what is read: a shard is what one task makes, and what a killed run does again
    )
    tokens: int | None = field(
        default=None, metadata=NOT_IN_RECIPE
    )  # in the whole corpus, if known; `sbp config` prints what follows


@dataclass(frozen=True)
class Splits:
    """Which documents are held out, by a seeded hash of each text, and which are the capped set."""

    validation: float = 0.02  # fraction of all documents: chooses the best checkpoint
    test: float = 0.03  # fraction of all documents: scores the arms
    oracle: float = 1.0  # fraction of the training documents that the oracle arm may see
    capped: float = 0.25  # fraction of the training documents that count as "all the data there is"
    # Whose hash chooses the capped and the oracle set: each text's, or each source's, whose documents then stay
    # together, and with them the pairs: a hash of texts at 1/20 leaves 1/400 of them.
    by: str = "text"
    near_duplicate: float = 0.5  # 13-word-shingle containment at which a held-out document counts as a training copy
    seed: int = 0  # of the hashes


@dataclass(frozen=True)
class Tokenizer:
    """Byte-level BPE trained on the capped set, or the user's own."""

    path: str | None = field(default=None, metadata=NOT_IN_RECIPE)  # a Hugging Face tokenizer.json; None: train one
    vocab_size: int = 4096  # entries to train, special tokens included; ignored with `path`
    end_of_document: str = "<|endoftext|>"  # ends a document and starts the next
    separator: str = "<|separator|>"  # stands between d1 and d2 when the synthesizer reads a pair


@dataclass(frozen=True)
class RopeScaling:
    """RoPE stretched past the context of pretraining, as Llama 3.1 does it; the defaults are its."""

    factor: float = 8.0  # by which low frequencies are slowed down
    low_frequency: float = 1.0  # turns within `context` below which a frequency counts as low
    high_frequency: float = 4.0  # turns within `context` above which a frequency stays as it is
    context: int = 8192  # tokens of the original context


@dataclass(frozen=True)
class Model:
    """A Qwen3-dense decoder: RMSNorm, RoPE, grouped-query attention with QK-norm, SwiGLU."""

    width: int = 128  # of the hidden states
    layers: int = 4
    heads: int = 2  # of queries
    kv_heads: int = 1  # of keys and values, which groups of query heads share
    head_dim: int = 64
    ffn: int = 384  # inner width of the feed-forward layers
    qk_norm: bool = True  # normalise each query and key; False: the decoder is Llama's
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-6
    tied_embeddings: bool = True  # whether the embedding is the unembedding too
    dtype: str = "float32"  # of activations and matrix products: float32 or bfloat16; weights stay float32


@dataclass(frozen=True)
class Optimization:
    """What training and tuning share: rows, optimizer, schedule, loss."""

    context: int = 256  # tokens a row
    batch_rows: int = 16  # rows a step, over all devices
    optimizer: str = "adamw"  # adamw, muon, or another of optax by its name, such as lion
    peak_lr: float = 3e-3  # learning rate after the warmup
    final_lr: float = 3e-5  # at the end of the decay
    warmup: float = 0.05  # fraction of the steps, linear from 0
    schedule: str = "cosine"  # cosine, or wsd: warm-up, stable, decay
    decay: float = 0.2  # fraction of the steps in wsd's linear decay to final_lr
    weight_decay: float = 0.1  # on matrices, not on norms
    beta1: float = 0.9  # of the optimizers that have it, as beta2
    beta2: float = 0.95
    clip: float = 1.0  # global gradient norm
    z_loss: float = 0.0  # weight of the squared log of the softmax's denominator (PaLM, section 5)
    dropout: float = 0.0  # on what attention and feed-forward add to the residual stream
    skip_spikes: float | None = None  # leave out a step whose gradient norm is so many times the recent ones'
    evaluate_every: int = 100  # steps between validation losses; each is also a checkpoint


@dataclass(frozen=True)
class Training(Optimization):
    """The base model and every arm: from scratch, equal numbers of training tokens."""

    tokens: int | None = None  # loss-bearing target positions; None: one pass over the oracle set


@dataclass(frozen=True)
class Tuning(Optimization):
    """The synthesizer: the base model trained on pairs, loss on d2 alone (SBP, step 2)."""

    base: str | None = field(
        default=None, metadata=NOT_IN_RECIPE
    )  # a Hugging Face folder to start from, `model` and `tokenizer` being its (`sbp import`); None: the repetition arm
    context: int = 512  # tokens of a row: of the documents that are read and the one that is written
    peak_lr: float = 1e-3
    final_lr: float = 1e-5
    evaluate_every: int = 50  # steps between evaluations on the held-out pairs, of which the best model is kept
    epochs: float = 2.0  # passes over the training pairs
    conditioning: int = 1  # documents that are read before the one that is written, d1 to dk
    validation: float = 0.05  # fraction of the seed documents whose pairs are held out


@dataclass(frozen=True)
class Embedding:
    """The vectors whose inner products say which documents are related."""

    # all-minilm-l6-v2, which is packaged; a folder of a BERT or of a Qwen3-Embedding; or self: the base model.
    model: str = field(default="all-minilm-l6-v2", metadata=NOT_IN_RECIPE)
    vectors: str | None = field(
        default=None, metadata=NOT_IN_RECIPE
    )  # the user's own instead of a model's: Parquet with id and embedding, or .npy with a row for each document
    max_tokens: int = 256  # a longer document is embedded by its beginning
    dimensions: int | None = None  # first dimensions of a vector that are kept (Matryoshka); None: all
    whiten: bool = False  # take out what all vectors of a model share: for self, and where that is form, not meaning
    instruction: str = ""  # put before each document, for models that were trained with one
    dtype: str = "float32"  # of activations and matrix products: float32 or bfloat16


@dataclass(frozen=True)
class Neighbors:
    """The search for related documents. None: derived from the number of documents."""

    backend: str = "auto"  # scann, exact, bucketed, or auto: by the number of documents and the machine
    top_k: int = 20  # neighbours kept for each document
    audited: int = 500  # queries whose neighbours are compared with those of the exact search
    leaves: int | None = None  # scann: of its tree, at least sqrt(documents); bucketed: its buckets, four times that
    leaves_to_search: int | None = None  # scann: at least 30; bucketed: the buckets of a document, 5 or 6
    reorder: int | None = None  # candidates scored exactly; derived: four times top_k


@dataclass(frozen=True)
class Pairs:
    """Which neighbours become ordered pairs (d1, d2)."""

    # Pairs of one's own, Parquet or JSON Lines with the ids d1 and d2 and perhaps a similarity; None: neighbours are
    # searched. Those of documents outside the capped set are left out; threshold, maximum and mutual do not apply.
    path: str | None = field(default=None, metadata=NOT_IN_RECIPE)
    threshold: float = 0.75  # least inner product of the unit embeddings
    maximum: float = 1.0  # greatest inner product
    near_duplicate: float = 0.5  # 13-word-shingle containment at which a pair is dropped as a copy
    common: int = 10  # documents with a shingle past which it is boilerplate, and counts as shared by nobody
    max_targets: int | None = None  # pairs in which a document may be d2, the most similar ones; None: any number
    mutual: bool = False  # keep a pair only if each is among the neighbours of the other
    same_source: int | None = None  # pairs of a document with others of its own source, the most similar; None: any
    length_ratio: float = 0.0  # least tokens of the shorter document, as a fraction of the longer one's
    same_language: bool = False  # drop pairs of documents in two languages
    # JSON Lines files of evaluation sets; a document that holds one of their items is in no pair.
    decontaminate: tuple[str, ...] = field(default=(), metadata=NOT_IN_RECIPE)
    minimum: int = field(default=1000, metadata=NOT_IN_RECIPE)  # fewer accepted pairs than this is an error


@dataclass(frozen=True)
class Synthesis:
    """Sampling p(d2 | d1) from the synthesizer."""

    temperature: float = 1.0  # 0: the most probable token each time
    top_p: float = 0.9  # the least set of most probable tokens that holds this much probability is drawn from
    top_k: int = 0  # of the most probable tokens; 0: all
    max_new_tokens: int = 256  # of a document; one that is longer is cut off (finish = length)
    samples: int = 1  # documents of a seed in each pass over the seeds
    oversample: float = 1.5  # tokens to generate for each synthetic token that the arms need: filters reject some
    documents_per_shard: int = 512
    seed: int = 0  # of the samples


@dataclass(frozen=True)
class Filters:
    """Which synthetic documents are kept; items of `pairs.decontaminate` are kept out of them too."""

    unfinished: str = "drop"  # documents cut by max_new_tokens: drop, trim (after the last sentence), or keep
    min_words: int = 20  # of a document
    max_words: int | None = None
    max_repetition: float = 0.2  # fraction of 4-word n-grams that repeat an earlier one of the document
    max_seed_run: int = 50  # words in a row that are also in a document which was read for it
    max_seed_overlap: float = 0.3  # fraction of 13-word shingles that are in the documents which were read for it
    max_copied: float = 0.3  # fraction of 13-word shingles found anywhere in the capped set
    max_held_out: float = 0.1  # fraction of 13-word shingles found in validation or test documents and no capped one
    same_language: bool = False  # drop documents in another language than their seed
    near_sibling: float = 0.5  # 13-word-shingle containment at which one is a copy of an earlier one of its seed
    near_duplicate: float = 0.5  # 13-word-shingle containment at which one is a copy of any other earlier one
    index: str = (
        "auto"  # of real documents: exact, bloom (2 bytes a shingle), or auto: exact in a quarter of the memory
    )


@dataclass(frozen=True)
class Arm:
    """What one final model sees: a mixture in tokens, its order, and where its synthetic text came from."""

    name: str
    real: str = "capped"  # capped or oracle
    synthetic_share: float = 0.0  # of the training tokens
    # What its synthesizer was tuned on: related documents, or random ones as a control; none, another control, is text
    # of the base model, which reads nothing before it writes.
    pairs: str = "related"
    base: str | None = None  # the arm whose model its synthesizer starts from, for another round; None: repetition
    order: str = "uniform"  # of the streams: uniform, or staged: synthetic text first, real text last
    # How documents stand in rows: documents, each for itself; megadoc: all synthetic ones of a seed and then the seed,
    # which see one another (arXiv 2603.18534); in_context: related real ones side by side, which see one another too
    # (Shi et al. 2023).
    layout: str = "documents"
    weight_decay: float | None = None  # None: that of `training`
    epochs: float | None = None  # passes over its real stream, after which it stops early; None: the common budget
    flops_of: str | None = None  # the arm whose operations, those of its synthetic text included, it may train for


@dataclass(frozen=True)
class Sweep:
    """Further arms that differ in one thing, for `sbp sweep`: a grid to choose from before anything is compared."""

    shares: tuple[float, ...] = ()  # of synthetic tokens, each an arm like the first that has some
    weight_decays: tuple[float, ...] = ()  # with `epochs` a grid of arms like repetition
    epochs: tuple[float, ...] = ()  # passes over the real stream, each with each weight decay
    seeds: int = 1  # the first of the experiment's that they are trained with


@dataclass(frozen=True)
class TextSet:
    """A held-out corpus of the user's on which the arms' loss is measured, beside the test documents."""

    name: str
    paths: tuple[str, ...] = field(default=(), metadata=NOT_IN_RECIPE)  # files, folders or globs, as of the corpus
    text: str = "{text}"  # a document, from the fields of a record, such as "{question} {choices[gold]}"
    given: str | None = (
        None  # what is read before it in the same way and bears no loss, nor does the end; None: nothing
    )
    max_skipped: float = field(
        default=0.01, metadata=NOT_IN_RECIPE
    )  # fraction of records without a text above which reading stops instead of skipping them


@dataclass(frozen=True)
class Evaluation:
    """What the arms are scored on besides the test documents."""

    texts: tuple[TextSet, ...] = field(default=(), metadata=GROWS)
    stride: int | None = None  # tokens that a window moves on within a document, test ones too; None: a whole context
    rows_while_training: int = 64  # of each text set that are scored at each validation; 0: none
    tasks: tuple[str, ...] = ()  # of lm-eval, or of `sbp evaluate --list`, which reads them from `data`
    data: str | None = field(default=None, metadata=NOT_IN_RECIPE)  # folder of the local tasks' files
    fewshot: int | None = None  # examples before each question; None: the task's own
    limit: int | None = None  # items of a task that are asked; None: all


@dataclass(frozen=True)
class Judge:
    """A language model that is asked about documents, which are sent to it; off without a `url`."""

    url: str | None = field(
        default=None, metadata=NOT_IN_RECIPE
    )  # of an OpenAI-compatible endpoint, such as http://localhost:8000/v1; None: nobody is asked, nothing is sent
    model: str = ""  # its name there
    documents: int = 200  # of each kind that are judged
    characters: int = 6000  # of the beginning of a document that are sent
    max_tokens: int = 512  # of an answer
    key: str = field(default="OPENAI_API_KEY", metadata=NOT_IN_RECIPE)  # environment variable with the endpoint's key
    at_once: int = field(default=4, metadata=NOT_IN_RECIPE)  # questions under way
    seconds: float = field(default=120.0, metadata=NOT_IN_RECIPE)  # to wait for an answer
    attempts: int = field(default=6, metadata=NOT_IN_RECIPE)  # at a question, after which the run stops


@dataclass(frozen=True)
class Quality:
    """How synthetic documents are compared with real ones."""

    documents: int = 2000  # of each kind that are measured, spread evenly
    judge: Judge = field(default_factory=Judge)


@dataclass(frozen=True)
class MeshShape:
    """Devices along each axis; `data` = -1 takes what the others leave."""

    data: int = -1  # whole copies of the model; on several TPU slices the only axis that crosses between them
    fsdp: int = 1  # parts that the parameters and the optimizer's state are cut into
    tensor: int = 1  # parts that heads, feed-forward and vocabulary are cut into


@dataclass(frozen=True)
class Execution:
    """How the work is carried out. No part of any recipe."""

    mesh: MeshShape = field(default_factory=MeshShape)  # of the devices
    attention: str = "auto"  # xla, splash (TPU) or cudnn (NVIDIA); auto: the fastest that the device has
    remat: str = "none"  # what the backward pass computes again: none, full (all of a layer) or dots (all but products)
    accumulate: int = 1  # pieces of a batch that are computed one after another, their gradients added up
    checkpoint_every: int | None = None  # steps between checkpoints to resume from; None: one at each evaluation
    keep_last: int = 1  # latest checkpoints kept
    keep_every: int | None = None  # steps between checkpoints that are kept for good
    tensorboard: bool = True  # write TensorBoard events beside metrics.jsonl
    profile_from: int | None = None  # first step of a profiler window, for TensorBoard or Perfetto
    profile_steps: int = 3  # steps of the window
    executor: str = "processes"  # that carries out CPU stages: processes of this machine, or ray
    workers: int | None = None  # tasks that it carries out at the same time; None: one for each core
    ray_address: str | None = None  # of a running cluster; None: a cluster of this machine alone
    stall_seconds: float = 900.0  # without progress, after which a run dumps its stacks and stops
    embed_batch: int = 32  # documents
    engine: str = "jax"  # that generates: jax, or vllm, in an environment of its own (`vllm_python`)
    vllm_python: str | None = None  # the Python of an environment with vLLM
    slots: int = 64  # sequences that a copy of the model generates at the same time
    decode_steps: int = 16  # tokens generated between two looks at what has finished
    cache_tokens: int | None = None  # that the slots hold together, past which the latest begin again; None: 3/4 of all


BASE_ARM, ORACLE_ARM = "repetition", "oracle"  # gap closed is measured between them; the first makes the base model
ARMS = (
    Arm(BASE_ARM),
    Arm("sbp", synthetic_share=0.375),
    Arm(ORACLE_ARM, real="oracle"),
)


@dataclass(frozen=True)
class Experiment:
    """One whole run, from documents to a report."""

    name: str
    corpus: Corpus = field(default_factory=Corpus)
    splits: Splits = field(default_factory=Splits)
    tokenizer: Tokenizer = field(default_factory=Tokenizer)
    model: Model = field(default_factory=Model)
    training: Training = field(default_factory=Training)
    embedding: Embedding = field(default_factory=Embedding)
    neighbors: Neighbors = field(default_factory=Neighbors)
    pairs: Pairs = field(default_factory=Pairs)
    tuning: Tuning = field(default_factory=Tuning)
    synthesis: Synthesis = field(default_factory=Synthesis)
    filters: Filters = field(default_factory=Filters)
    arms: tuple[Arm, ...] = ARMS
    seeds: tuple[int, ...] = (0,)  # each arm is trained once for each seed
    sweep: Sweep = field(default_factory=Sweep)
    evaluation: Evaluation = field(default_factory=Evaluation)
    quality: Quality = field(default_factory=Quality)
    note: str = ""  # printed by the report: what a reader must know before believing the numbers
    execution: Execution = field(default_factory=Execution, metadata=NOT_IN_RECIPE)
