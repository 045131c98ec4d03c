#!/usr/bin/env python3
"""Runs BEIR's and MTEB's evaluators over a server and compares them with what `expandr eval` measured there.

    expandr eval --endpoint URL --collection DIR --run RUN --expansion off --search-mode exact
    python check.py --endpoint URL --collection DIR --expected RUN/metrics.json

Searches with the very settings of that run. Both evaluators round their means to five digits, so equal means lie within
5e-6. Ends with 1 where a difference is 1e-5 or more. Needs the packages of requirements.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

TOLERANCE = 1e-5


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--endpoint", required=True, help="base URL of the server")
    arguments.add_argument("--collection", required=True, type=Path, help="a BEIR folder")
    arguments.add_argument("--expected", required=True, type=Path, help="metrics.json of `expandr eval`")
    arguments.add_argument("--ingest", action="store_true", help="load the corpus first")
    options = arguments.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is to be had from there

    from expandr_endpoint import Endpoint

    expected = json.loads(options.expected.read_text(encoding="utf-8"))
    search = dict(expected["settings"]["search"])
    search.pop("top_k")
    endpoint = Endpoint(options.endpoint, search=search, api_key=os.environ.get("EXPANDR_KEY"))
    bundle = endpoint.info()["bundle"]["id"]
    if bundle != expected["bundle"]:
        print(f"{options.endpoint} serves {bundle}, {options.expected} is of {expected['bundle']}: evaluate it again")
        return 1
    wrong = 0
    for name, evaluate in (("beir", with_beir), ("mteb", with_mteb)):
        start = time.monotonic()
        values = evaluate(endpoint, options.collection, options.ingest, expected["settings"])
        print(f"{name} {version(name)}, {time.monotonic() - start:.1f} s")
        for metric, value in values.items():
            difference = abs(value - expected["mean"][metric])
            wrong += difference >= TOLERANCE
            print(f"  {metric:<10} {value:.5f}  expandr eval {expected['mean'][metric]:.7f}  difference {difference:.1e}")
    print("equal" if wrong == 0 else f"{wrong} DIFFER")
    return int(wrong > 0)


def with_beir(endpoint: Any, collection: Path, ingest: bool, settings: dict[str, Any]) -> dict[str, float]:
    """nDCG@10 and the deepest recall by BEIR."""
    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.evaluation import EvaluateRetrieval

    from beir_retriever import BeirRetriever

    depth = settings["top_k"]
    corpus, queries, qrels = GenericDataLoader(str(collection)).load(split=settings["split"])
    evaluator = EvaluateRetrieval(BeirRetriever(endpoint, ingest=ingest), k_values=[10, depth])
    run = evaluator.retrieve(corpus, queries)
    ndcg, _map, recall, _precision = evaluator.evaluate(qrels, run, evaluator.k_values)
    return {"ndcg@10": ndcg["NDCG@10"], f"recall@{depth}": recall[f"Recall@{depth}"]}


def with_mteb(endpoint: Any, collection: Path, ingest: bool, settings: dict[str, Any]) -> dict[str, float]:
    """nDCG@10 and the deepest recall by MTEB, without its cache of results."""
    import mteb

    from mteb_retriever import MtebRetriever, task_from_folder

    depth = settings["top_k"]
    task = task_from_folder(collection, split=settings["split"], k_values=(1, 10, depth))
    model = MtebRetriever(endpoint, ingest=ingest)
    result = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    scores = result.task_results[0].scores[settings["split"]][0]
    return {"ndcg@10": scores["ndcg_at_10"], f"recall@{depth}": scores[f"recall_at_{depth}"]}


if __name__ == "__main__":
    sys.exit(main())
