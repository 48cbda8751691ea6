"""Training steps of a 6.3M Qwen3 in google-tunix: its model, its trainer's own step, its default loss.

.venv-peers/tunix/bin/python benchmarks/peers/tunix_step.py [--remat full --steps 10]
"""

import argparse

import jax.numpy as jnp
import optax
import shapes
from flax import nnx
from stopwatch import measure
from tunix.models.qwen3.model import ModelConfig, Qwen3, RematConfig
from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig

REMAT = {"none": RematConfig.NONE, "full": RematConfig.DECODER}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--remat", choices=REMAT, default="none")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    shape = shapes.DECODER_6M
    config = ModelConfig(
        num_layers=shape["layers"],
        vocab_size=shape["vocabulary"],
        embed_dim=shape["width"],
        hidden_dim=shape["ffn"],
        num_heads=shape["heads"],
        head_dim=shape["head_dim"],
        num_kv_heads=shape["kv_heads"],
        rope_theta=int(shapes.ROPE_BASE),
        norm_eps=shapes.NORM_EPSILON,
        use_tied_embedding=False,
        remat_config=REMAT[options.remat],
    )
    adamw = optax.chain(
        optax.clip_by_global_norm(shapes.CLIP),
        optax.adamw(shapes.LEARNING_RATE, shapes.BETA1, shapes.BETA2, weight_decay=shapes.WEIGHT_DECAY),
    )
    trainer = PeftTrainer(Qwen3(config, rngs=nnx.Rngs(0)), adamw, TrainingConfig(eval_every_n_steps=10**9))
    # Its loss predicts the tokens after the first of what the model reads, so it takes all but one token of a row.
    tokens = jnp.asarray(shapes.rows(shape)[:, :-1])
    length = tokens.shape[1]
    batch = {
        "input_tokens": tokens,
        "input_mask": jnp.ones(tokens.shape, bool),
        "positions": jnp.broadcast_to(jnp.arange(length), tokens.shape),
        "attention_mask": jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (len(tokens), length, length)),
    }
    train_step, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    packages = ("google-tunix", "jax", "flax")
    measure(lambda: float(train_step(batch)[0]), shape["rows"] * shape["context"], options.steps, packages)


if __name__ == "__main__":
    main()
