"""Writes moe_checkpoints.json: what tiny checkpoints with experts answer, in float64, and which experts
their routers choose.

    pip install numpy==2.4.6 && python make_moe_checkpoints.py

As make_packed_checkpoints.py and make_scaled_checkpoints.py, whose model and random draws it uses.
"""

import numpy as np

import make_packed_checkpoints as packed
import make_scaled_checkpoints as scaled
from make_packed_checkpoints import SEED, answers, digest, forward, model, prompts_of, write

HIDDEN, INNER, N_EXPERTS = 128, 256, 6
# No router is so undecided that KV in 16 bits would change its choice.
LEAST_MARGIN = 1e-3

# name: the format as the module has it, width of an expert, experts a token, normalised, dense layers
CASES = {
    "awq-gemm-g64-mixed": (packed, ("qwen3", "awq-gemm", 64, False, False), 128, 3, False, [1]),
    "gptq-g32-act-order": (packed, ("qwen3", "gptq", 32, True, True), 128, 2, True, []),
    "ct-g128": (packed, ("qwen3", "ct", 128, True, False), 128, 6, False, []),
    "fp8-blocks": (scaled, "fp8-blocks", 80, 2, True, []),
    "ct-nvfp4": (scaled, "ct-nvfp4", 80, 1, True, []),
}


def checkpoint(module, case, width, dense):
    """Matrices, and the digest of the tensors."""

    def quantised(stem, n_out, n_in):
        # `fp8-blocks` leaves this one in 16 bits.
        if case == "fp8-blocks" and stem == "model.layers.1.mlp.down_proj":
            return None
        return module.tensors_of(stem, n_out, n_in, case)

    experts = {"n": N_EXPERTS, "width": width, "dense": dense}
    inner = module.INNER
    stored, w, d = model("qwen3", HIDDEN, inner, quantised, experts)
    return w, d, digest(stored, is_bf16=module is scaled or case[1] == "ct")


def mixture_of(w, n_active, normalise, chosen):
    """Softmax of all, the largest, and with `normalise` divided by their sum; `chosen` gets them."""

    def mixture(layer, h, mlp):
        logits = h @ w[f"{layer}.mlp.gate.weight"].T
        order = np.argsort(-logits, axis=-1, kind="stable")
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        ranked = np.take_along_axis(logits, order, -1)
        if n_active < N_EXPERTS:
            assert (ranked[:, n_active - 1] - ranked[:, n_active]).min() > LEAST_MARGIN, layer
        chosen[layer] = order[:, :n_active].tolist()
        y = np.zeros_like(h)
        for token, experts in enumerate(chosen[layer]):
            weights = p[token, experts]
            if normalise:
                weights = weights / weights.sum()
            for expert, weight in zip(experts, weights):
                y[token] += weight * mlp(h[token], f"{layer}.mlp.experts.{expert}")
        return y

    return mixture


def main():
    prompts = prompts_of(17, 64)
    cases = {}
    for name, (module, case, width, n_active, normalise, dense) in CASES.items():
        w, d, sha256 = checkpoint(module, case, width, dense)
        chosen = {}
        mixture = mixture_of(w, n_active, normalise, chosen)
        sequences = [
            answers(w, d, prompt, n_top=4, n_greedy=6, only_last=True, mixture=mixture) for prompt in prompts
        ]
        forward(w, d, prompts[0], mixture)
        cases[name] = {
            "digest": sha256,
            "sequences": sequences,
            # Of the first prompt's tokens, by layer.
            "chosen": {layer.split(".")[-1]: experts for layer, experts in chosen.items()},
        }
    write("moe_checkpoints.json", {"seed": SEED, "numpy": np.__version__, "prompts": prompts, "cases": cases})


if __name__ == "__main__":
    main()
