"""What both adapters need of a server: ranked lists for queries, and a corpus loaded into it.

Needs `requests`. Speaks `POST /search/batch`, `POST /documents/bulk` and `GET /info` (docs/api.md).
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import requests

RETRIED = {429, 502, 503, 504}
EXPANDED = {"applied", "cached", "supplied"}
NOT_EXPANDED_ON_PURPOSE = {"disabled", "skipped"}


class EndpointError(RuntimeError):
    """The server refused, stayed away, or answered something that must not be scored."""


class Endpoint:
    """One server, and how it is asked.

    Args:
        url: The server's base URL, e.g. `http://127.0.0.1:8080`.
        expansion: The `expansion` member of every search: `False`, `True`, or an object such as
            `{"max_tokens": 64, "timeout_ms": 20000}`. None leaves it to the server's configuration.
        ranking: `dense`, `lexical` or `hybrid`. None leaves it to the server.
        search: Further members of every search, e.g. `{"search_mode": "exact"}`.
        api_key: Bearer key, where the server wants one; to load a corpus it must be one that may write.
        batch: Searches a request. They share its deadline: where a language model writes the expansions, keep it small.
        concurrency: Requests under way at a time.
        allow_degraded: Score answers that lack the expansion that was asked for. They are refused otherwise, because
            their figures would be those of raw retrieval.
        patience_seconds: How long one request is tried again while the server is overloaded or away.
        timeout_seconds: How long one answer may take.
    """

    def __init__(
        self,
        url: str,
        *,
        expansion: bool | dict[str, Any] | None = None,
        ranking: str | None = None,
        search: Mapping[str, Any] | None = None,
        api_key: str | None = None,
        batch: int = 16,
        concurrency: int = 4,
        allow_degraded: bool = False,
        patience_seconds: float = 120.0,
        timeout_seconds: float = 600.0,
    ) -> None:
        self.url = url.rstrip("/")
        self.settings: dict[str, Any] = dict(search or {})
        if expansion is not None:
            self.settings["expansion"] = expansion
        if ranking is not None:
            self.settings["ranking"] = ranking
        self.batch = batch
        self.concurrency = concurrency
        self.allow_degraded = allow_degraded
        self.patience_seconds = patience_seconds
        self.timeout_seconds = timeout_seconds
        self._without_texts = "include_text" not in self.settings  # until a server says it doesn't know the field
        self.degraded: dict[str, str] = {}  # by query: why its answer lacks the expansion
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._threads = threading.local()  # a session, and with it a connection, for each thread

    def info(self) -> dict[str, Any]:
        """What the server says about itself: bundle, limits, number of documents."""
        return self._request("GET", "/info").json()

    def top_k_limit(self) -> int:
        """The most hits that a search may ask for."""
        return self.info().get("limits", {}).get("top_k", sys.maxsize)

    def rank(self, queries: Mapping[str, str], top_k: int, **search: Any) -> dict[str, dict[str, float]]:
        """The scores of the `top_k` best documents of every query, best first. `search` overrides settings.

        Raises:
            EndpointError: When a query is refused, an answer is degraded, or the bundle changes in the middle.
        """
        limit = self.top_k_limit()
        if top_k > limit:
            raise EndpointError(f"{top_k} documents a query were asked for, {self.url} gives {limit}: ask for fewer")
        template = {**self.settings, **search, "top_k": top_k}
        self.degraded = {}
        run: dict[str, dict[str, float]] = {}
        bundles: set[str] = set()
        with ThreadPoolExecutor(self.concurrency) as pool:
            asked = [pool.submit(self._ask, part, template) for part in _chunks(queries.items(), self.batch)]
            try:
                for answers in (future.result() for future in asked):
                    for query_id, answer in answers.items():
                        self._check(query_id, answer, template.get("expansion"))
                        bundles.add(answer.get("bundle", ""))
                        run[query_id] = {hit["id"]: hit["score"] for hit in answer["hits"]}
                    if len(bundles) > 1:
                        raise EndpointError(f"the bundle changed in the middle of the run: {sorted(bundles)}")
            finally:
                pool.shutdown(cancel_futures=True)
        return {query_id: run[query_id] for query_id in queries}

    def ingest(self, documents: Iterable[Mapping[str, str]], per_request: int = 256) -> int:
        """Loads documents (`id`, `title`, `text`) into the server; those that it has under the same id are replaced.
        Documents without title and text are left out, there is nothing in them to find. Returns how many were sent.

        Raises:
            EndpointError: When a document is refused: the figures would be those of a smaller corpus.
        """
        sent = 0
        for part in _chunks((d for d in documents if not is_blank(d)), per_request):
            body = "".join(json.dumps(document) + "\n" for document in part).encode()
            answer = self._request("POST", "/documents/bulk", body, "application/x-ndjson").json()
            if answer["failed"]:
                raise EndpointError(f"{answer['failed']} documents were refused, the first: {answer['errors'][0]}")
            sent += len(part)
        return sent

    def check_corpus(self, documents: int) -> None:
        """Refuses a server that says that it holds another number of documents: another corpus, or several."""
        held = self.info().get("documents", documents)
        if held != documents:
            raise EndpointError(
                f"{self.url} holds {held} documents, the collection has {documents} that are not blank: "
                "load it into an empty index first (ingest=True, or `expandr ingest`)"
            )

    def _ask(self, queries: list[tuple[str, str]], template: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The answers to one batch; members that were refused for the moment are asked again."""
        start = time.monotonic()
        answers: dict[str, dict[str, Any]] = {}
        while queries:
            results = self._post_searches([{**template, "query": text} for _, text in queries])
            again = []
            for (query_id, text), result in zip(queries, results, strict=True):
                if "hits" in result:
                    answers[query_id] = result
                elif result.get("status") in RETRIED and time.monotonic() - start < self.patience_seconds:
                    again.append((query_id, text))
                else:
                    raise EndpointError(f"{self.url} could not answer query {query_id!r}: {result}")
            queries = again
            if queries:
                time.sleep(1.0)
        return answers

    def _post_searches(self, searches: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if self._without_texts:  # they are most of an answer's bytes
            body = {"searches": [{**search, "include_text": False} for search in searches]}
            try:
                return self._request("POST", "/search/batch", json.dumps(body).encode()).json()["results"]
            except EndpointError as error:
                if "include_text" not in str(error):
                    raise
                self._without_texts = False
        body = {"searches": searches}
        return self._request("POST", "/search/batch", json.dumps(body).encode()).json()["results"]

    def _check(self, query_id: str, answer: dict[str, Any], wanted: bool | dict[str, Any] | None) -> None:
        report = answer.get("expansion", {})
        status = report.get("status", "unstated")
        asked_for = wanted is True or (isinstance(wanted, dict) and wanted.get("mode", "always") == "always")
        if status in EXPANDED or (status in NOT_EXPANDED_ON_PURPOSE and not asked_for):
            return
        if status == "unstated" and not asked_for:
            return
        why = f"{status}, {report.get('reason', 'no reason given')}, {report.get('detail', 'no detail')}"
        if not self.allow_degraded:
            raise EndpointError(
                f"query {query_id!r} was answered without the expansion that was asked for ({why}): allow it more time, "
                "ask less at once, or pass allow_degraded=True to score raw retrieval in its place"
            )
        self.degraded[query_id] = why

    def _request(
        self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json"
    ) -> requests.Response:
        """Asks once, and again while the server is overloaded or away, as it says by Retry-After."""
        if not hasattr(self._threads, "session"):
            self._threads.session = requests.Session()
            self._threads.session.headers.update(self._headers)
        start = time.monotonic()
        while True:
            pause = 1.0
            try:
                response = self._threads.session.request(
                    method, self.url + path, data=body, headers={"Content-Type": content_type},
                    timeout=self.timeout_seconds,
                )
                if response.ok:
                    return response
                problem = f"{response.status_code}: {response.text[:500]}"
                if response.status_code not in RETRIED:
                    raise EndpointError(f"{self.url}{path} answered {problem}")
                if (retry_after := response.headers.get("Retry-After", "")).isdecimal():
                    pause = float(retry_after)
            except requests.RequestException as error:
                problem = str(error)
            if time.monotonic() + pause - start > self.patience_seconds:
                raise EndpointError(f"{self.url}{path}, tried for {self.patience_seconds:.0f} s: {problem}")
            time.sleep(pause)


def is_blank(document: Mapping[str, str]) -> bool:
    """Whether a document has neither title nor text. The server refuses such documents."""
    return not (document["title"].strip() or document["text"].strip())


def refuse_foreign(run: Mapping[str, Mapping[str, float]], corpus: Set[str]) -> None:
    """Refuses a run with documents that are not the collection's."""
    for query_id, scores in run.items():
        foreign = scores.keys() - corpus
        if foreign:
            raise EndpointError(
                f"the server found {sorted(foreign)[0]!r} for query {query_id!r}, which is no document of this "
                "collection: load it into an empty index first"
            )


def _chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
