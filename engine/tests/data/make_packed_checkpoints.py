"""Writes packed_checkpoints.json.gz: what tiny checkpoints of every 4-bit format answer, in float64.

    pip install numpy==2.4.6 && python make_packed_checkpoints.py

The tensors are drawn from SplitMix64, so the tests write the same files without a copy of them:
`digest` says that they did. Formats are decoded here element by element from their descriptions, and
the forward pass is written out, so nothing of the engine is in these figures.
"""

import gzip
import hashlib
import json
import pathlib

import numpy as np

SEED = 20
N_LAYERS, HIDDEN, INNER, VOCAB = 2, 128, 256, 192
N_HEADS, N_KV_HEADS = 4, 2
EPS, THETA = 1e-6, 10_000.0
N_TOP, N_GREEDY, NEAR = 8, 12, 4e-3
MASK = (1 << 64) - 1

# name: family, kind, group (0: one a row), symmetric, act-order
CASES = {
    "awq-gemm-g64-symmetric": ("qwen3", "awq-gemm", 64, True, False),
    "awq-gemv-g64": ("llama", "awq-gemv", 64, False, False),
    "gptq-g128": ("qwen3", "gptq", 128, True, False),
    "gptq-g64-asymmetric": ("qwen2", "gptq", 64, False, False),
    "gptq-v2-g32-asymmetric": ("llama", "gptq-v2", 32, False, False),
    "gptq-row-asymmetric": ("llama", "gptq", 0, False, False),
    "gptq-g32-act-order": ("qwen3", "gptq", 32, True, True),
    "autoround-gptq-g64": ("qwen2", "autoround-gptq", 64, True, False),
    "autoround-awq-g128": ("llama", "autoround-awq", 128, True, False),
    "ct-g128": ("qwen3", "ct", 128, True, False),
    "ct-g32-asymmetric": ("qwen2", "ct", 32, False, False),
    "ct-row": ("llama", "ct", 0, True, False),
    "ct-g64-act-order": ("llama", "ct", 64, False, True),
}


# ---- tensors ---------------------------------------------------------------------------------


def draws(name, n):
    """The first `n` outputs of the stream `name`."""
    digest = hashlib.sha256(SEED.to_bytes(8, "little") + name.encode()).digest()
    state = np.uint64(int.from_bytes(digest[:8], "little"))
    with np.errstate(over="ignore"):
        z = state + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def words(name, shape):
    n = int(np.prod(shape))
    return (draws(name, n) & np.uint64(0xFFFFFFFF)).astype(np.uint32).reshape(shape)


