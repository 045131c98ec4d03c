"""Times optimiser steps of both trainers with PyTorch (transformers, PEFT) and with `step_bench`, in turns on the same data.

    pip install torch transformers peft
    cargo build --release -p expandr-training --example step_bench
    python step_bench_pytorch.py <step_bench binary> <folder of all-MiniLM-L6-v2> <folder of SmolLM2-135M-Instruct> [rounds]

Contrastive: 32 pairs of 64 tokens, all weights train. DPO: 2 pairs of 96 + 64 tokens, LoRA of rank 8 on q_proj and v_proj;
the reference's log-probabilities are computed beforehand in both, and logits only where completions are predicted. Both
clip the gradient's norm to 1 and take a step of AdamW. Each round runs both programs once in processes of their own; the
figures are the best of all rounds, and the ratio is ours to PyTorch's.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"
STEPS = 5
THREADS = len(os.sched_getaffinity(0))


def cpu_time():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def make_data(kind, folder):
    import random

    random.seed(0)
    if kind == "contrastive":
        text = lambda: [101] + [random.randrange(1996, 29000) for _ in range(62)] + [102]
        pairs = [text() for _ in range(32)]
        # The passage shares half of its words with the query.
        passages = [[101] + random.sample(query[1:-1], 31) + text()[1:32] + [102] for query in pairs]
        data = {"queries": pairs, "passages": passages}
    else:
        text = lambda length: [random.randrange(100, 49000) for _ in range(length)]
        data = {"prompts": [text(96) for _ in range(2)], "chosen": [text(64) for _ in range(2)], "rejected": [text(64) for _ in range(2)]}
    path = os.path.join(folder, f"{kind}.json")
    with open(path, "w") as file:
        json.dump(data, file)
    return path


def contrastive_loss(folder, data):
    import torch
    import torch.nn.functional as F
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder).eval()  # without dropout, as in step_bench
    ids = torch.tensor(data["queries"] + data["passages"])
    mask = torch.ones_like(ids)

    def loss():
        vectors = F.normalize(model(input_ids=ids, attention_mask=mask).last_hidden_state.mean(1), dim=-1)
        queries, passages = vectors.chunk(2)
        return F.cross_entropy(queries @ passages.T / 0.05, torch.arange(len(queries)))

    return loss, [parameter for name, parameter in model.named_parameters() if "pooler" not in name], 5e-5


def dpo_loss(folder, data):
    import peft
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    model = peft.get_peft_model(model, config).eval()
    ids = torch.tensor([p + c for side in ("chosen", "rejected") for p, c in zip(data["prompts"], data[side])])
    length = len(data["chosen"][0])

    def log_probabilities():
        logits = model(input_ids=ids, logits_to_keep=length + 1).logits[:, :-1]
        return logits.log_softmax(-1).gather(2, ids[:, -length:, None])[..., 0].sum(1)

    with torch.no_grad(), model.disable_adapter():
        reference = log_probabilities()

    def loss():
        chosen, rejected = (log_probabilities() - reference).chunk(2)
        return -F.logsigmoid(0.1 * (chosen - rejected)).mean()

    return loss, [parameter for parameter in model.parameters() if parameter.requires_grad], 1e-3


def child(kind, folder, path):
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    with open(path) as file:
        data = json.load(file)
    loss_of, parameters, learning_rate = (contrastive_loss if kind == "contrastive" else dpo_loss)(folder, data)
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    seconds, cpu_seconds, losses = [], [], []
    for _ in range(STEPS):
        began, cpu_began = time.perf_counter(), cpu_time()
        optimiser.zero_grad()
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(cpu_time() - cpu_began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "losses": losses, "peak_mb": peak}))


def run(command):
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main():
    binary, encoder, decoder = sys.argv[1:4]
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 3
    with tempfile.TemporaryDirectory() as scratch:
        for kind, folder in (("contrastive", encoder), ("dpo", decoder)):
            path = make_data(kind, scratch)
            found = {"ours": [], "pytorch": []}
            for _ in range(rounds):
                found["ours"].append(run([binary, kind, folder, path, str(STEPS)]))
                found["pytorch"].append(run([sys.executable, __file__, "--child", kind, folder, path]))
            best = {who: {key: min(min(r[key]) for r in rows) for key in ("seconds", "cpu_seconds")} for who, rows in found.items()}
            peak = {who: max(row["peak_mb"] for row in rows) for who, rows in found.items()}
            for who in found:
                print(f"{kind:12} {who:8} {best[who]['seconds']:.3f} s a step, {best[who]['cpu_seconds']:.2f} CPU-s, peak {peak[who]:.0f} MB, "
                      f"losses {[round(loss, 5) for loss in found[who][0]['losses']]}")
            print(f"{kind:12} ratio    time {best['ours']['seconds'] / best['pytorch']['seconds']:.2f}, CPU "
                  f"{best['ours']['cpu_seconds'] / best['pytorch']['cpu_seconds']:.2f}, memory {peak['ours'] / peak['pytorch']:.2f} ({THREADS} threads)")


if sys.argv[1] == "--child":
    child(*sys.argv[2:5])
else:
    main()
