#!/usr/bin/env python3
"""Proves dashboard and alerts against a running server.

Starts `expandr serve` on an empty folder and Prometheus with deploy/prometheus.yml (scraping each second), writes
documents, searches in every way, and asks Prometheus for every panel's queries, the annotations', every recorded figure
and every alert's figure. An error, no result, or a result without a number is a failure; so is what promtool finds.
The server has the language model's double of this script (an OpenAI-compatible server), so that no minute is spent on
passages, unless --expander names another.

usage: deploy/check.py [--binary target/release/expandr] [--models-dir models/store] [--prometheus PATH] [--promtool PATH]
Needs Python 3.9 and Prometheus (Debian: `apt-get install prometheus`, or `apt-get download prometheus` and `dpkg -x` into
a folder). Ends with 0 when everything is answered, 1 when something is not, 2 when the check itself can't run.
"""

import argparse
import http.server
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
KEY = "check-key-0123456789"
RANGE = "20s"


class CannotRun(Exception):
    """The check itself can't run; the message has the remedy."""


def call(method, url, body=None, headers=None, timeout=60):
    """Status and decoded body of a request; refusals are answers, too."""
    data = None if body is None else (body if isinstance(body, bytes) else json.dumps(body).encode())
    headers = {"content-type": "application/json", **(headers or {})}
    request = urllib.request.Request(url, data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            status, text = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text.decode(errors="replace")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class LanguageModel(http.server.BaseHTTPRequestHandler):
    """Streams one sentence; waits before it where the prompt says so."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        if "slowly" in body:
            time.sleep(2)
        words = "The passage speaks of apples and whales in many plain words .".split()
        pieces = [{"choices": [{"index": 0, "delta": {"content": word + " "}, "finish_reason": None}]} for word in words]
        pieces.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
                       "usage": {"prompt_tokens": 9, "completion_tokens": len(words), "total_tokens": 9 + len(words)}})
        text = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"
        try:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:
            pass  # a search that gave up

    def log_message(self, *arguments):
        pass


class Process:
    """A child with its log, ended when the check ends."""

    def __init__(self, name, command, folder, environment=None):
        self.name, self.log = name, folder / f"{name}.log"
        with open(self.log, "wb") as log:
            self.child = subprocess.Popen([str(word) for word in command], stdout=log, stderr=log, cwd=folder,
                                          env={**os.environ, **(environment or {})})

    def wait_for(self, url, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.child.poll() is not None:
                break
            try:
                if call("GET", url, timeout=5)[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.3)
        tail = self.log.read_text(errors="replace")[-2000:]
        raise CannotRun(f"{self.name} does not answer at {url}; its log ends:\n{tail}")

    def stop(self):
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(30)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()


def traffic(url, number):
    """Writes and searches of every kind; what is expected of each answer is checked."""

    def expect(wanted, method, path, body=None, **more):
        status, answer = call(method, url + path, body, **more)
        if status != wanted:
            raise CannotRun(f"{method} {path} answered {status} instead of {wanted}: {answer}")
        return answer

    admin = {"authorization": f"Bearer {KEY}"}
    texts = ["red apples grow on trees", "blue whales swim in oceans", "green frogs jump in ponds"]
    documents = [{"id": f"{number}-{n}", "text": text} for n, text in enumerate(texts)]
    expect(201, "PUT", "/documents", {"documents": documents})
    expect(200, "PUT", "/documents", {"documents": documents[:1]})
    expect(204, "DELETE", f"/documents/{number}-2")
    lines = "".join(json.dumps({"id": f"bulk-{number}-{n}", "text": f"line {n}"}) + "\n" for n in range(5)).encode()
    expect(202, "POST", "/documents/bulk?wait=false", lines, headers={"content-type": "application/x-ndjson"})

    def search(status, **body):
        answer = expect(200, "POST", "/search", body)
        if answer["expansion"]["status"] not in status.split("|"):
            raise CannotRun(f"{body} was answered with expansion {answer['expansion']}, not {status}")

    for n in range(3):
        query = f"apples number {number} {n}"
        search("applied", query=query)
        search("cached", query=query)
        search("disabled", query=query, expansion=False)
        search("disabled", query=query, ranking="lexical")
        search("applied|cached", query=query, ranking="hybrid")
        search("supplied", query=query, expansion={"texts": ["whales swim in the oceans of the world"]})
        search("degraded", query=f"slowly {query}", expansion={"timeout_ms": 150})
    strict = {"query": f"slowly {number}", "expansion": {"timeout_ms": 150, "on_failure": "fail"}}
    expect(504, "POST", "/search", strict)
    expect(422, "POST", "/search", {"query": "x", "top_k": 0})
    expect(200, "POST", "/search/batch", {"searches": [{"query": "frogs", "expansion": False}] * 3})
    expect(202, "POST", "/admin/jobs", {"kind": "snapshot"}, headers=admin)


def dashboard_queries(path):
    """Name and expression of every query of the dashboard, Grafana's variables filled in."""
    dashboard = json.loads(path.read_text())
    fill = {"$__rate_interval": RANGE, "$__interval": "5s", "$instance": ".*"}
    queries = []
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            queries.append((f"panel «{panel['title']}» {target['refId']}", target["expr"]))
        if panel["type"] != "row" and not panel.get("targets"):
            raise CannotRun(f"the panel «{panel['title']}» asks for nothing")
    for annotation in dashboard["annotations"]["list"]:
        queries.append((f"annotation «{annotation['name']}»", without_comparison(annotation["expr"])))
    for name, expression in queries:
        for variable, value in fill.items():
            expression = expression.replace(variable, value)
        if "$" in expression:
            raise CannotRun(f"{name}: `{expression}` has a variable that this check doesn't know")
        yield name, expression


def without_comparison(expression):
    """What an alert compares with its threshold."""
    left, compared, _ = re.fullmatch(r"(.*?)\s+(<|>|==|<=|>=|!=)\s+(\S+)", expression.strip(), re.S).groups()
    assert compared
    return left


class Prometheus:
    """Questions to its HTTP API."""

    def __init__(self, url):
        self.url = url

    def rules(self):
        status, answer = call("GET", f"{self.url}/api/v1/rules")
        if status != 200:
            raise CannotRun(f"Prometheus' rules: {answer}")
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]

    def ask(self, expression):
        """None when there is a number, else what is wrong."""
        query = urllib.parse.urlencode({"query": expression})
        status, answer = call("GET", f"{self.url}/api/v1/query?{query}")
        if status != 200:
            return f"{answer.get('errorType')}: {answer.get('error')}"
        result = answer["data"]["result"]
        values = [float(series["value"][1]) for series in result]
        if not values:
            return "no result"
        if not any(math.isfinite(value) for value in values):
            return f"no number among {values}"
        return None


