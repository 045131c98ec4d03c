"""BEIR's `EvaluateRetrieval` over a running server.

    from beir.datasets.data_loader import GenericDataLoader
    from beir.retrieval.evaluation import EvaluateRetrieval
    from beir_retriever import BeirRetriever
    from expandr_endpoint import Endpoint

    corpus, queries, qrels = GenericDataLoader("scifact").load(split="test")
    retriever = BeirRetriever(Endpoint("http://127.0.0.1:8080", expansion=False), ingest=True)
    evaluator = EvaluateRetrieval(retriever, k_values=[10, 100])
    ndcg, _map, recall, precision = evaluator.evaluate(qrels, evaluator.retrieve(corpus, queries), evaluator.k_values)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from expandr_endpoint import Endpoint, is_blank, refuse_foreign


class BeirRetriever:
    """What `EvaluateRetrieval` asks of a retriever (`beir.retrieval.search.BaseSearch.search`).

    Args:
        endpoint: The server, and how it is asked.
        ingest: Load the corpus into the server before the first search.
    """

    def __init__(self, endpoint: Endpoint, *, ingest: bool = False) -> None:
        self.endpoint = endpoint
        self.ingest = ingest

    def search(
        self,
        corpus: Mapping[str, Mapping[str, str]],
        queries: Mapping[str, str],
        top_k: int,
        score_function: str | None = None,
        **search: Any,
    ) -> dict[str, dict[str, float]]:
        """The scores of the `top_k` best documents of every query.

        A document with the query's own id is left out, as BEIR's own searchers do (ArguAna and Quora need it), so one
        document more is asked for where the server's limit allows it. `score_function` has no effect: the server scores
        by its bundle (the inner product with the averaged vector). `search` holds further members of every search, e.g.
        `retrieve(corpus, queries, search_mode="exact")`.
        """
        def documents() -> Iterator[dict[str, str]]:  # one by one, because corpora can be large
            for document_id, document in corpus.items():
                yield {"id": document_id, "title": document.get("title") or "", "text": document.get("text") or ""}

        if self.ingest:
            self.endpoint.ingest(documents())
            self.ingest = False
        self.endpoint.check_corpus(sum(not is_blank(document) for document in documents()))
        spare = int(top_k < self.endpoint.top_k_limit())
        run = self.endpoint.rank(queries, top_k + spare, **search)
        refuse_foreign(run, corpus.keys())
        for query_id, scores in run.items():
            scores.pop(query_id, None)
            run[query_id] = dict(list(scores.items())[:top_k])
        return run
