"""Writes gguf_blocks.json: what ggml's blocks decode to, by the gguf package, and what tiny models of
them answer, in float64.

    pip install numpy==2.4.6 gguf==0.19.0 && python make_gguf_blocks.py

As make_packed_checkpoints.py, whose model and random draws it uses.
"""

import hashlib
from importlib.metadata import version

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from make_packed_checkpoints import SEED, answers, draws, model, prompts_of, write

HIDDEN, INNER = 256, 512

# format: places of f16 in a block, their exponent
SCALES = {
    "Q4_0": ([0], 9),
    "Q4_1": ([0, 2], 9),
    "Q5_0": ([0], 8),
    "Q5_1": ([0, 2], 8),
    "Q8_0": ([0], 5),
    "Q2_K": ([80, 82], 8),
    "Q3_K": ([108], 6),
    "Q4_K": ([0, 2], 4),
    "Q5_K": ([0, 2], 4),
    "Q6_K": ([208], 1),
    "IQ4_NL": ([0], 5),
    "IQ4_XS": ([0], 1),
    "MXFP4": ([], 0),
}
# Those whose model answers, too, and its family.
MODELS = {"Q2_K": "qwen3", "Q3_K": "qwen3", "IQ4_NL": "qwen2", "IQ4_XS": "qwen3", "MXFP4": "qwen3"}


def blocks(name, form, n_rows, n_in):
    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[form]]
    n = n_rows * n_in // elements
    drawn = (draws(name, n * size) & np.uint64(255)).astype(np.uint8).reshape(n, size)
    places, exponent = SCALES[form]
    for at in places:
        drawn[:, at + 1] = drawn[:, at + 1] & 0x83 | exponent << 2
    if form == "MXFP4":
        drawn[:, 0] = 120 + drawn[:, 0] % 4
    return drawn.reshape(n_rows, -1)


def decoded(form, packed):
    return dequantize(packed, GGMLQuantizationType[form]).astype(np.float32)


def main():
    formats = {}
    for form in SCALES:
        packed = blocks(form, form, 4, 1024)
        formats[form] = {
            "digest": hashlib.sha256(packed.tobytes()).hexdigest()[:16],
            "values": hashlib.sha256(decoded(form, packed).tobytes()).hexdigest()[:32],
        }
    prompts = prompts_of(17, 70)
    cases = {}
    for form, family in MODELS.items():
        sha256 = hashlib.sha256()

        def quantised(stem, n_out, n_in):
            packed = blocks(f"{stem}.weight", form, n_out, n_in)
            sha256.update(packed.tobytes())
            return {}, decoded(form, packed).astype(np.float64)

        _, w, head_dim = model(family, HIDDEN, INNER, quantised)
        sequences = [answers(w, head_dim, p, n_top=4, n_greedy=6, only_last=True) for p in prompts]
        cases[form] = {"digest": sha256.hexdigest(), "sequences": sequences}
    record = {"seed": SEED, "numpy": np.__version__, "gguf": version("gguf"), "formats": formats}
    write("gguf_blocks.json", record | {"prompts": prompts, "cases": cases})


if __name__ == "__main__":
    main()
