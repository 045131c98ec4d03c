"""Runs the documentation: every code block of README.md and docs/*.md, in order, a folder and a server a file.

    python3 tests/docs/run.py --binary target/release/expandr --models-dir models/store [--only FILE] [--list]

A block in sh, python or javascript is run as it stands; only the port of `localhost:8080` is another, and a server in
the foreground is started beside. Where the line before it says `<!-- not run: why -->`, what it names is checked: that commands, flags,
packages and files exist, that scripts parse. JSON is parsed; Rust must be a region of tests/it/docs.rs, where it is
compiled and run. Links are followed, and the tables of metrics and routes are compared with server and source.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from blocks import RUN_BY, Block, Unclassed, blocks_of
from checks import Commands, missing_metrics, missing_routes, scripts_in, wrong_json, wrong_links
from world import World

REPOSITORY = Path(__file__).resolve().parents[2]
# Seconds that one block may take.
LIMIT = 300


class Report:
    """What was done, printed as it happens."""

    def __init__(self) -> None:
        self.counts: Counter = Counter()
        self.failures: list[str] = []

    def done(self, block: Block, what: str, remark: str) -> None:
        self.counts[what] += 1
        print(f"{what:8} {block.place:22} {block.language:10} {remark}", flush=True)

    def fail(self, why: str) -> None:
        self.failures.append(why)
        print(f"FAILED   {why}", flush=True)


def files() -> list[Path]:
    """The documents whose blocks are run."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def syntax(block: Block) -> list[str]:
    """What keeps a script from being parsed."""
    scripts = [block.text] if block.language == "python" else scripts_in(block.text) if block.language == "sh" else []
    wrong = []
    for script in scripts:
        try:
            compile(script, block.place, "exec")
        except SyntaxError as error:
            wrong.append(f"the Python does not parse: {error}")
    shell = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True) if block.language == "sh" else None
    if shell and shell.returncode:
        wrong.append(f"the shell does not parse it: {shell.stderr}")
    return wrong


def static(block: Block, commands: Commands, report: Report) -> None:
    """What can be said of a block without running it."""
    wrong = syntax(block)
    if block.language == "sh":
        wrong += commands.check(block.text)
    if block.kind == "parsed":
        wrong += wrong_json(block.text)
        report.done(block, "parsed", "")
    if block.kind == "compiled":
        if block.text not in (REPOSITORY / "tests/it/docs.rs").read_text():
            wrong.append("the Rust is not, line by line, a region of tests/it/docs.rs")
        report.done(block, "compiled", "by tests/it/docs.rs")
    if block.kind == "checked":
        report.done(block, "checked", f"only: {block.reason}")
    for why in wrong:
        report.fail(f"{block.place}: {why}")


def run_file(file: Path, blocks: list[Block], arguments: argparse.Namespace, report: Report) -> None:
    """Runs what is to be run of one file, in a world of its own."""
    with tempfile.TemporaryDirectory(prefix="expandr-docs-") as folder:
        world = World(Path(folder), REPOSITORY, arguments.binary.resolve(), arguments.models_dir.resolve())
        try:
            for block in blocks:
                if block.kind != "run":
                    continue
                if not shutil.which(RUN_BY[block.language]):
                    report.done(block, "absent", f"not run: {RUN_BY[block.language]} is not installed")
                    continue
                start = time.monotonic()
                well, said = world.run(block.language, block.text, LIMIT)
                if well:
                    report.done(block, "ran", f"{time.monotonic() - start:.1f} s")
                    if arguments.verbose:
                        print(said)
                else:
                    report.fail(f"{block.place}: it did not end well\n{block.text}--- it said:\n{said[-4000:]}")
            if file.name == "operations.md":
                for why in missing_metrics(REPOSITORY, world.metrics()):
                    report.fail(why)
        finally:
            world.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--models-dir", type=Path, required=True)
    parser.add_argument("--only", action="append", help="only the file of this name; may be repeated")
    parser.add_argument("--list", action="store_true", help="run nothing; check what can be checked without")
    parser.add_argument("--verbose", action="store_true", help="also print what blocks say that go well")
    arguments = parser.parse_args()
    report = Report()
    commands = Commands(REPOSITORY, arguments.binary.resolve())
    for file in files():
        if arguments.only and file.name not in arguments.only:
            continue
        try:
            blocks = blocks_of(file)
            for block in blocks:
                static(block, commands, report)
        except Unclassed as error:
            report.fail(str(error))
            continue
        if arguments.list:
            for block in blocks:
                if block.kind == "run":
                    report.done(block, "to run", "")
        elif any(block.kind == "run" for block in blocks):
            run_file(file, blocks, arguments, report)
    for file in [*files(), REPOSITORY / "ARCHITECTURE.md", REPOSITORY / "CONTRIBUTING.md"]:
        for why in wrong_links(REPOSITORY, file):
            report.fail(why)
    for why in missing_routes(REPOSITORY):
        report.fail(why)
    for remark in sorted(set(commands.unknown)):
        print(f"note     {remark}")
    counted = ", ".join(f"{number} {what}" for what, number in sorted(report.counts.items()))
    print(f"{sum(report.counts.values())} blocks: {counted}; {len(report.failures)} failures")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
