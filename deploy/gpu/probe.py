#!/usr/bin/env python3
"""Questions to running servers, for check.sh: do two compute the same, and how fast does one write?

  probe.py vectors REFERENCE SERVER          largest difference of the vectors that POST /embed gives
  probe.py texts REFERENCE SERVER            greedy passages: each server alone, and SERVER with all at once
  probe.py expansions SERVER [--at-once 1,8,64] [--tokens 64,128]   tokens a second by passages at once
  probe.py fill SERVER                       documents to search
  probe.py queries FILE                      queries for the load test
  probe.py steps FILE                        token ids for the step bench of the trainers

Python 3.9 alone. Ends with 1 when a comparison fails.
"""

import argparse
import concurrent.futures
import json
import random
import statistics
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SUBJECTS = ["vitamin D", "the moon", "a semaphore", "black holes", "cheese", "inflation", "vaccines", "a compiler", "bees",
            "the Baltic Sea", "electric motors", "chess", "glaciers", "yeast", "tides", "violins", "copper", "maps",
            "the liver", "steel", "rice", "coral reefs", "earthquakes", "paper"]
QUESTIONS = ["what is known about {}", "how does one explain {} to a child", "why does {} matter", "who first described {}"]


def ask(server, path, body, timeout=900):
    request = urllib.request.Request(server + path, json.dumps(body).encode(), {"content-type": "application/json"},
                                     method="PUT" if path == "/documents" else "POST")
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(f"probe.py: {server}{path} answered {error.code}: {error.read().decode(errors='replace')[:500]}")


def questions(count):
    return [QUESTIONS[n // len(SUBJECTS) % len(QUESTIONS)].format(SUBJECTS[n % len(SUBJECTS)]) for n in range(count)]


def vectors(arguments):
    words = " ".join(questions(40)).split()
    texts = [" ".join(words[:n]) for n in (1, 2, 5, 10, 30, 90, 250)] + questions(64)
    worst, cosine = 0.0, 1.0
    for prompt_name in ("query", "document"):
        body = {"inputs": texts, "prompt_name": prompt_name, "normalize": True}
        for ours, theirs in zip(*(ask(server, "/embed", body) for server in (arguments.reference, arguments.server))):
            worst = max(worst, max(abs(a - b) for a, b in zip(ours, theirs)))
            cosine = min(cosine, sum(a * b for a, b in zip(ours, theirs)))
    holds = worst <= arguments.tolerance
    print(f"vectors: {2 * len(texts)}, largest difference {worst:.2e} (at most {arguments.tolerance:.0e}), smallest cosine "
          f"{cosine:.6f}: {'ok' if holds else 'WRONG'}")
    return holds


def passage(server, query, tokens):
    """What is written for a query, and its number of tokens."""
    expansion = {"max_tokens": tokens, "timeout_ms": 600_000, "temperature": 0}
    answer = ask(server, "/expand", {"query": query, "expansion": expansion})
    if answer["status"] not in ("applied", "cached"):
        sys.exit(f"probe.py: no passage for {query!r}: {answer}")
    return answer["texts"][0], answer["output_tokens"]


def together(server, queries, tokens):
    """The same for many at once; with each the seconds that it took."""
    def timed(query):
        start = time.monotonic()
        return (*passage(server, query, tokens), time.monotonic() - start)
    with concurrent.futures.ThreadPoolExecutor(len(queries)) as pool:
        return list(pool.map(timed, queries))


def texts(arguments):
    # Queries differ by white space alone from those asked before: another query to the cache would be the same one. So the
    # servers run without a cache.
    queries = questions(arguments.count)
    reference = [passage(arguments.reference, query, arguments.tokens)[0] for query in queries]
    alone = [passage(arguments.server, query, arguments.tokens)[0] for query in queries]
    at_once = [text for text, _, _ in together(arguments.server, queries, arguments.tokens)]
    holds = True
    for name, ours, theirs in (("server against reference", reference, alone), ("at once against alone", alone, at_once)):
        same = sum(a == b for a, b in zip(ours, theirs))
        begin = sum(a.split()[:8] == b.split()[:8] for a, b in zip(ours, theirs))
        good = begin >= arguments.at_least * len(queries)
        holds = holds and good
        print(f"texts, {name}: {same} of {len(queries)} equal, {begin} with the same first eight words "
              f"(at least {arguments.at_least:.0%}): {'ok' if good else 'WRONG'}")
    return holds


def expansions(arguments):
    print("| tokens | at once | tokens/s | seconds | passage p50 | passage max |\n|---|---|---|---|---|---|", flush=True)
    run = random.randrange(10**9)
    together(arguments.server, [f"warm up {run}"], 8)
    for tokens in arguments.tokens:
        for at_once in arguments.at_once:
            # Many at once for as long as a few: every place is used more than once only where that is quick.
            queries = [f"{query}, case {run} {tokens} {at_once} {n}" for n, query in enumerate(questions(at_once))]
            start = time.monotonic()
            written = together(arguments.server, queries, tokens)
            seconds = time.monotonic() - start
            total, times = sum(count for _, count, _ in written), [took for _, _, took in written]
            print(f"| {tokens} | {at_once} | {total / seconds:.1f} | {seconds:.2f} | {statistics.median(times):.2f} s | "
                  f"{max(times):.2f} s |", flush=True)
    return True


def fill(arguments):
    documents = [{"id": str(n), "text": f"{question}: number {n}"} for n, question in enumerate(questions(500))]
    ask(arguments.server, "/documents", {"documents": documents})
    return True


def write_queries(arguments):
    lines = [json.dumps({"text": f"{question}, number {n}"}) + "\n" for n, question in enumerate(questions(400))]
    Path(arguments.file).write_text("".join(lines))
    return True


def write_steps(arguments):
    draw = random.Random(1)
    def ids(rows, length):
        return [[draw.randrange(1000, 20_000) for _ in range(length)] for _ in range(rows)]
    pairs, preferences = arguments.pairs, arguments.preferences
    Path(arguments.file).write_text(json.dumps({
        "queries": ids(pairs, 64), "passages": ids(pairs, 64),
        "prompts": ids(preferences, 96), "chosen": ids(preferences, 64), "rejected": ids(preferences, 64)}))
    return True


def numbers(text):
    return [int(number) for number in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run, places in (("vectors", vectors, ["reference", "server"]), ("texts", texts, ["reference", "server"]),
                              ("expansions", expansions, ["server"]), ("fill", fill, ["server"]),
                              ("queries", write_queries, ["file"]), ("steps", write_steps, ["file"])):
        command = commands.add_parser(name)
        for place in places:
            command.add_argument(place)
        command.set_defaults(run=run)
        if name == "vectors":
            command.add_argument("--tolerance", type=float, default=1e-3)
        if name == "texts":
            command.add_argument("--count", type=int, default=16)
            command.add_argument("--tokens", type=int, default=32)
            command.add_argument("--at-least", type=float, default=0.75)
        if name == "expansions":
            command.add_argument("--at-once", type=numbers, default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
            command.add_argument("--tokens", type=numbers, default=[64, 128])
        if name == "steps":
            command.add_argument("--pairs", type=int, default=32)
            command.add_argument("--preferences", type=int, default=2)
    arguments = parser.parse_args()
    sys.exit(0 if arguments.run(arguments) else 1)


if __name__ == "__main__":
    main()
