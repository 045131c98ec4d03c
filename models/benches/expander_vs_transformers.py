"""The expanders against transformers (PyTorch, f32 and bf16) on the same prompts, in the same run, taking turns.

    pip install torch transformers
    cargo build --release --workspace --examples
    python expander_vs_transformers.py <expand_bench binary> <checkpoint> [--threads 2] [--rounds 2] [--engines batched,mistralrs]

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
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.dtype:
        return transformers_run(arguments)
    runs = {}
    for _ in range(arguments.rounds):
        for engine in filter(None, arguments.engines.split(",")):
            runs.setdefault(engine, []).append(expander_run(arguments, engine))
        for dtype in filter(None, arguments.dtypes.split(",")):
            command = [sys.executable, *sys.argv, "--dtype", dtype]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            speeds = {int(at_once): speed for at_once, speed in json.loads(output.splitlines()[-1]).items()}
            runs.setdefault(f"transformers {dtype}", []).append(speeds)
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
