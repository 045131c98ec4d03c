#!/usr/bin/env python3
"""Exact search with sentence-transformers over a BEIR folder, as a TREC run: the reference that the service is held to.

usage: sentence_transformers_run.py MODEL_FOLDER COLLECTION_FOLDER RUN_FILE [SPLIT]

Needs torch, sentence-transformers and numpy. Documents are embedded as title, space, text; vectors are normalised; the score
is the dot product; the hundred best documents of each judged query are written, best first.
"""
import json
import sys

import numpy as np
from sentence_transformers import SentenceTransformer

model_folder, collection, run_file = sys.argv[1:4]
split = sys.argv[4] if len(sys.argv) > 4 else "test"


def read_lines(name):
    with open(f"{collection}/{name}", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


with open(f"{collection}/qrels/{split}.tsv", encoding="utf-8") as lines:
    judged = {line.split("\t")[0] for line in list(lines)[1:] if line.strip()}
corpus = read_lines("corpus.jsonl")
queries = [query for query in read_lines("queries.jsonl") if query["_id"] in judged]

model = SentenceTransformer(model_folder, device="cpu")
texts = [(document.get("title", "") + " " + document["text"]).strip() for document in corpus]
documents = model.encode(texts, batch_size=32, normalize_embeddings=True, show_progress_bar=True)
vectors = model.encode([query["text"] for query in queries], batch_size=32, normalize_embeddings=True)
ids = np.array([document["_id"] for document in corpus])
with open(run_file, "w", encoding="utf-8") as run:
    for query, scores in zip(queries, vectors @ documents.T):
        best = np.argsort(-scores, kind="stable")[:100]
        for rank, place in enumerate(best, 1):
            run.write(f"{query['_id']} Q0 {ids[place]} {rank} {scores[place]:.6f} sentence-transformers\n")
