"""Loads what `export_check` has written with transformers, PEFT and sentence-transformers, and compares outputs.

    pip install torch transformers peft sentence-transformers
    cargo run --release -p expandr-training --example export_check -- <all-MiniLM-L6-v2> <SmolLM2-135M-Instruct> out
    python export_check.py <SmolLM2-135M-Instruct> <all-MiniLM-L6-v2> out
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy
import peft
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

LARGEST = 2e-3  # of log-probabilities down to -30
failures = []


def check(what, difference, limit):
    print(f"{what}: largest difference {difference:.2e}")
    if not difference < limit:
        failures.append(what)


def log_probabilities(model, row):
    ids = torch.tensor([row["prompt"] + row["completion"]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(row["prompt"]) - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(row["completion"])[:, None])[:, 0].numpy()


def compare(what, model, rows, key):
    differences = [numpy.abs(log_probabilities(model, row) - numpy.array(row[key])).max() for row in rows]
    check(what, max(differences), LARGEST)


def main():
    decoder, encoder, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    expected = json.loads((out / "expected.json").read_text())
    rows = expected["decoder"]

    tokenizer = AutoTokenizer.from_pretrained(out / "expander")
    for row in rows:
        message = [{"role": "user", "content": row["message"]}]
        prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"]
        answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        if (prompt, answer) != (row["prompt"], row["completion"]):
            failures.append(f"tokens of {row['message']!r}")
    load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    compare("base model, transformers", load(decoder), rows, "reference")
    compare("merged model, transformers", load(out / "expander"), rows, "adapted")
    compare("adapter, PEFT", peft.PeftModel.from_pretrained(load(decoder), out / "adapter").eval(), rows, "adapted")
    moved = max(numpy.abs(numpy.array(row["adapted"]) - numpy.array(row["reference"])).max() for row in rows)
    print(f"training moved log-probabilities by up to {moved:.2f}")

    found = expected["encoder"]
    for name in ("encoder", "encoder-merged"):
        vectors = SentenceTransformer(str(out / name), device="cpu").encode(found["texts"])
        check(f"{name}, sentence-transformers", numpy.abs(vectors - numpy.array(found[name])).max(), 1e-5)
    adapted = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(encoder), out / "encoder-adapter")
    merged = AutoModel.from_pretrained(out / "encoder-merged")
    ids = AutoTokenizer.from_pretrained(encoder)(found["texts"][0], return_tensors="pt")
    with torch.no_grad():
        difference = (adapted.eval()(**ids).last_hidden_state - merged.eval()(**ids).last_hidden_state).abs().max().item()
    check("encoder's adapter, PEFT", difference, 1e-4)
    sys.exit(f"differ: {failures}" if failures else 0)


main()
