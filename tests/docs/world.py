"""A folder as a reader of the documentation may have it, with a server in it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ADMIN_KEY = "admin-key-of-the-documentation"
DOCUMENTS = {
    "4983": ("Vitamin D", "Vitamin D helps the body to absorb calcium, which keeps bones strong and prevents rickets."),
    "17": ("Calcium", "Milk, cheese and leafy vegetables are rich in calcium."),
    "100": ("Sky", "Sunlight is scattered by the molecules of the air, and blue light is scattered the most."),
    "101": ("Tides", "The gravity of the moon pulls the water of the oceans, so that the tides rise and fall."),
    "102": ("Bread", "Yeast turns sugar into carbon dioxide, whose bubbles make the dough rise before baking."),
    "103": ("Rome", "The Roman Empire fell in the west in 476, when Odoacer deposed the last emperor."),
    "104": ("Volcanoes", "Volcanoes erupt when molten rock from below the crust reaches the surface."),
    "105": ("Glaciers", "Glaciers are ice that flows slowly downhill under its own weight."),
    "106": ("Semaphores", "A semaphore limits how many tasks run concurrently: each holds a permit while it works."),
}
QUESTIONS = {
    "1": ("what does vitamin D do to bones?", "4983"),
    "2": ("why is the sky blue?", "100"),
    "3": ("how does dough rise?", "102"),
    "4": ("limit how many tasks run concurrently", "106"),
}

# Stands for `expandr` on the PATH. A server in the foreground would end no block: it is started beside, and the command
# returns when it is ready. The next one, or the end of the block, ends it.
EXPANDR = """#!{python}
import sys
sys.path.insert(0, {here!r})
from world import Served
if sys.argv[1:2] == ["serve"]:
    Served({root!r}).start({binary!r}, sys.argv[1:])
else:
    import os
    os.execv({binary!r}, [{binary!r}, *sys.argv[1:]])
"""
# An answer that is not 2xx ends the block.
CURL = '#!/bin/sh\nexec {curl} --fail-with-body "$@"\n'


class Served:
    """The server of a folder, by its process id in a file."""

    def __init__(self, root):
        self.root = Path(root)
        self.file = self.root / "server.pid"

    def start(self, binary: str, arguments: list[str]) -> None:
        self.stop()
        log = open(self.root / "server.log", "ab")
        child = subprocess.Popen([binary, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.file.write_text(str(child.pid))
        for _ in range(1200):
            if child.poll() is not None:
                said = (self.root / "server.log").read_text(errors="replace")
                sys.exit(f"the server ended with {child.returncode}:\n{said[-3000:]}")
            try:
                urllib.request.urlopen(f"{os.environ['EXPANDR_ENDPOINT']}/readyz", timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        sys.exit("the server was not ready within two minutes")

    def running(self) -> bool:
        return self.file.exists()

    def stop(self) -> None:
        if not self.file.exists():
            return
        pid = int(self.file.read_text())
        self.file.unlink()
        for sent in (signal.SIGTERM, signal.SIGKILL):
            if ended(pid):
                return
            os.kill(pid, sent)
            for _ in range(300):
                if ended(pid):
                    return
                time.sleep(0.1)


def ended(pid: int) -> bool:
    """Whether a process has ended, waited for or not: its parent may be gone."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass  # another process' child
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"
    except ProcessLookupError:
        return True


