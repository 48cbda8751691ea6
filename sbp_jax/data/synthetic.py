"""The columns of synthetic documents: the text, what it was made from, by what, and how it ended."""

import pyarrow as pa

FINISHES = ("end", "length", "loop")  # at end_of_document, at the request's limit, by the loop detector
SCHEMA = pa.schema(
    {
        "ordinal": pa.int64(),
        "id": pa.string(),
        "text": pa.string(),
        "seed": pa.int64(),  # ordinal of the real document d1; null where nothing was read
        "seed_id": pa.string(),
        "conditioning": pa.list_(pa.int64()),  # ordinals of all documents that were read, in their order
        "conditioning_ids": pa.list_(pa.string()),
        "similarity": pa.float32(),  # of the seed with the nearest document that it is paired with; null: with none
        "sample": pa.int32(),
        "key": pa.string(),  # synthesis seed:ordinal of the seed document:sample number
        "finish": pa.string(),
        "new_tokens": pa.int32(),  # the closing end_of_document included
        "logprob": pa.float32(),
        "synthesizer": pa.string(),  # key of the artifact that holds the model
        "step": pa.int32(),  # of training, of the checkpoint
        "engine": pa.string(),
        "temperature": pa.float32(),
        "top_p": pa.float32(),
        "top_k": pa.int32(),
        "max_new_tokens": pa.int32(),
    }
)
