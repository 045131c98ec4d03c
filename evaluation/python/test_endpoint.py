"""`Endpoint` and `BeirRetriever` against a server that misbehaves. Run: python -m unittest test_endpoint (needs requests)."""

from __future__ import annotations

import json
import threading
import unittest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from beir_retriever import BeirRetriever
from expandr_endpoint import Endpoint, EndpointError

CORPUS = {f"d{number}": {"title": "", "text": f"text {number}"} for number in range(5)}
QUERIES = {f"q{number}": f"query {number}" for number in range(6)} | {"d3": "a document's own text"}


class Double(ThreadingHTTPServer):
    """Ranks all documents in the same order; `misbehave` may change a search's answer, or give a whole refusal."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.documents = dict(CORPUS)
        self.seen: list[dict[str, Any]] = []
        self.authorizations: list[str | None] = []
        self.refusals: list[int] = []  # statuses of the next requests
        self.status = "disabled"
        self.knows_include_text = True
        self.bundles = ["b"]  # the last one answers all further searches
        self.refused_once: set[str] = set()  # queries that get 429 within their batch, once

    def answer(self, search: dict[str, Any]) -> dict[str, Any]:
        self.seen.append(search)
        if search["query"] in self.refused_once:
            self.refused_once.remove(search["query"])
            return {"status": 429, "detail": "no place"}
        hits = [{"id": name, "score": 1 - place / 10} for place, name in enumerate(self.documents)]
        bundle = self.bundles.pop(0) if len(self.bundles) > 1 else self.bundles[0]
        expansion = {"status": self.status, "reason": "timeout"}
        return {"hits": hits[: search["top_k"]], "bundle": bundle, "expansion": expansion}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Double

    def do_GET(self) -> None:
        self.reply(200, {"limits": {"top_k": 5}, "documents": len(self.server.documents), "bundle": {"id": "b"}})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.authorizations.append(self.headers["Authorization"])
        if self.server.refusals:
            self.reply(self.server.refusals.pop(0), {"detail": "no place"})
        elif self.path == "/documents/bulk":
            documents = [json.loads(line) for line in body.splitlines()]
            self.server.documents.update({document["id"]: document for document in documents})
            self.reply(200, {"received": len(documents), "failed": 0})
        elif not self.server.knows_include_text and b"include_text" in body:
            self.reply(422, {"detail": "/searches/0/include_text: unknown field"})
        else:
            self.reply(200, {"results": [self.server.answer(search) for search in json.loads(body)["searches"]]})

    def reply(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_arguments: Any) -> None:
        pass


class EndpointTest(unittest.TestCase):
    def setUp(self) -> None:
        self.server = Double()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def tearDown(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def endpoint(self, **options: Any) -> Endpoint:
        return Endpoint(self.url, **({"expansion": False, "batch": 3, "concurrency": 2} | options))

    def test_every_query_is_answered_in_spite_of_refusals(self) -> None:
        self.server.refusals = [429, 503]
        self.server.refused_once = {"query 1"}
        run = self.endpoint().rank(QUERIES, 2, search_mode="exact")
        self.assertEqual(list(run), list(QUERIES))
        self.assertEqual(run["q1"], {"d0": 1.0, "d1": 0.9})
        self.assertEqual(len(self.server.seen), len(QUERIES) + 1)
        for search in self.server.seen:
            self.assertEqual((search["expansion"], search["search_mode"], search["top_k"]), (False, "exact", 2))

    def test_other_refusals_end_the_run(self) -> None:
        self.server.refusals = [401]
        with self.assertRaisesRegex(EndpointError, "401"):
            self.endpoint().rank(QUERIES, 2)
        self.server.refusals = [503] * 100
        with self.assertRaisesRegex(EndpointError, "tried for 0 s"):
            self.endpoint(patience_seconds=0.2).rank(QUERIES, 2)

    def test_texts_are_left_out_where_the_server_can(self) -> None:
        self.endpoint().rank(QUERIES, 2)
        self.assertEqual({search["include_text"] for search in self.server.seen}, {False})
        self.server.knows_include_text = False
        self.server.seen.clear()
        self.assertEqual(len(self.endpoint().rank(QUERIES, 2)), len(QUERIES))
        self.assertFalse(any("include_text" in search for search in self.server.seen))

    def test_degraded_answers_are_refused_unless_allowed(self) -> None:
        self.server.status = "degraded"
        with self.assertRaisesRegex(EndpointError, "q0.*without the expansion.*timeout"):
            self.endpoint(expansion=True).rank(QUERIES, 2)
        tolerant = self.endpoint(expansion=True, allow_degraded=True)
        self.assertEqual(len(tolerant.rank(QUERIES, 2)), len(QUERIES))
        self.assertEqual(set(tolerant.degraded), set(QUERIES))
        # An expansion that was switched off on the server is none either.
        self.server.status = "disabled"
        with self.assertRaisesRegex(EndpointError, "disabled"):
            self.endpoint(expansion={"max_tokens": 8}).rank(QUERIES, 2)

    def test_a_bundle_that_changes_is_refused(self) -> None:
        self.server.bundles = ["b", "b", "c"]
        with self.assertRaisesRegex(EndpointError, "bundle changed"):
            self.endpoint().rank(QUERIES, 2)

    def test_beir_gets_all_but_the_own_document(self) -> None:
        retriever = BeirRetriever(self.endpoint(ranking="lexical", api_key="k"))
        run = retriever.search(CORPUS, QUERIES, 4, "cos_sim")
        self.assertEqual(list(run["d3"]), ["d0", "d1", "d2", "d4"])
        self.assertEqual(list(run["q0"]), ["d0", "d1", "d2", "d3"])
        self.assertEqual({(search["top_k"], search["ranking"]) for search in self.server.seen}, {(5, "lexical")})
        self.assertEqual(set(self.server.authorizations), {"Bearer k"})
        # No spare hit beyond the server's limit, and no more than that.
        self.assertEqual(len(retriever.search(CORPUS, QUERIES, 5)["d3"]), 4)
        with self.assertRaisesRegex(EndpointError, "gives 5"):
            retriever.search(CORPUS, QUERIES, 6)

    def test_beir_loads_the_corpus_and_refuses_another(self) -> None:
        self.server.documents = {}
        blank = {"blank": {"title": "", "text": " "}}
        run = BeirRetriever(self.endpoint(), ingest=True).search(CORPUS | blank, QUERIES, 5)
        self.assertEqual(set(run["q0"]), set(CORPUS))
        self.server.documents["foreign"] = {}
        with self.assertRaisesRegex(EndpointError, "holds 6 documents, the collection has 5"):
            BeirRetriever(self.endpoint()).search(CORPUS, QUERIES, 5)
        del self.server.documents["d0"]
        with self.assertRaisesRegex(EndpointError, "'foreign'.*no document of this"):
            BeirRetriever(self.endpoint()).search(CORPUS, QUERIES, 5)


if __name__ == "__main__":
    unittest.main()
