#!/usr/bin/env python3
"""A GGUF file with the shapes of Qwen3-0.6B and random weights, as `llama-quantize` would lay them
out for Q4_0: matrices in Q4_0, the tied embedding in Q6_K, norms in F32. For programs that only
measure; it has no vocabulary. Needs numpy and gguf.

    python3 experiments/peers/random_gguf.py qwen3-0.6b-q4_0.gguf
"""

import pathlib
import sys

import gguf
import numpy

N_LAYERS, HIDDEN, INTERMEDIATE, N_HEADS, N_KV_HEADS, HEAD_DIM = 28, 1024, 3072, 16, 8, 128
VOCAB, CONTEXT_LENGTH, ROPE_THETA, EPS = 151_936, 40_960, 1e6, 1e-6
Q4_0, Q6_K = gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.Q6_K


def blocks(generator, n_out, n_in, kind):
    """Random blocks of `kind`, `[n_out, bytes of a row]`, of values about 1 / sqrt(n_in)."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    data = generator.integers(0, 256, (n_out, n_in // block, block_bytes), dtype=numpy.uint8)
    # Values of a block are within 8 (Q4_0) and 32 * 127 (Q6_K) of its scale, an F16.
    if kind == Q4_0:
        data[:, :, :2] = numpy.array([1 / (4.6 * n_in**0.5)], "<f2").view(numpy.uint8)
    else:
        # 128 + 64 bytes of values, 16 of scales, the block's scale.
        data[:, :, 192:208] = 64
        data[:, :, 208:] = numpy.array([1 / (64 * 18.5 * n_in**0.5)], "<f2").view(numpy.uint8)
    return data.reshape(n_out, -1)


def write(path):
    generator = numpy.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_name("Qwen3-0.6B shapes, random weights")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(EPS)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("none")

    def matrix(name, n_out, n_in, kind):
        writer.add_tensor(name, blocks(generator, n_out, n_in, kind), raw_dtype=kind)

    def ones(name, n):
        writer.add_tensor(name, numpy.ones(n, numpy.float32))

    matrix("token_embd.weight", VOCAB, HIDDEN, Q6_K)
    for layer in range(N_LAYERS):
        heads, kv_heads = N_HEADS * HEAD_DIM, N_KV_HEADS * HEAD_DIM
        ones(f"blk.{layer}.attn_norm.weight", HIDDEN)
        ones(f"blk.{layer}.ffn_norm.weight", HIDDEN)
        ones(f"blk.{layer}.attn_q_norm.weight", HEAD_DIM)
        ones(f"blk.{layer}.attn_k_norm.weight", HEAD_DIM)
        matrix(f"blk.{layer}.attn_q.weight", heads, HIDDEN, Q4_0)
        matrix(f"blk.{layer}.attn_k.weight", kv_heads, HIDDEN, Q4_0)
        matrix(f"blk.{layer}.attn_v.weight", kv_heads, HIDDEN, Q4_0)
        matrix(f"blk.{layer}.attn_output.weight", HIDDEN, heads, Q4_0)
        matrix(f"blk.{layer}.ffn_gate.weight", INTERMEDIATE, HIDDEN, Q4_0)
        matrix(f"blk.{layer}.ffn_up.weight", INTERMEDIATE, HIDDEN, Q4_0)
        matrix(f"blk.{layer}.ffn_down.weight", HIDDEN, INTERMEDIATE, Q4_0)
    ones("output_norm.weight", HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    whole = pathlib.Path(sys.argv[1])
    # Under its name once it is whole.
    partial = whole.with_suffix(".partial")
    write(partial)
    partial.rename(whole)
