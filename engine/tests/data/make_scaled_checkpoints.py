"""Writes scaled_checkpoints.json.gz: what tiny checkpoints of FP8, INT8 and NVFP4 answer, in float64.

    pip install numpy==2.4.6 && python make_scaled_checkpoints.py

As make_packed_checkpoints.py, whose model and random draws it uses.
"""

import numpy as np

from make_packed_checkpoints import SEED, answers, digest, draws, model, prompts_of, spread, write

HIDDEN, INNER, BLOCK = 128, 208, 128

# name: family, kind
CASES = {
    "fp8-blocks": ("qwen3", "fp8-blocks"),
    "fp8-matrix": ("llama", "fp8-matrix"),
    "ct-fp8-matrix": ("qwen2", "ct-fp8-matrix"),
    "ct-fp8-rows": ("qwen3", "ct-fp8-rows"),
    "ct-fp8-blocks": ("llama", "ct-fp8-blocks"),
    "ct-int8": ("qwen2", "ct-int8"),
    "ct-nvfp4": ("qwen3", "ct-nvfp4"),
    "modelopt-nvfp4": ("llama", "modelopt-nvfp4"),
    "modelopt-fp8": ("qwen2", "modelopt-fp8-matrix"),
}


def e4m3(codes):
    """One sign, four bits of exponent with a bias of 7, three of mantissa."""
    exponent, mantissa = (codes >> 3 & 15).astype(int), (codes & 7) / 8
    size = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * 2.0 ** (exponent - 7))
    return np.where(codes & 128, -size, size)


def e2m1(codes):
    """One sign, two bits of exponent with a bias of 1, one of mantissa."""
    exponent, mantissa = (codes >> 1 & 3).astype(int), (codes & 1) / 2
    size = np.where(exponent == 0, mantissa, (1 + mantissa) * 2.0 ** (exponent - 1))
    return np.where(codes & 8, -size, size)


def all_bits(values):
    """f32 with more bits than 16-bit floats have."""
    return np.asarray(values * (1 + 2.0**-18)).astype(np.float32)


def tensors_of(stem, n_out, n_in, kind):
    """The stored tensors of one matrix, and the matrix."""
    t = {}

    def codes(part, n_columns):
        name = f"{stem}.{part}"
        return (draws(name, n_out * n_columns) & np.uint64(255)).astype(np.uint8).reshape(n_out, n_columns)

    def scales(part, shape, step):
        return spread(f"{stem}.{part}", shape, 16, step, 24 * step)

    if kind == "ct-int8":
        t["weight"] = codes("weight", n_in).view(np.int8)
        t["weight_scale"] = scales("weight_scale", (n_out, 1), 2.0**-14)
        w = t["weight"] * t["weight_scale"]
    elif kind.endswith("nvfp4"):
        packed = "weight_packed" if kind == "ct-nvfp4" else "weight"
        q = t[packed] = codes(packed, n_in // 2)
        t["weight_scale"] = (0x30 + codes("weight_scale", n_in // 16) % 32).astype(np.uint8)
        if kind == "ct-nvfp4":
            name = f"{stem}.weight_global_scale"
            t["weight_global_scale"] = spread(name, (1,), 16, 1.0, 100.0).astype(np.float32)
            factor = 1 / np.float64(t["weight_global_scale"][0])
        else:
            t["weight_scale_2"] = all_bits(scales("weight_scale_2", (), 2.0**-11))
            t["input_scale"] = all_bits(scales("input_scale", (), 2.0**-15))
            factor = np.float64(t["weight_scale_2"])
        w = e2m1(np.stack([q & 15, q >> 4], -1).reshape(n_out, n_in))
        w = w * np.repeat(e4m3(t["weight_scale"]), 16, 1) * factor
    else:
        q = codes("weight", n_in)
        t["weight"] = q = np.where(q & 127 == 127, q - 1, q).astype(np.uint8)
        blocks = -(-n_out // BLOCK), -(-n_in // BLOCK)
        shape = {"matrix": (), "rows": (n_out, 1), "blocks": blocks}[kind.split("-")[-1]]
        if kind == "ct-fp8-matrix":
            shape = (1,)
        name = "weight_scale_inv" if kind == "fp8-blocks" else "weight_scale"
        t[name] = scales(name, shape, 2.0**-15)
        if kind.endswith("fp8-matrix") and not kind.startswith("ct"):
            t[name] = all_bits(t[name])
            t["input_scale"] = all_bits(scales("input_scale", (), 2.0**-15))
        s = np.asarray(t[name], np.float64)
        if kind.endswith("blocks"):
            s = s[np.arange(n_out) // BLOCK][:, np.arange(n_in) // BLOCK]
        w = e4m3(q) * s
    return {f"{stem}.{part}": value for part, value in t.items()}, w


def checkpoint(family, kind):
    def quantised(stem, n_out, n_in):
        if kind == "fp8-blocks" and stem == "model.layers.1.mlp.down_proj":
            return None
        return tensors_of(stem, n_out, n_in, kind)

    stored, w, head_dim = model(family, HIDDEN, INNER, quantised)
    return w, head_dim, digest(stored, is_bf16=True)


def main():
    prompts = prompts_of(17, 70)
    cases = {}
    for name, case in CASES.items():
        w, d, sha256 = checkpoint(*case)
        sequences = [answers(w, d, prompt, n_top=4, n_greedy=6, only_last=True) for prompt in prompts]
        cases[name] = {"digest": sha256, "sequences": sequences}
    write("scaled_checkpoints.json.gz", {"seed": SEED, "numpy": np.__version__, "prompts": prompts, "cases": cases})


if __name__ == "__main__":
    main()
