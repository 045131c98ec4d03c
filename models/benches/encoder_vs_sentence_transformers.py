"""The encoder against sentence-transformers (PyTorch, f32) on the same texts, in the same run, taking turns.

    pip install torch sentence-transformers
    cargo build --release -p expandr-models --example encode_bench
    python encoder_vs_sentence_transformers.py <encode_bench binary> <checkpoint> <texts> [--threads 2] [--rounds 3]
        [--limit 512] [--batches 1,8,32,64,0]

Each round runs both in processes of their own, one after the other, so that a busy machine slows both. Printed are the
medians of documents a second and a CPU second, their ratio (above 1: the encoder is faster), and both peak memories.
Tokenising is part of both. Batch 0 is one request with all texts; sentence-transformers then uses its default batch size of 32, sorted by length.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time


def read_texts(path, limit):
    texts = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if len(texts) == limit:
                break
            line = line.rstrip("\n")
            if line.startswith("{"):
                document = json.loads(line)
                line = f"{document.get('title', '')} {document.get('text', '')}".strip()
            texts.append(line)
    return texts


def sentence_transformers_run(arguments):
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(arguments.threads)
    texts = read_texts(arguments.texts, arguments.limit)
    model = SentenceTransformer(arguments.checkpoint, device="cpu", local_files_only=True).float()
    model.encode(texts[:8])
    speeds = {}
    for batch in arguments.batches.split(","):
        size = int(batch) or len(texts)
        start, cpu_start, count, done = time.perf_counter(), time.process_time(), 0, False
        while not done:
            for at in range(0, len(texts), size):
                count += len(model.encode(texts[at : at + size], batch_size=int(batch) or 32, show_progress_bar=False))
                done = time.perf_counter() - start > arguments.seconds
                if done:
                    break
        times = time.perf_counter() - start, time.process_time() - cpu_start
        speeds["all" if batch == "0" else batch] = [count / t for t in times]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"speeds": speeds, "peak_memory_mb": memory}))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("checkpoint")
    parser.add_argument("texts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--batches", default="1,8,32,64,0")
    parser.add_argument("--as-sentence-transformers", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.as_sentence_transformers:
        return sentence_transformers_run(arguments)
    shared = [arguments.checkpoint, arguments.texts]
    for name in ("threads", "limit", "seconds", "batches"):
        shared += [f"--{name}", str(getattr(arguments, name))]
    commands = {
        "expandr": [arguments.binary, *shared, "--json"],
        "sentence-transformers": [sys.executable, __file__, arguments.binary, *shared, "--as-sentence-transformers"],
    }
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    reports = {name: [] for name in commands}
    for _ in range(arguments.rounds):
        for name, command in commands.items():
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            reports[name].append(json.loads(result.stdout.splitlines()[-1]))
    for kind, unit in enumerate(("documents a second", "documents a CPU second")):
        print(unit)
        print(f"{'batch':>6} {'expandr':>10} {'s-t':>10} {'ratio':>7}  ratio of each round")
        for batch in reports["expandr"][0]["speeds"]:
            ours, theirs = ([r["speeds"][batch][kind] for r in reports[name]] for name in commands)
            rounds = " ".join(f"{a / b:.2f}" for a, b in zip(ours, theirs))
            a, b = statistics.median(ours), statistics.median(theirs)
            print(f"{batch:>6} {a:10.1f} {b:10.1f} {a / b:7.2f}  {rounds}")
    ours, theirs = (max(r["peak_memory_mb"] for r in reports[name]) for name in commands)
    print(f"peak memory, MB: {ours:.0f} and {theirs:.0f}, ratio {ours / theirs:.2f}")


main()