def spread(name, shape, levels, step, centre=0.0):
    """`levels` values, `step` apart, around `centre`."""
    n = int(np.prod(shape))
    level = (draws(name, n) % np.uint64(levels)).astype(np.float64)
    return centre + (level - levels // 2).reshape(shape) * step


def scales(name, shape):
    n = int(np.prod(shape))
    return (16 + (draws(name, n) % np.uint64(16)).astype(np.float64)).reshape(shape) / 2048


def groups_of_columns(stem, n_in, group):
    """Group of each column, drawn; k has q's and up has gate's, as they have one input."""
    stem = stem.replace("k_proj", "q_proj").replace("up_proj", "gate_proj")
    order = list(range(n_in))
    for i, draw in zip(range(n_in - 1, 0, -1), draws(f"{stem}.g_idx", n_in - 1)):
        j = int(draw) % (i + 1)
        order[i], order[j] = order[j], order[i]
    g_idx = np.empty(n_in, dtype=np.int32)
    g_idx[order] = np.arange(n_in) // group
    return g_idx


def tensors_of(stem, n_out, n_in, case):
    """The stored tensors of one matrix, and the matrix."""
    _, kind, group, symmetric, act_order = case
    group = group or n_in
    n_groups = n_in // group
    name = lambda part: f"{stem}.{part}"  # noqa: E731
    t, g = {}, np.arange(n_in) // group
    if kind in ("awq-gemm", "autoround-awq"):
        t["qweight"] = words(name("qweight"), (n_in, n_out // 8))
        if kind == "autoround-awq" and symmetric:
            t["qzeros"] = np.full((n_groups, n_out // 8), 0x88888888, np.uint32)
        elif not symmetric:
            t["qzeros"] = words(name("qzeros"), (n_groups, n_out // 8))
        t["scales"] = scales(name("scales"), (n_groups, n_out))
        place = [0, 4, 1, 5, 2, 6, 3, 7]  # the nibble that holds column i
        q = [[int(w) >> 4 * place[o % 8] & 15 for w in t["qweight"][:, o // 8]] for o in range(n_out)]
        z = np.full((n_out, n_groups), 8)
        if "qzeros" in t:
            z = [[int(w) >> 4 * place[o % 8] & 15 for w in t["qzeros"][:, o // 8]] for o in range(n_out)]
        s = t["scales"].T
    elif kind == "awq-gemv":
        multiple = {32: 4, 64: 2}.get(group, 1)
        width = -(-n_groups // 8)
        width = -(-width // multiple) * multiple
        t["qweight"] = words(name("qweight"), (n_out, n_in // 8))
        t["qzeros"] = words(name("qzeros"), (n_out, width))
        t["scales"] = scales(name("scales"), (n_out, 8 * width))
        q = [[int(row[k // 8]) >> 4 * (k % 8) & 15 for k in range(n_in)] for row in t["qweight"]]
        z = [[int(row[k // 8]) >> 4 * (k % 8) & 15 for k in range(n_groups)] for row in t["qzeros"]]
        s = t["scales"][:, :n_groups]
    elif kind in ("gptq", "gptq-v2", "autoround-gptq"):
        minus = 0 if kind == "gptq-v2" else 1
        t["qweight"] = words(name("qweight"), (n_in // 8, n_out))
        if symmetric:
            t["qzeros"] = np.full((n_groups, n_out // 8), 0x88888888 - minus * 0x11111111, np.uint32)
        else:
            t["qzeros"] = words(name("qzeros"), (n_groups, n_out // 8))
        t["scales"] = scales(name("scales"), (n_groups, n_out))
        if kind != "autoround-gptq":
            g = groups_of_columns(stem, n_in, group) if act_order else g
            t["g_idx"] = g.astype(np.int32)
        q = [[int(t["qweight"][k // 8, o]) >> 4 * (k % 8) & 15 for k in range(n_in)] for o in range(n_out)]
        z = [
            [(int(t["qzeros"][j, o // 8]) >> 4 * (o % 8)) + minus & 15 for j in range(n_groups)]
            for o in range(n_out)
        ]
        s = t["scales"].T
    else:
        t["weight_packed"] = words(name("weight_packed"), (n_out, n_in // 8))
        t["weight_scale"] = scales(name("weight_scale"), (n_out, n_groups))
        t["weight_shape"] = np.array([n_out, n_in], np.int64)
        z = np.zeros((n_out, n_groups), np.int64)
        if not symmetric:
            t["weight_zero_point"] = words(name("weight_zero_point"), (n_out // 8, n_groups))
            z = [
                [(int(t["weight_zero_point"][o // 8, j]) >> 4 * (o % 8) & 15) - 8 for j in range(n_groups)]
                for o in range(n_out)
            ]
        if act_order:
            g = groups_of_columns(stem, n_in, group)
            t["weight_g_idx"] = g
        q = [[(int(row[k // 8]) >> 4 * (k % 8) & 15) - 8 for k in range(n_in)] for row in t["weight_packed"]]
        s = t["weight_scale"]
    q, z = np.array(q), np.array(z)
    return {name(part): value for part, value in t.items()}, s[:, g] * (q - z[:, g])


def checkpoint(case):
    family, kind = case[0], case[1]

    def quantised(stem, n_out, n_in):
        if kind.startswith("autoround") and stem == "model.layers.1.mlp.down_proj":
            return None
        return tensors_of(stem, n_out, n_in, case)

    stored, w, head_dim = model(family, HIDDEN, INNER, quantised)
    return w, head_dim, digest(stored, is_bf16=kind == "ct")


def mlp_parts(prefix, hidden, inner):
    return [
        (f"{prefix}.gate_proj", inner, hidden),
        (f"{prefix}.up_proj", inner, hidden),
        (f"{prefix}.down_proj", hidden, inner),
    ]


def model(family, hidden, inner, quantised, experts=None):
    """The tensors of a checkpoint and its matrices. `quantised(stem, n_out, n_in)` gives those of a
    matrix of a layer, or nothing if it is left in 16 bits. `experts`: as make_moe_checkpoints.py has
    them."""
    head_dim = 64 if family == "qwen3" else 32
    q_width, kv_width = N_HEADS * head_dim, N_KV_HEADS * head_dim
    stored, w = {}, {}

    def plain(name, value):
        stored[name] = w[name] = value

    def mlp_of(i):
        if experts is None or i in experts["dense"]:
            return mlp_parts("mlp", hidden, inner)
        name = f"model.layers.{i}.mlp.gate.weight"
        plain(name, spread(name, (experts["n"], hidden), 256, 1 / 256))
        of = [mlp_parts(f"mlp.experts.{e}", hidden, experts["width"]) for e in range(experts["n"])]
        return sum(of, [])

    plain("model.embed_tokens.weight", spread("model.embed_tokens.weight", (VOCAB, hidden), 256, 1 / 512))
    if family != "qwen2":
        plain("lm_head.weight", spread("lm_head.weight", (VOCAB, hidden), 256, 1 / 512))
    norms = ["model.norm"]
    for i in range(N_LAYERS):
        layer = f"model.layers.{i}"
        norms += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
        if family == "qwen3":
            norms += [f"{layer}.self_attn.q_norm", f"{layer}.self_attn.k_norm"]
        for part, n_out, n_in in [
            ("self_attn.q_proj", q_width, hidden),
            ("self_attn.k_proj", kv_width, hidden),
            ("self_attn.v_proj", kv_width, hidden),
            ("self_attn.o_proj", hidden, q_width),
            *mlp_of(i),
        ]:
            stem = f"{layer}.{part}"
            read = quantised(stem, n_out, n_in)
            if read is None:
                plain(f"{stem}.weight", spread(f"{stem}.weight", (n_out, n_in), 256, 1 / 1024))
            else:
                stored |= read[0]
                w[f"{stem}.weight"] = read[1]
            if family == "qwen2" and part[10:] in ("q_proj", "k_proj", "v_proj"):
                plain(f"{stem}.bias", spread(f"{stem}.bias", (n_out,), 64, 1 / 512))
    for norm in norms:
        n = head_dim if norm.endswith(("q_norm", "k_norm")) else hidden
        plain(f"{norm}.weight", spread(f"{norm}.weight", (n,), 32, 1 / 128, 1.0))
    w.setdefault("lm_head.weight", w["model.embed_tokens.weight"])
    return stored, w, head_dim


def digest(stored, is_bf16):
    """Of names and bytes; float64 stands for 16 bits, which must hold the values."""
    digest = hashlib.sha256()
    for name in sorted(stored):
        value = stored[name]
        if value.dtype == np.float64 and is_bf16:
            exact = value.astype(np.float32)
            assert (exact.view(np.uint32) & 0xFFFF == 0).all(), name
            value = (exact.view(np.uint32) >> 16).astype(np.uint16)
        elif value.dtype == np.float64:
            assert (value.astype(np.float16) == value).all(), name
            value = value.astype(np.float16)
        digest.update(name.encode() + value.tobytes())
    return digest.hexdigest()


# ---- the model -------------------------------------------------------------------------------


def norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight


def rope(x, d):
    angle = np.arange(len(x))[:, None] * THETA ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def forward(w, d, tokens, mixture=None):
    """Log-probabilities of the next token at every position. `mixture(layer, h, mlp)`: of a layer that
    has experts."""

    def linear(x, stem):
        return x @ w[f"{stem}.weight"].T + w.get(f"{stem}.bias", 0.0)

    def mlp(h, stem):
        gate = linear(h, f"{stem}.gate_proj")
        return linear(gate / (1 + np.exp(-gate)) * linear(h, f"{stem}.up_proj"), f"{stem}.down_proj")

    n = len(tokens)
    x = w["model.embed_tokens.weight"][tokens]
    for i in range(N_LAYERS):
        layer, attention = f"model.layers.{i}", f"model.layers.{i}.self_attn"
        h = norm(x, w[f"{layer}.input_layernorm.weight"])
        q = linear(h, f"{attention}.q_proj").reshape(n, N_HEADS, d)
        k = linear(h, f"{attention}.k_proj").reshape(n, N_KV_HEADS, d)
        v = linear(h, f"{attention}.v_proj").reshape(n, N_KV_HEADS, d)
        if f"{attention}.q_norm.weight" in w:
            q, k = norm(q, w[f"{attention}.q_norm.weight"]), norm(k, w[f"{attention}.k_norm.weight"])
        q, k = rope(q, d), rope(k, d)
        attended = np.empty((n, N_HEADS, d))
        for head in range(N_HEADS):
            shared = head * N_KV_HEADS // N_HEADS
            scores = q[:, head] @ k[:, shared].T / np.sqrt(d)
            scores[np.triu_indices(n, 1)] = -np.inf
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            attended[:, head] = weight / weight.sum(-1, keepdims=True) @ v[:, shared]
        x = x + linear(attended.reshape(n, -1), f"{attention}.o_proj")
        h = norm(x, w[f"{layer}.post_attention_layernorm.weight"])
        sparse = f"{layer}.mlp.gate.weight" in w
        x = x + (mixture(layer, h, mlp) if sparse else mlp(h, f"{layer}.mlp"))
    logits = norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def answers(w, d, prompt, n_top=N_TOP, n_greedy=N_GREEDY, only_last=False, mixture=None):
    log_probs = forward(w, d, prompt, mixture)
    positions = sorted({0, len(prompt) // 2, len(prompt) - 1})[-1 if only_last else 0 :]
    top = np.argsort(-log_probs[positions], kind="stable")[:, :n_top]
    tokens = list(prompt)
    for _ in range(n_greedy):
        last = forward(w, d, tokens, mixture)[-1]
        first, second = np.argsort(-last, kind="stable")[:2]
        # KV in 16 bits may choose the other of two that are this near.
        if last[first] - last[second] < NEAR:
            break
        tokens.append(int(first))
    return {
        "positions": positions,
        "top_ids": top.tolist(),
        "top_log_probs": [
            [float(f"{log_probs[p, t]:.7g}") for t in ids] for p, ids in zip(positions, top)
        ],
        "greedy": tokens[len(prompt) :],
    }


def prompts_of(*lengths):
    return [(draws(f"prompt of {n}", n) % np.uint64(VOCAB)).tolist() for n in lengths]


def write(name, record):
    """A line a sequence: short to read, and a change shows where it is."""
    text = json.dumps(record)
    text = text.replace('{"positions"', '\n{"positions"').replace('"digest"', '\n"digest"')
    data = (text + "\n").encode()
    if name.endswith(".gz"):
        data = gzip.compress(data, 9, mtime=0)
    pathlib.Path(__file__).with_name(name).write_bytes(data)


def main():
    prompts = prompts_of(1, 17, 70)
    cases = {}
    for name, case in CASES.items():
        w, d, sha256 = checkpoint(case)
        cases[name] = {"digest": sha256, "sequences": [answers(w, d, prompt) for prompt in prompts]}
    record = {"seed": SEED, "numpy": np.__version__, "prompts": prompts, "cases": cases}
    write("packed_checkpoints.json.gz", record)


if __name__ == "__main__":
    main()
