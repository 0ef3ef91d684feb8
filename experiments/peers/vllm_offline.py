"""vLLM's offline engine on random weights of Qwen3-32B-AWQ's shapes: seconds of each case, one JSON object a line.

    QUANT=awq_marlin EAGER=0 python3 vllm_offline.py OUT.json

Decode tokens a second of a batch come from two cases: (seconds for 129 tokens - seconds for 1) / 128.
"""
import json, os, sys, time
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
import random


def randomize(model):
    """Fill every packed integer weight with random bits: dummy loading leaves them at zero, which runs faster."""
    import torch
    n = 0
    for _, p in list(model.named_parameters()) + list(model.named_buffers()):
        if p.dtype == torch.int32 and p.numel() > 1 << 16:
            p.data.random_(-2**31, 2**31 - 1)
            n += p.numel() * 4
    return n


cfg = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 5120, "initializer_range": 0.02, "intermediate_size": 25600,
    "max_position_embeddings": 40960, "max_window_layers": 64, "model_type": "qwen3",
    "num_attention_heads": 64, "num_hidden_layers": 64, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "float16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
    "quantization_config": {"bits": 4, "group_size": 128, "modules_to_not_convert": None,
                            "quant_method": "awq", "version": "gemm", "zero_point": True},
}
if __name__ == "__main__":
    d = "/tmp/q32"; os.makedirs(d, exist_ok=True)
    json.dump(cfg, open(d + "/config.json", "w"))
    from vllm import LLM, SamplingParams
    t0 = time.time()
    quant = os.environ.get("QUANT", "awq_marlin")
    llm = LLM(model=d, load_format="dummy", skip_tokenizer_init=True, quantization=quant,
              dtype="float16", max_model_len=4096, gpu_memory_utilization=0.85, max_num_seqs=64,
              enforce_eager=os.environ.get("EAGER") == "1", disable_log_stats=True,
              enable_prefix_caching=False)
    print("random bytes", llm.apply_model(randomize), flush=True)
    print("load_s", round(time.time() - t0, 1), flush=True)
    rnd = random.Random(0)
    def prompts(n, length):
        return [{"prompt_token_ids": [rnd.randrange(1000, 150000) for _ in range(length)]} for _ in range(n)]
    def run(n, length, out):
        sp = SamplingParams(temperature=0.0, max_tokens=out, ignore_eos=True, detokenize=False)
        ps = prompts(n, length); t = time.perf_counter()
        llm.generate(ps, sp, use_tqdm=False)
        return time.perf_counter() - t
    rows = []
    run(1, 128, 8); run(20, 128, 8)
    cases = [(1, 128, 1), (1, 128, 129), (1, 1024, 1), (2, 128, 1), (2, 128, 129), (4, 128, 1), (4, 128, 129),
             (8, 128, 1), (8, 128, 129), (16, 128, 1), (16, 128, 129), (20, 128, 1), (20, 128, 50), (20, 128, 129),
             (32, 128, 1), (32, 128, 129), (64, 128, 1), (64, 128, 129), (8, 1024, 1), (1, 3500, 1), (1, 3500, 129)]
    for n, length, out in cases:
        ts = sorted(run(n, length, out) for _ in range(3))
        json.dump(rows, open(sys.argv[1], 'w'))
        rows.append({"engine": "vllm", "quant": quant, "batch": n, "prompt": length, "out": out,
                     "s_med": round(ts[1], 4), "s_min": round(ts[0], 4), "s_max": round(ts[2], 4),
                     "out_tok_s": round(n * out / ts[1], 2)})
        print(json.dumps(rows[-1]), flush=True)
    json.dump(rows, open(sys.argv[1], "w"))
    os._exit(0)