def find(given, name, remedy):
    found = shutil.which(str(given or name))
    if not found:
        raise CannotRun(f"{given or name} is missing; {remedy}")
    return Path(found).resolve()


def promtool(tool):
    """What promtool finds wrong."""
    wrong = []
    for words in (["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run([tool, *words], cwd=HERE, capture_output=True, text=True, check=False)
        said = "" if done.returncode == 0 else f":\n{done.stdout}{done.stderr}"
        print(f"{'ok    ' if done.returncode == 0 else 'WRONG '} promtool {' '.join(words)}{said}")
        wrong += [] if done.returncode == 0 else [words]
    return wrong


def start_server(arguments, folder, language_model):
    port = free_port()
    flags = ["--listen", f"127.0.0.1:{port}", "--models-dir", arguments.models_dir.resolve(), "--index-dir", folder / "index"]
    flags += ["--expander", arguments.expander or language_model]
    binary = find(arguments.binary, "expandr", "build it: cargo build --release --bin expandr")
    server = Process("expandr", [binary, "serve", *flags], folder, {"EXPANDR_ADMIN_KEYS": KEY})
    return server, f"http://127.0.0.1:{port}"


def start_prometheus(program, folder, target):
    """Prometheus with the committed files, but for the target's address and the pace."""
    config = (HERE / "prometheus.yml").read_text()
    for old, new in (("expandr:8080", target.removeprefix("http://")), ("interval: 15s", "interval: 1s")):
        if old not in config:
            raise CannotRun(f"prometheus.yml has no `{old}`, which this check replaces")
        config = config.replace(old, new)
    (folder / "prometheus.yml").write_text(config)
    shutil.copy(HERE / "alerts.yml", folder)
    port = free_port()
    flags = ["--config.file=prometheus.yml", f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"]
    return Process("prometheus", [program, *flags], folder), f"http://127.0.0.1:{port}"


def check(arguments, folder, processes):
    remedy = "Debian: apt-get install prometheus; or name it with --prometheus and --promtool"
    program = find(arguments.prometheus, "prometheus", remedy)
    wrong = promtool(find(arguments.promtool or (arguments.prometheus and program.parent / "promtool"), "promtool", remedy))

    double = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LanguageModel)
    threading.Thread(target=double.serve_forever, daemon=True).start()
    server, url = start_server(arguments, folder, f"http://127.0.0.1:{double.server_port}/v1")
    processes.append(server)
    server.wait_for(f"{url}/readyz", 120)
    # A rate needs two scrapes of a series, and a quantile something that was added between them.
    traffic(url, 0)
    prometheus, prometheus_url = start_prometheus(program, folder, url)
    processes.append(prometheus)
    prometheus.wait_for(f"{prometheus_url}/-/ready", 60)
    time.sleep(3)
    for number in range(1, 4):
        traffic(url, number)
        time.sleep(2)

    asked = Prometheus(prometheus_url)
    questions = list(dashboard_queries(HERE / "grafana/dashboards/expandr.json"))
    for rule in asked.rules():
        if rule["health"] != "ok":
            wrong.append(rule["name"])
            print(f"WRONG  rule {rule['name']}: {rule.get('lastError') or rule['health']}")
        if rule["type"] == "recording":
            questions.append((f"figure {rule['name']}", rule["name"]))
        else:
            questions.append((f"alert {rule['name']}", without_comparison(rule["query"])))
    for name, expression in questions:
        problem = asked.ask(expression)
        print(f"{'WRONG ' if problem else 'ok    '} {name}" + (f": {problem}\n         {expression}" if problem else ""))
        wrong += [name] if problem else []
    passed = len(questions) + 3 - len(wrong)
    print(f"{passed} passed, {len(wrong)} failed")
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    environment = os.environ.get
    parser.add_argument("--binary", default=environment("EXPANDR_BINARY", ROOT / "target/release/expandr"))
    parser.add_argument("--models-dir", type=Path, default=environment("EXPANDR_MODELS_DIR", ROOT / "models/store"))
    parser.add_argument("--expander", help="a language model for --expander, instead of the double")
    parser.add_argument("--prometheus", help="the program, where it is not on the path")
    parser.add_argument("--promtool", help="likewise; beside prometheus by default")
    arguments = parser.parse_args()
    arguments.models_dir = Path(arguments.models_dir)
    processes = []
    with tempfile.TemporaryDirectory(prefix="expandr-check-") as folder:
        try:
            return check(arguments, Path(folder), processes)
        except CannotRun as error:
            print(f"deploy/check.py: {error}", file=sys.stderr)
            return 2
        finally:
            for process in reversed(processes):
                process.stop()


if __name__ == "__main__":
    sys.exit(main())
