"""That the checks of the documentation find mistakes: python3 tests/docs/test_checks.py BINARY"""

import sys
import tempfile
import unittest
from pathlib import Path

from blocks import Unclassed, blocks_of
from checks import Commands, missing_metrics, scripts_in, simple_commands, wrong_json, wrong_links

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = Path(sys.argv.pop(1)).resolve()


class Blocks(unittest.TestCase):
    def kinds(self, text: str) -> list[str]:
        return [block.kind for block in blocks_of(Path("x.md"), text)]

    def test_every_block_has_a_class(self):
        text = "```sh\nls\n```\n<!-- not run: a GPU -->\n\n```python\nx\n```\n```json\n{}\n```\n```rust\n```\n"
        self.assertEqual(self.kinds(text), ["run", "checked", "parsed", "compiled"])

    def test_a_block_without_a_class_is_refused(self):
        for text in ("```\nls\n```\n", "```toml\na = 1\n```\n", "```sh\nls\n"):
            with self.assertRaises(Unclassed):
                self.kinds(text)

    def test_a_reason_counts_only_right_before_its_block(self):
        self.assertEqual(self.kinds("<!-- not run: a GPU -->\ntext\n```sh\nls\n```\n"), ["run"])


class Checks(unittest.TestCase):
    def wrong(self, text: str) -> list[str]:
        return Commands(REPOSITORY, BINARY).check(text)

    def test_good_commands_pass(self):
        text = (
            "# a comment with --no-such-flag\n"
            "expandr train training/recipes/smoke.toml --set a.b=1 \\\n  --ablations   # --nothing\n"
            "cargo run --release -p expandr-index --example recall -- documents=10\n"
            "cargo run --release -- jobs start retrain --recipe smoke --watch\n"
            "curl -s localhost:8080/x -d '{\"a\":\n 1}' | python3 -c 'print(1)'\n"
            'expandr bundles activate "$(expandr bundles import x)"\n'
        )
        self.assertEqual(self.wrong(text), [])

    def test_mistakes_are_found(self):
        for text in (
            "expandr serve --no-such-flag",
            "expandr jobs start retrain --no-such-flag x",
            "true && X=1 expandr no-such-command",
            "cargo run --release -- serve --no-such-flag",
            "cargo bench -p no-such-package",
            "cargo run -p expandr-index --example no_such_example",
            "python evaluation/no_such_file.py",
        ):
            self.assertEqual(len(self.wrong(text)), 1, text)

    def test_here_documents_are_scripts_and_no_commands(self):
        text = "cd x && python - <<'END'\nprint('expandr serve --no')\nEND\nexpandr models list\n"
        self.assertEqual([words[0] for words in simple_commands(text)], ["cd", "python", "expandr"])
        self.assertEqual(scripts_in(text), ["print('expandr serve --no')"])

    def test_broken_json_and_links(self):
        self.assertEqual((wrong_json('{"a": 1}'), len(wrong_json("{a: 1}"))), ([], 1))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "a.md"
            file.write_text("# One two\n[x](a.md#one-two) [y](b.md) [z](#three) [w](https://x)\n")
            self.assertEqual(len(wrong_links(Path(folder), file)), 2)

    def test_a_metric_that_nobody_has_told_of(self):
        wrong = missing_metrics(REPOSITORY, "# TYPE expandr_new_total counter\n# TYPE process_threads gauge\n")
        self.assertTrue(any("expandr_new_total" in why for why in wrong), wrong)


if __name__ == "__main__":
    unittest.main()
