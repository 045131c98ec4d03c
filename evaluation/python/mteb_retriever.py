"""MTEB's search protocol over a running server, and MTEB tasks from BEIR folders on disk.

    import mteb
    from expandr_endpoint import Endpoint
    from mteb_retriever import MtebRetriever, task_from_folder

    model = MtebRetriever(Endpoint("http://127.0.0.1:8080", expansion=False), ingest=True)
    mteb.evaluate(model, mteb.get_task("SciFact"))                  # downloads the collection
    mteb.evaluate(model, task_from_folder("path/to/scifact"))       # has it
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta

from expandr_endpoint import Endpoint, EndpointError, is_blank, refuse_foreign


class MtebRetriever:
    """`mteb.models.SearchProtocol`: a corpus goes in, ranked lists come out.

    Each task has a corpus of its own and a server holds one, so evaluate one task a server, or give the tasks
    servers with an index each; a server that holds other documents is refused.

    Args:
        endpoint: The server, and how it is asked.
        ingest: Load each task's corpus into the server.
        name: The system's name in MTEB's results, `organisation/name`.
    """

    def __init__(self, endpoint: Endpoint, *, ingest: bool = False, name: str = "expandr/endpoint") -> None:
        self.endpoint = endpoint
        self.ingest = ingest
        self.name = name
        self._corpus: set[str] = set()

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Names the bundle and the settings, so that MTEB keeps the results of different ones apart."""
        bundle = self.endpoint.info()["bundle"]
        encoder = bundle.get("encoder", {})
        unknown = dict.fromkeys(
            ["loader", "release_date", "languages", "n_parameters", "memory_usage_mb", "license", "open_weights"]
            + ["public_training_code", "public_training_data", "similarity_fn_name", "training_datasets"]
        )
        return ModelMeta(
            name=self.name,
            revision=bundle["id"],
            max_tokens=encoder.get("max_length"),
            embed_dim=encoder.get("dimension"),
            framework=["API"],
            use_instructions=False,
            modalities=["text"],
            experiment_kwargs={name: json.dumps(value) for name, value in self.endpoint.settings.items()} or None,
            **unknown,
        )

    def index(self, corpus: Dataset, **_context: Any) -> None:
        """Loads the corpus, or makes sure that the server holds one of its size."""

        def documents() -> Iterator[dict[str, str]]:  # one by one, because corpora can be large
            for row in corpus:
                yield {"id": row["id"], "title": row.get("title") or "", "text": row["text"] or ""}

        if self.ingest:
            self.endpoint.ingest(documents())
        self.endpoint.check_corpus(sum(not is_blank(document) for document in documents()))
        self._corpus = set(corpus["id"])

    def search(
        self, queries: Dataset, *, top_k: int, top_ranked: Any = None, **_context: Any
    ) -> dict[str, dict[str, float]]:
        """The scores of the `top_k` best documents of every query. Where a query has an instruction, it follows the
        query's text, as in MTEB's own models. Documents with a query's own id are left to MTEB, which drops them in the
        tasks that want it."""
        if top_ranked is not None:
            raise EndpointError("reranking tasks give their own candidates, which a search server can't take")
        if queries and not isinstance(queries[0]["text"], str):
            raise EndpointError("queries that are conversations can't be searched for; use tasks with plain queries")
        texts = {row["id"]: " ".join(filter(None, [row["text"], row.get("instruction")])) for row in queries}
        run = self.endpoint.rank(texts, top_k)
        refuse_foreign(run, self._corpus)
        return run


def task_from_folder(
    folder: str | Path,
    *,
    name: str | None = None,
    split: str = "test",
    language: str = "eng-Latn",
    ignore_identical_ids: bool = True,
    k_values: tuple[int, ...] = (1, 3, 5, 10, 20, 100, 1000),
) -> AbsTaskRetrieval:
    """An MTEB task from a BEIR folder: corpus.jsonl, queries.jsonl, qrels/<split>.tsv.

    `ignore_identical_ids` drops the document with a query's own id, as BEIR does and as MTEB's tasks do where it
    matters. `k_values` must hold 1 and 10, which MTEB's own figures need; the largest is how many hits are asked for.
    """
    folder = Path(folder)
    task_name = name or folder.resolve().name

    class FolderTask(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=task_name,
            dataset={"path": str(folder), "revision": "local"},
            description=f"The {split} split of the BEIR folder {folder.name}.",
            type="Retrieval",
            category="t2t",
            eval_splits=[split],
            eval_langs=[language],
            main_score="ndcg_at_10",
        )

        def load_data(self, **_options: Any) -> None:
            if self.data_loaded:
                return
            self.dataset = {"default": {split: _read_folder(folder, split)}}
            self.data_loaded = True

    FolderTask.ignore_identical_ids = ignore_identical_ids
    FolderTask.k_values = k_values
    return FolderTask()


def _read_folder(folder: Path, split: str) -> RetrievalSplitData:
    def rows(file: str) -> list[dict[str, Any]]:
        with open(folder / file, encoding="utf-8") as lines:
            return [json.loads(line) for line in lines if line.strip()]

    judgments: dict[str, dict[str, int]] = defaultdict(dict)
    with open(folder / "qrels" / f"{split}.tsv", encoding="utf-8") as lines:
        for line in list(lines)[1:]:
            query_id, document_id, score = line.split("\t")
            judgments[query_id][document_id] = int(score)
    corpus = [
        {"id": row["_id"], "title": row.get("title") or "", "text": row.get("text") or ""}
        for row in rows("corpus.jsonl")
    ]
    queries = [{"id": row["_id"], "text": row["text"]} for row in rows("queries.jsonl") if row["_id"] in judgments]
    return RetrievalSplitData(
        corpus=Dataset.from_list(corpus),
        queries=Dataset.from_list(queries),
        relevant_docs=dict(judgments),
        top_ranked=None,
    )
