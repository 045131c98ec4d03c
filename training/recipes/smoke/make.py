"""Makes the data of smoke.toml: pairs and a test collection about lakes, rivers, birds and machines that don't exist.

    python3 training/recipes/smoke/make.py
"""

import json
import pathlib
import random

HERE = pathlib.Path(__file__).parent
FIRST = "Al Bor Cel Dor El Fen Gal Hal Ild Jor Kel Lom Mor Nel Or Pel Quil Ros Sel Tor".split()
SECOND = "din un ava eth wick mere stad holm by gard ona ith".split()
KINDS = {
    "lake": [
        ("how deep is {n}", "{n} is a lake {a} metres deep at its deepest place. It lies {b} kilometres from the sea."),
        ("when was {n} dammed", "The dam of {n} was closed in the year {c}, and {b} farms were flooded."),
        ("which fish live in {n}", "Perch and {o} trout live in {n}, and {a} tonnes of them are caught every year."),
    ],
    "bird": [
        ("what does the {n} eat", "The {n} is a wading bird that eats snails and {o} beetles in shallow water."),
        ("how many eggs does the {n} lay", "A pair of {n} birds lays {d} eggs in a nest of {o} reeds each spring."),
        ("where does the {n} winter", "In autumn the {n} flies {b} kilometres south and winters in the marshes of {o}."),
    ],
    "machine": [
        ("what is a {n} engine for", "A {n} engine lifts water out of mines; one of them lifts {a} tonnes an hour."),
        ("who built the first {n} engine", "The first {n} engine was built in {c} by the smith {o}, who sold {d} of them."),
    ],
}


def main():
    rng = random.Random(7)
    names = sorted(first + second for first in FIRST for second in SECOND)
    rng.shuffle(names)
    pairs = []
    for index in range(90):
        kind = list(KINDS)[index % len(KINDS)]
        name = ("Lake " if kind == "lake" else "") + names[index]
        values = dict(n=name, a=rng.randint(12, 90), b=rng.randint(100, 900), c=rng.randint(1700, 1950), d=rng.randint(2, 9))
        for query, passage in rng.sample(KINDS[kind], 2):
            values["o"] = names[120 + rng.randrange(100)]
            pairs.append({"query": query.format(**values), "positive": passage.format(**values)})
    test = [pair for index, pair in enumerate(pairs) if index % 6 == 0]
    train = [pair for index, pair in enumerate(pairs) if index % 6 != 0]
    write(HERE / "train.jsonl", train)
    folder = HERE / "collection"
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    write(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "", "text": p["positive"]} for i, p in enumerate(test)]
          + [{"_id": f"t{i}", "title": "", "text": p["positive"]} for i, p in enumerate(train[::2])])
    write(folder / "queries.jsonl", [{"_id": f"q{i}", "text": p["query"]} for i, p in enumerate(test)])
    lines = ["query-id\tcorpus-id\tscore"] + [f"q{i}\td{i}\t1" for i in range(len(test))]
    (folder / "qrels/test.tsv").write_text("\n".join(lines) + "\n")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


main()
