"""Scores run folders again with trec_eval (by way of pytrec_eval) and prints how far `metrics.json` is off.

    python -m venv venv && venv/bin/pip install pytrec_eval-terrier==0.5.11
    venv/bin/python evaluation/scripts/trec_eval_parity.py --collections DIR RUN [RUN …]

DIR holds the collections by name (`DIR/<collection>/qrels/<split>.tsv`); the names come from each run's settings.json. Every
value of every query is computed from run.trec and the qrels, and compared with the run's `per_query`; every mean with its
`mean`. Queries without a list count as 0 where the run says `missing_count_as_zero` (trec_eval -c), which pytrec_eval leaves to
its caller. Where documents with the query's own id are dropped (BEIR's rule), run.trec is without them already: the script stops
if it finds one. Exit code 1 when a value differs by more than --tolerance.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy
import pytrec_eval

# Our name without the depth: trec_eval's, with and without a depth.
MEASURES = {
    "ndcg": ("ndcg_cut", "ndcg"),
    "recall": ("recall", None),
    "mrr": (None, "recip_rank"),
    "map": ("map_cut", "map"),
    "p": ("P", None),
    "success": ("success", None),
}


def read_qrels(path):
    """BEIR's TSV with its header, or the same without, or TREC's four columns."""
    qrels = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines()):
        columns = line.split("\t") if line.count("\t") == 2 else line.split()
        if not columns or (number == 0 and columns[-1].lower() in ("score", "relevance", "rel", "label", "grade")):
            continue
        query, document, grade = columns[0].strip(), columns[-2].strip(), int(float(columns[-1]))
        qrels.setdefault(query, {})[document] = grade
    return qrels


def read_run(path):
    run = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        query, _, document, _, score, _ = line.split()
        run.setdefault(query, {})[document] = float(score)
    return run


def truncate(hits, depth):
    """The best `depth` of a list in trec_eval's order (single-precision score, then id): for MRR@k, which trec_eval only has without a depth."""
    best = sorted(hits.items(), key=lambda hit: (numpy.float32(hit[1]), hit[0]), reverse=True)[:depth]
    return dict(best)


def score(qrels, run, names, relevance_level):
    """{query: {our name: value}} for queries with a list."""
    scores = {}
    for name in names:
        kind, _, depth = name.partition("@")
        with_depth, without = MEASURES[kind]
        if depth and with_depth:
            measure, key, lists = f"{with_depth}.{depth}", f"{with_depth}_{depth}", run
        elif without:
            measure, key = without, without
            lists = {query: truncate(hits, int(depth)) for query, hits in run.items()} if depth else run
        else:
            sys.exit(f"trec_eval has no {name}")
        evaluator = pytrec_eval.RelevanceEvaluator(qrels, {measure}, relevance_level=relevance_level)
        for query, values in evaluator.evaluate(lists).items():
            scores.setdefault(query, {})[name] = values[key]
    return scores


def compare(folder, collections):
    """{name: (largest difference of a query, that query, difference of the means)} and the number of queries."""
    settings = json.loads((folder / "settings.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    qrels = read_qrels(collections / settings["collection"] / "qrels" / f"{settings['split']}.tsv")
    run = read_run(folder / "run.trec")
    own = [query for query, hits in run.items() if query in hits]
    if own:
        sys.exit(f"{folder}: run.trec has the documents {own[:5]} under their own ids")
    ours, names = metrics["per_query"], list(metrics["mean"])
    theirs = score(qrels, run, names, metrics["relevance_level"])
    zero = {name: 0.0 for name in names}
    queries = set(qrels) if metrics["missing_count_as_zero"] else set(qrels) & set(run)
    if set(ours) != queries:
        sys.exit(f"{folder}: metrics.json has {len(ours)} queries, the qrels and the run {len(queries)}")
    differences = {}
    for name in names:
        values = {query: theirs.get(query, zero)[name] for query in ours}
        worst = max(ours, key=lambda query: abs(ours[query][name] - values[query]))
        mean = sum(values.values()) / len(values)
        differences[name] = (abs(ours[worst][name] - values[worst]), worst, abs(metrics["mean"][name] - mean))
    return differences, len(ours)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--collections", type=Path, required=True, metavar="DIR")
    parser.add_argument("--tolerance", type=float, default=1e-6)
    arguments = parser.parse_args()
    largest = {}
    for folder in arguments.runs:
        differences, queries = compare(folder, arguments.collections)
        print(f"{folder} ({queries} queries): largest {max(max(d[0], d[2]) for d in differences.values()):.1e}")
        for name, (difference, query, mean) in differences.items():
            if name not in largest or max(difference, mean) > max(largest[name][0], largest[name][2]):
                largest[name] = (difference, f"{folder}, query {query}", mean)
    print("\nmetric       by query   of means   where")
    for name, (difference, where, mean) in largest.items():
        print(f"{name:12} {difference:.1e}    {mean:.1e}    {where if difference > 0 else ''}")
    off = [name for name, (difference, _, mean) in largest.items() if max(difference, mean) > arguments.tolerance]
    if off:
        sys.exit(f"off by more than {arguments.tolerance}: {', '.join(off)}")


main()
