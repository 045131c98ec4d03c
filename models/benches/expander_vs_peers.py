"""The expanders against transformers (PyTorch, f32 and bf16) and llama.cpp on the same prompts, in the same run, taking turns.

    pip install torch transformers xllamacpp
    cargo build --release --workspace --examples
    python expander_vs_peers.py <expand_bench binary> <checkpoint> [--gguf FILE] [--threads 2] [--rounds 2] [--engines batched,mistralrs]

`--gguf` is the same model for llama.cpp, whose server runs in the process with as many slots as passages are asked for at
once, continuous batching on; without it llama.cpp is left out.

Each round runs every engine in a process of its own, one after the other, so that a busy machine slows all of them. Printed
are the medians of tokens written a second, and a second of processor time, for 1, 8 and 32 greedy passages of 64 tokens
asked for at once, reading the prompts included.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

AT_ONCE = [1, 8, 32]
TOKENS = 64
PROMPT = (
    "Please write a passage to answer the question:\n"
    "Question: what should somebody know about the number {} and its uses\nPassage:"
)


def transformers_run(arguments):
    import torch
    import transformers

    torch.set_num_threads(arguments.threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.checkpoint, padding_side="left")
    dtype = getattr(torch, arguments.dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=dtype).eval()
    speeds = {}
    for at_once in [1, *AT_ONCE]:  # the first warms up
        chats = [[{"role": "user", "content": PROMPT.format(index * 37 + 11)}] for index in range(at_once)]
        start, cpu = time.perf_counter(), time.process_time()
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        written = output[:, inputs["input_ids"].shape[1] :]
        tokens = (written != tokenizer.pad_token_id).sum().item()
        speeds[at_once] = [tokens / (time.perf_counter() - start), tokens / (time.process_time() - cpu)]
    print(json.dumps(speeds))


def llama_cpp_run(arguments):
    import concurrent.futures

    import xllamacpp

    speeds = {}
    for at_once in AT_ONCE:
        parameters = xllamacpp.CommonParams()
        parameters.model.path = arguments.gguf
        parameters.n_parallel = at_once
        parameters.n_ctx = 512 * at_once
        parameters.n_gpu_layers = 0
        parameters.cpuparams.n_threads = arguments.threads
        parameters.cpuparams_batch.n_threads = arguments.threads
        parameters.verbosity = -1
        server = xllamacpp.Server(parameters)

        def write(index):
            answer = server.handle_chat_completions(
                {
                    "messages": [{"role": "user", "content": PROMPT.format(index * 37 + 11)}],
                    "max_tokens": TOKENS,
                    "temperature": 0,
                    "cache_prompt": False,
                }
            )
            return answer["usage"]["completion_tokens"]

        write(1000)  # warms up
        with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
            start, cpu = time.perf_counter(), time.process_time()
            tokens = sum(pool.map(write, range(at_once)))
        speeds[at_once] = [tokens / (time.perf_counter() - start), tokens / (time.process_time() - cpu)]
        del server
    print(json.dumps(speeds))


def expander_run(arguments, engine):
    """Reads the first table that expand_bench prints."""
    command = [arguments.binary, arguments.checkpoint, engine, "--threads", str(arguments.threads)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    start = next(index for index, line in enumerate(lines) if "tokens/CPU s" in line)
    speeds = {}
    for line in lines[start + 2 : start + 2 + len(AT_ONCE)]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        speeds[int(cells[0])] = [float(cells[3]), float(cells[4])]
    return speeds


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("checkpoint")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--engines", default="batched,mistralrs")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--gguf")
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.dtype == "llama.cpp":
        return llama_cpp_run(arguments)
    if arguments.dtype:
        return transformers_run(arguments)
    peers = {f"transformers {dtype}": dtype for dtype in filter(None, arguments.dtypes.split(","))}
    if arguments.gguf:
        peers["llama.cpp"] = "llama.cpp"
    runs = {}
    for _ in range(arguments.rounds):
        for engine in filter(None, arguments.engines.split(",")):
            runs.setdefault(engine, []).append(expander_run(arguments, engine))
        for name, peer in peers.items():
            command = [sys.executable, *sys.argv, "--dtype", peer]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            speeds = json.loads([line for line in output.splitlines() if line.startswith("{")][-1])
            runs.setdefault(name, []).append({int(at_once): speed for at_once, speed in speeds.items()})
    print("| engine | " + " | ".join(f"{n} at once, tokens/s | a CPU s" for n in AT_ONCE) + " |")
    print("|---" * (1 + 2 * len(AT_ONCE)) + "|")
    for engine, rounds in runs.items():
        cells = []
        for at_once in AT_ONCE:
            for kind in (0, 1):
                cells.append(f"{statistics.median(speeds[at_once][kind] for speeds in rounds):.1f}")
        print(f"| {engine} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
