"""SGLang's offline engine on the same weights and cases as vllm_offline.py, attention in Triton.

    QUANT=awq_marlin CASES=full SEEDS=0 python3 sglang_offline.py OUT.json

SEEDS=1 sets the Balanced-v2 flags of the imported documents (no graphs, no radix cache, 2 decode
steps, 12 KV splits; COMPILE=1 adds torch.compile up to 6 sequences).
"""
import json, os, sys, time, random
os.environ.setdefault("HF_HUB_OFFLINE", "1")
from vllm_offline import cfg


def patch_dummy_weights():
    """SGLang leaves packed integer weights as they are allocated; random bits instead."""
    import sglang.srt.model_loader.loader as loader
    path = loader.__file__
    text = open(path).read()
    if "RANDOM_BITS" not in text:
        text = text.replace("            initialize_dummy_weights(model)\n\n            _post_load_weights(model)",
            "            initialize_dummy_weights(model)\n            for _p in model.state_dict().values():  # RANDOM_BITS\n"
            "                if _p.dtype == torch.int32 and _p.numel() > 1 << 16:\n                    _p.random_(-2**31, 2**31 - 1)\n\n            _post_load_weights(model)")
        assert "RANDOM_BITS" in text
        open(path, "w").write(text)


if __name__ == "__main__":
    d = "/tmp/q32"; os.makedirs(d, exist_ok=True)
    json.dump(cfg, open(d + "/config.json", "w"))
    patch_dummy_weights()
    import sglang as sgl
    seeds = os.environ.get("SEEDS") == "1"
    quant = os.environ.get("QUANT", "awq_marlin")
    kw = dict(model_path=d, load_format="dummy", skip_tokenizer_init=True, quantization=quant, dtype="float16",
              context_length=4096, mem_fraction_static=0.85, max_running_requests=64, attention_backend="triton",
              sampling_backend="pytorch", disable_radix_cache=True, log_level="warning", grammar_backend="none",
              chunked_prefill_size=8192, random_seed=0)
    if seeds:
        kw |= dict(disable_cuda_graph=True, schedule_policy="lof", enable_torch_compile=os.environ.get("COMPILE", "0") == "1", torch_compile_max_bs=6,
                   num_continuous_decode_steps=2, triton_attention_num_kv_splits=12, triton_attention_reduce_in_fp32=True,
                   mem_fraction_static=0.87, max_total_tokens=3328 * 4, disable_custom_all_reduce=True)
    else:
        kw |= dict(disable_prefill_cuda_graph=True, cuda_graph_max_bs_decode=64)
    t0 = time.time()
    llm = sgl.Engine(**kw)
    print("load_s", round(time.time() - t0, 1), flush=True)
    rnd = random.Random(0)
    def run(n, length, out):
        ids = [[rnd.randrange(1000, 150000) for _ in range(length)] for _ in range(n)]
        t = time.perf_counter()
        llm.generate(input_ids=ids, sampling_params={"temperature": 0.0, "max_new_tokens": out, "ignore_eos": True})
        return time.perf_counter() - t
    rows = []
    run(1, 128, 8); run(20, 128, 8)
    full = [(1, 128, 1), (1, 128, 129), (1, 1024, 1), (8, 128, 1), (8, 128, 129), (16, 128, 1), (16, 128, 129), (20, 128, 1), (20, 128, 50), (20, 128, 129),
            (32, 128, 1), (32, 128, 129), (64, 128, 1), (64, 128, 129), (8, 1024, 1), (1, 3500, 1)]
    short = [(1, 128, 1), (1, 128, 129), (8, 128, 1), (8, 128, 129), (20, 128, 1), (20, 128, 129)]
    for n, length, out in (short if os.environ.get("CASES") == "short" else full):
        ts = sorted(run(n, length, out) for _ in range(3))
        rows.append({"engine": "sglang", "quant": quant, "seeds": seeds, "batch": n, "prompt": length, "out": out,
                     "s_med": round(ts[1], 4), "s_min": round(ts[0], 4), "s_max": round(ts[2], 4), "out_tok_s": round(n * out / ts[1], 2)})
        print(json.dumps(rows[-1]), flush=True)
        json.dump(rows, open(sys.argv[1], "w"))
    os._exit(0)