class World:
    """A temporary folder with what the documentation takes for granted."""

    def __init__(self, root: Path, repository: Path, binary: Path, models: Path):
        self.root, self.repository, self.binary = root, repository, binary
        self.served = Served(root)
        self.loaded = False
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.folder = root / "folder"
        self._files()
        tools = root / "bin"
        tools.mkdir()
        here = str(Path(__file__).parent)
        wrapper = EXPANDR.format(python=sys.executable, here=here, root=str(root), binary=str(binary))
        curl = shutil.which("curl") or sys.exit("the documentation's tests need curl")
        for name, script in (("expandr", wrapper), ("curl", CURL.format(curl=curl))):
            (tools / name).write_text(script)
            (tools / name).chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("EXPANDR_")}
        self.environment = kept | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "EXPANDR_LISTEN": self.address,
            "EXPANDR_ENDPOINT": f"http://{self.address}",
            "EXPANDR_MODELS_DIR": str(models),
            "EXPANDR_ADMIN_KEYS": ADMIN_KEY,
            "EXPANDR_ADMIN_KEY": ADMIN_KEY,
            "EXPANDR_FEEDBACK": "on",
        }
        # Only the wrapper reads it here, in this process.
        os.environ["EXPANDR_ENDPOINT"] = f"http://{self.address}"

    def _files(self) -> None:
        """Test collections, pairs, a bundle, and links to what the repository has."""
        for collection in ("path/to/scifact", "data/scifact", "data/cranfield"):
            folder = self.folder / collection
            (folder / "qrels").mkdir(parents=True)
            metadata = {"crate": "tokio"}
            corpus = [
                {"_id": id, "title": title, "text": text, "metadata": metadata} for id, (title, text) in DOCUMENTS.items()
            ]
            queries = [{"_id": id, "text": text} for id, (text, _) in QUESTIONS.items()]
            (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in corpus))
            (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in queries))
            judged = "".join(f"{id}\t{document}\t1\n" for id, (_, document) in QUESTIONS.items())
            (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
        pairs = [{"query": text, "positive": DOCUMENTS[document][1]} for text, document in QUESTIONS.values()]
        (self.folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in pairs))
        (self.folder / "models").mkdir()
        for name in ("evaluation", "training", "deploy", "loadtest", "models/bundles"):
            if (self.repository / name).exists():
                (self.folder / name).symlink_to(self.repository / name)

    def _bundle(self) -> None:
        """A bundle that differs from the served one in its query weight alone."""
        active = json.loads((self.folder / "index/store/main/active.json").read_text())["active"]
        manifest = json.loads((self.folder / f"index/store/main/bundles/{active}/bundle.json").read_text())
        manifest |= {"name": "small", "ids": None, "defaults": manifest["defaults"] | {"query_weight": 0.7}}
        (self.folder / "bundles/small").mkdir(parents=True)
        (self.folder / "bundles/small/bundle.json").write_text(json.dumps(manifest))

    def ready(self) -> None:
        """Starts the server that a reader has running, with documents in it, if it isn't there."""
        if self.served.running():
            return
        self.command(["expandr", "serve"], 150)
        if not self.loaded:
            self.command(["expandr", "ingest", "path/to/scifact"], 120)
            self._bundle()
            self.loaded = True

    def run(self, language: str, text: str, limit: float) -> tuple[bool, str]:
        """Runs a block as it stands but for the port; whether it went well, and what it said."""
        own_server = language == "sh" and re.search(r"\bexpandr serve\b", text)
        if own_server:
            self.ready()  # so that the folder is as after a first start
            self.served.stop()
        else:
            self.ready()
        text = re.sub(r"(localhost|127\.0\.0\.1):8080", self.address, text)
        start = {
            "sh": ["bash", "-euo", "pipefail", "-c", text],
            "python": [sys.executable, "-c", text],
            "javascript": ["node", "--input-type=module", "-e", text],
        }[language]
        try:
            return self.command(start, limit, quiet=True)
        finally:
            if own_server:
                self.served.stop()

    def command(self, words: list[str], limit: float, quiet: bool = False) -> tuple[bool, str]:
        """Runs a command in the folder."""
        try:
            ended = subprocess.run(
                words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, timeout=limit,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            )
        except subprocess.TimeoutExpired as late:
            said = late.stdout or b""
            return False, f"not done after {limit} s\n{said if isinstance(said, str) else said.decode(errors='replace')}"
        if ended.returncode and not quiet:
            sys.exit(f"{words}: {ended.stdout}")
        return ended.returncode == 0, ended.stdout

    def metrics(self) -> str:
        """What the server exports."""
        self.ready()
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=30) as answer:
            return answer.read().decode()

    def close(self) -> None:
        self.served.stop()
