"""What can be told of commands and documents without running them."""

import json
import re
import shlex
import subprocess
from pathlib import Path

HEREDOC = re.compile(r"<<-?\s*'?\"?(\w+)'?\"?")
# Paths of the repository that a command may name.
OURS = re.compile(r"^(\.ci|deploy|docs|evaluation|index|loadtest|models|src|tests|training)/\S+\.(py|sh|toml|ya?ml|json|rs|md)$")
CRATES = {"expandr": ".", **{f"expandr-{name}": name for name in ("models", "index", "training", "evaluation", "loadtest")}}


class Commands:
    """The commands that a shell text names, compared with what `--help` says."""

    def __init__(self, root: Path, binary: Path):
        self.root, self.binary = root, binary
        self.helps: dict[tuple, str] = {}
        # What could not be compared, and why.
        self.unknown: list[str] = []

    def check(self, text: str) -> list[str]:
        """What is wrong with the commands of `text`."""
        wrong = []
        for words in simple_commands(text):
            wrong += self.command(words)
        return wrong

    def command(self, words: list[str]) -> list[str]:
        wrong = [f"there is no file {word}" for word in words if OURS.match(word) and not (self.root / word).exists()]
        name = Path(words[0]).name
        if name in ("expandr", "expandr-loadtest"):
            wrong += self.flags(name, words[1:])
        if name == "cargo":
            wrong += self.cargo(words)
        return wrong

    def cargo(self, words: list[str]) -> list[str]:
        mine, ours = words, []
        if "--" in words:
            mine, ours = words[: words.index("--")], words[words.index("--") + 1 :]
        wrong, package = [], "expandr"
        for option, value in zip(mine, mine[1:]):
            if option == "-p":
                package = value
                if value not in CRATES:
                    wrong.append(f"there is no package {value}")
            if option in ("--example", "--bench", "--test"):
                folder = {"--example": "examples", "--bench": "benches", "--test": "tests"}[option]
                found = [p for c in CRATES.values() for p in (self.root / c / folder).glob(f"{value}*") if p.stem == value]
                if not found:
                    wrong.append(f"there is no {option[2:]} {value}")
        if mine[1:2] == ["run"] and ours and "--example" not in mine:
            wrong += self.flags(package, ours)
        return wrong

    def flags(self, program: str, words: list[str]) -> list[str]:
        """Subcommands and flags of one call of one of our programs."""
        path: tuple = (program,)
        flags = []
        for word in words:
            if word.startswith("--"):
                flags.append(word.split("=")[0])
            elif word in self.subcommands(path):
                path += (word,)
        if self.help(path) is None:
            self.unknown.append(f"{program} is not beside {self.binary}: its flags were not compared")
            return []
        said = " ".join(path)
        if len(path) == 1 and self.subcommands(path) and words and not words[0].startswith("-"):
            return [f"`{said} {words[0]}`: there is no such command"]
        return [
            f"`{said}` has no flag {flag}" for flag in flags if not re.search(rf"(?<![\w-]){flag}(?![\w-])", self.help(path))
        ]

    def subcommands(self, path: tuple) -> set[str]:
        text = self.help(path) or ""
        _, _, listed = text.partition("\nCommands:\n")
        return set(re.findall(r"^  ([a-z][\w-]*)(?:\s|$)", listed.partition("\n\n")[0], re.M)) - {"help"}

    def help(self, path: tuple) -> str | None:
        if path not in self.helps:
            program = self.binary if path[0] == "expandr" else self.binary.parent / path[0]
            if not program.exists():
                return None
            said = subprocess.run([program, *path[1:], "--help"], capture_output=True, text=True, check=True)
            self.helps[path] = said.stdout
        return self.helps[path]


def simple_commands(text: str) -> list[list[str]]:
    """The simple commands of a shell text, without comments, redirections, assignments and here-documents."""
    commands, lines = [], iter(text.splitlines())
    for line in lines:
        while True:  # a quoted text or a `\\` goes on in the next line
            try:
                if line.endswith("\\"):
                    raise ValueError
                lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&()<>")
                lexer.whitespace_split, lexer.commenters = True, "#"
                words = list(lexer)
                break
            except ValueError:
                line = line.removesuffix("\\") + ("" if line.endswith("\\") else "\n") + next(lines, "'\"")
        heredoc = HEREDOC.search(line)
        if heredoc:
            for inner in lines:
                if inner.strip() == heredoc.group(1):
                    break
        command: list[str] = []
        redirected = False
        for word in [*words, ";"]:
            operator = bool(word) and set(word) <= set(";|&()<>")
            if operator and set(word) & set("<>"):
                redirected = True  # the next word is a file
            elif redirected:
                redirected = False
            elif operator:
                if command:
                    commands.append(command)
                command = []
            elif command or not re.match(r"^(\w+=.*|do|then|else|time|nohup|exec|\$)$", word, re.S):
                command.append(word)
    return commands


def scripts_in(text: str) -> list[str]:
    """The Python of the here-documents of a shell text."""
    return re.findall(r"python3? - .*?<<'(?:\w+)'\n(.*?)\n(?:END|EOF)$", text, re.S | re.M)


def wrong_links(root: Path, file: Path) -> list[str]:
    """Links of a document to files and headings that don't exist."""
    wrong = []
    text = re.sub(r"```.*?^ *```", "", file.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"^\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (file.parent / path).resolve() if path else file
        if not linked.exists():
            wrong.append(f"{file.relative_to(root)}: the link {target} leads nowhere")
        elif anchor and linked.suffix == ".md" and anchor not in anchors(linked):
            wrong.append(f"{file.relative_to(root)}: {path or file.name} has no heading #{anchor}")
    return wrong


def anchors(file: Path) -> set[str]:
    """The anchors that headings get."""
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


def missing_metrics(root: Path, exported: str) -> list[str]:
    """Differences between the table of metrics and what a server exports and the source registers."""
    text = (root / "docs/operations.md").read_text()
    table = text.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    told = set(re.findall(r"^\| `(\w+)` \|", table, re.M))
    sources = "".join(file.read_text() for file in (root / "src").rglob("*.rs"))
    registered = set(re.findall(r'"((?:expandr|http)_[a-z0-9_]+)"', (root / "src/metrics.rs").read_text()))
    served = set(re.findall(r"^# TYPE (\w+) ", exported, re.M))
    wrong = [f"operations.md: its table of metrics lacks `{name}`" for name in sorted((served | registered) - told)]
    known = served | {name for name in told if f'"{name}"' in sources}
    return wrong + [f"operations.md: there is no metric `{name}`" for name in sorted(told - known)]


def missing_routes(root: Path) -> list[str]:
    """Routes of the server that docs/api.md doesn't name."""
    sources = "".join(file.read_text() for file in (root / "src/http").rglob("*.rs"))
    paths = {path.replace("{*", "{") for path in re.findall(r'\.route\(\s*"(/[^"]*)"', sources)}
    text = (root / "docs/api.md").read_text()

    def told(path: str) -> bool:
        name = re.escape(path)
        last = re.escape(path.rsplit("/", 1)[-1])
        return bool(re.search(rf"[A-Z] {name}(?=[`\[?,\s])|`{name}`|`…/{last}`", text))

    return [f"api.md: the route {path} is missing" for path in sorted(paths) if not told(path)]


def wrong_json(text: str) -> list[str]:
    """What keeps a block from being JSON."""
    try:
        json.loads(text)
        return []
    except ValueError as error:
        return [f"not JSON: {error}"]
