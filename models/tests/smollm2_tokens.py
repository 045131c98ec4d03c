"""Writes data/smollm2_tokens.json: token ids of SmolLM2 by an implementation that shares nothing with ours.

Vocabulary, merges and token types come from the GGUF file through the `gguf` package; splitting and merging follow the
published tokenizer (digits one by one, then GPT-2's pattern) in plain Python with the `regex` package.

    pip install gguf regex
    python3 smollm2_tokens.py <smollm2-135m-instruct-q4_1.gguf>
"""

import json
import pathlib
import sys

import regex
from gguf import GGUFReader

PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
TEXTS = [
    "Hello, world!",
    "a\n\nb",
    "\n\n",
    "one\n\n\ntwo\n \nthree",
    "In 2024 there were 12345 of them, 3.14159 each.",
    " 7 77 777",
    "<|im_start|>user\nWhat is HNSW?<|im_end|>\n<|im_start|>assistant\n",
    "  two spaces,   three, and a tab\there",
    "naïve café — “quoted” … 你好世界 🚀👩‍🚀",
    "fn main() {\n    println!(\"{}\", x + 1);\n}\n",
    "don't we're I'LL 'S",
    "٣٤ ½ Ⅷ x² are digits of some kind",
    "trailing spaces   ",
    "Please write a passage to answer the question:\nQuestion: why is the sky blue?\nPassage:",
]


def byte_characters():
    kept = list(range(0x21, 0x7F)) + list(range(0xA1, 0xAD)) + list(range(0xAE, 0x100))
    characters = {byte: chr(byte) for byte in kept}
    for byte in range(256):
        if byte not in characters:
            characters[byte] = chr(256 + len(characters) - len(kept))
    return characters


def main():
    fields = GGUFReader(sys.argv[1]).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    kinds = fields["tokenizer.ggml.token_type"].contents()
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(fields["tokenizer.ggml.merges"].contents())}
    ids = {token: index for index, token in enumerate(tokens)}
    special = sorted((token for token, kind in zip(tokens, kinds) if kind == 3), key=len, reverse=True)
    characters = byte_characters()

    def merge(word):
        parts = [characters[byte] for byte in word.encode()]
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda pair: ranks.get(pair, len(ranks)))
            if best not in ranks:
                break
            merged, index = [], 0
            while index < len(parts):
                if tuple(parts[index : index + 2]) == best:
                    merged.append(parts[index] + parts[index + 1])
                    index += 2
                else:
                    merged.append(parts[index])
                    index += 1
            parts = merged
        return [ids[part] for part in parts]

    def encode(text):
        found = []
        for piece in regex.split("(" + "|".join(map(regex.escape, special)) + ")", text):
            if piece in special:
                found.append(ids[piece])
                continue
            for run in regex.split(r"(\p{N})", piece):
                for word in PATTERN.findall(run):
                    found.extend(merge(word))
        return found

    target = pathlib.Path(__file__).parent / "data" / "smollm2_tokens.json"
    cases = [[text, encode(text)] for text in TEXTS]
    target.write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
