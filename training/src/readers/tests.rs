//! Each reader on a small sample in the published shape (`tests/samples`), and on broken ones.

use std::path::{Path, PathBuf};

use super::*;

fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples").join(name)
}

fn source(format: Format, path: &str) -> SourceSettings {
    SourceSettings { name: "s".into(), format, path: sample(path), ..SourceSettings::default() }
}

fn read_all(source: &SourceSettings) -> Result<(Vec<Example>, SourceCounts)> {
    let mut examples = Vec::new();
    let mut intake = Intake::new(source, 8, |example, counts| {
        counts.kept += 1;
        examples.push(example);
        Ok(())
    });
    read(&mut intake)?;
    let counts = intake.counts().clone();
    drop(intake);
    assert_eq!(counts.read, counts.kept + counts.broken + counts.without_positive + counts.other_label);
    Ok((examples, counts))
}

fn shown(examples: &[Example]) -> Vec<String> {
    let line = |e: &Example| {
        let label = e.label.as_deref().map_or(String::new(), |label| format!(" ({label})"));
        format!("{}{label} => {} | {}", e.query, e.positive, e.negatives.join(" | "))
    };
    examples.iter().map(line).collect()
}

#[test]
fn e5_lines() {
    let (examples, counts) = read_all(&source(Format::Pairs, "e5.jsonl")).unwrap();
    assert_eq!(counts.read, 2);
    assert_eq!(
        shown(&examples)[1],
        "how deep is lake aldin => Lake Aldin is 41 metres deep at its deepest place. | Lake Borun has no fish."
    );
}

#[test]
fn every_layout_of_negatives() {
    let (examples, _) = read_all(&source(Format::Pairs, "pairs.jsonl")).unwrap();
    assert_eq!(shown(&examples), ["a => p | ", "b => p | n", "c => p | n | m", "d (1) => p | n | o"]);
}

#[test]
fn beir_judgments() {
    let (examples, counts) = read_all(&source(Format::Beir, "beir")).unwrap();
    assert_eq!(
        shown(&examples),
        [
            "what does a heron eat => Heron Herons eat fish. | A crane lifts loads.",
            "what does a heron eat => Frog Frogs are eaten by herons. | A crane lifts loads.",
            "what lifts loads => A crane lifts loads. | ",
        ]
    );
    assert_eq!(counts.without_positive, 1);
    let test = SourceSettings { split: "test".into(), ..source(Format::Beir, "beir") };
    assert!(read_all(&test).unwrap_err().to_string().contains("no such split; available: train"));
}

#[test]
fn squad_paragraphs() {
    let (examples, counts) = read_all(&source(Format::Squad, "squad.json")).unwrap();
    assert_eq!(counts.without_positive, 1);
    assert_eq!(
        shown(&examples),
        [
            "How deep is Lake Aldin? => Lake Aldin Lake Aldin is 41 metres deep. It was dammed in 1911. | ",
            "When was the lake dammed? => Lake Aldin Lake Aldin is 41 metres deep. It was dammed in 1911. | ",
        ]
    );
}

#[test]
fn dpr_passages() {
    let (examples, counts) = read_all(&source(Format::Dpr, "dpr.json")).unwrap();
    assert_eq!((counts.read, counts.without_positive), (2, 1));
    assert_eq!(
        shown(&examples),
        [
            "how deep is lake aldin => Lake Aldin Lake Aldin is 41 metres deep. | Lake Borun Lake Borun is deep. | \
          Crane Cranes lift."
        ]
    );
}

#[test]
fn hotpotqa_paragraphs_in_both_layouts() {
    let (examples, _) = read_all(&source(Format::Hotpotqa, "hotpotqa.json")).unwrap();
    let question = "When was the lake dammed that Aldinburg lies at? (bridge)";
    assert_eq!(
        shown(&examples),
        [
            format!(
                "{question} => Aldinburg Aldinburg lies at Lake Aldin. It has a mill. | Heron Herons wade. | Crane Cranes lift."
            ),
            format!(
                "{question} => Lake Aldin Lake Aldin is deep. It was dammed in 1911. | Heron Herons wade. | Crane Cranes lift."
            ),
            "Do herons lift? (comparison) => Heron Herons wade. | Crane Cranes lift.".to_owned(),
        ]
    );
    let bridge =
        SourceSettings { labels: vec!["bridge".into()], ..source(Format::Hotpotqa, "hotpotqa.json") };
    assert_eq!(read_all(&bridge).unwrap().1.other_label, 1);
}

#[test]
fn fever_evidence_is_looked_up() {
    let with_wiki =
        SourceSettings { evidence: Some(sample("fever-wiki")), ..source(Format::Fever, "fever.jsonl") };
    let (examples, counts) = read_all(&with_wiki).unwrap();
    // NOT ENOUGH INFO, and a page that the dump lacks.
    assert_eq!((counts.read, counts.without_positive), (4, 2));
    let lake = "Lake Aldín (north)";
    assert_eq!(
        shown(&examples),
        [
            format!("Lake Aldín was dammed. (SUPPORTS) => {lake} It was dammed in 1911 . | "),
            format!(
                "Herons never wade at Lake Aldín. (REFUTES) => Heron Herons wade . {lake} Lake Aldín ( or Aldin ) is deep . It was dammed in 1911 . | "
            ),
        ]
    );
    let whole = SourceSettings { whole_pages: true, labels: vec!["SUPPORTS".into()], ..with_wiki };
    let (examples, counts) = read_all(&whole).unwrap();
    assert_eq!(
        examples[0].positive,
        format!("{lake} Lake Aldín ( or Aldin ) is deep . It was dammed in 1911 .")
    );
    assert_eq!((counts.kept, counts.without_positive, counts.other_label), (1, 1, 2));
}

#[test]
fn fever_evidence_that_is_text_already() {
    let (examples, _) = read_all(&source(Format::Fever, "fever-resolved.jsonl")).unwrap();
    let positives: Vec<&str> = examples.iter().map(|example| example.positive.as_str()).collect();
    assert_eq!(
        positives,
        [
            "Herons wade at ( shallow ) shores.",
            "Herons fly. They also wade.",
            "Herons wade. They don't swim."
        ]
    );
    let error = read_all(&source(Format::Fever, "fever.jsonl")).unwrap_err().to_string();
    assert!(error.contains("fever.jsonl:1: its evidence is page and sentence numbers"), "{error}");
}

#[test]
fn msmarco_files() {
    let (examples, _) = read_all(&source(Format::MsmarcoTriples, "msmarco-triples.tsv")).unwrap();
    assert_eq!(shown(&examples)[1], "what lifts loads => A crane lifts loads. | Herons wade.");

    let looked_up = |path: &str, documents: &str| {
        let source = SourceSettings {
            documents: Some(sample(documents)),
            queries: Some(sample("msmarco-queries.tsv")),
            ..source(Format::MsmarcoQrels, path)
        };
        read_all(&source).unwrap()
    };
    let (examples, counts) = looked_up("msmarco-qrels.tsv", "msmarco-collection.tsv");
    assert_eq!(
        shown(&examples),
        [
            "how deep is lake aldin => Lake Aldin is 41 metres deep. | ",
            "what lives in lake borun => Lake Borun has no fish. | "
        ]
    );
    assert_eq!(counts.without_positive, 1);
    let (examples, _) = looked_up("msmarco-idtriples.tsv", "msmarco-collection.tsv");
    assert_eq!(
        shown(&examples),
        ["how deep is lake aldin => Lake Aldin is 41 metres deep. | Lake Borun has no fish."]
    );
    let (examples, _) = looked_up("msmarco-doc-qrels.tsv", "msmarco-docs.tsv");
    assert_eq!(shown(&examples), ["how deep is lake aldin => Lake Aldin It is 41 metres deep. | "]);
    // BEIR's three columns are judgments, not triples: the grade 0 judges a document, and names none.
    let (examples, counts) = looked_up("msmarco-beir-qrels.tsv", "msmarco-collection.tsv");
    assert_eq!(shown(&examples), ["how deep is lake aldin => Lake Aldin is 41 metres deep. | "]);
    assert_eq!(counts.without_positive, 0);
    let error = read_all(&source(Format::MsmarcoQrels, "msmarco-qrels.tsv")).unwrap_err().to_string();
    assert!(error.contains("source \"s\" needs `documents`"), "{error}");
}

#[test]
fn triviaqa_evidence() {
    let (examples, counts) = read_all(&source(Format::Triviaqa, "triviaqa.json")).unwrap();
    assert_eq!(
        shown(&examples),
        ["Which lake was dammed in 1911? => Dams ... dammed in 1911, Lake Aldin is ... | "]
    );
    // No description holds a crane, and `Erin` is only a part of a word.
    assert_eq!(counts.without_positive, 2);

    let with_files = SourceSettings {
        evidence: Some(sample("trivia-evidence")),
        ..source(Format::Triviaqa, "triviaqa.json")
    };
    let (examples, counts) = read_all(&with_files).unwrap();
    let first = &examples[0].positive;
    assert!(first.starts_with("Aldin dam word100 ") && first.contains("lake ALDIN was closed"), "{first}");
    assert_eq!(first.split_whitespace().count(), 2 + 100);
    assert!(examples[1].positive.ends_with("The crane, a machine, lifts."), "{}", examples[1].positive);
    // The name that leads out of the folder is not followed.
    assert_eq!((examples.len(), counts.without_positive), (2, 1));
}

#[test]
fn eli5_answers() {
    let (examples, counts) = read_all(&source(Format::Eli5, "eli5.jsonl")).unwrap();
    assert_eq!(
        shown(&examples),
        [
            "Why do herons stand on one leg? => To keep the other one warm. | ",
            "How does a crane lift? => With a cable. | "
        ]
    );
    assert_eq!(counts.without_positive, 1);
}

#[test]
fn broken_files_are_named_by_file_and_line() {
    let good = "{\"query\":\"a\",\"positive\":\"p\"}\n";
    for (format, content, wrong) in [
        (Format::Pairs, String::new(), ":1: holds no pair"),
        (Format::Pairs, format!("{good}\n{{\"query\":\"a\""), ":3: not of the right form (EOF"),
        (Format::Pairs, "[\"a\",\"p\"]\n".into(), ":1: not a JSON object"),
        (Format::Pairs, format!("{good}{{\"query\":\"a\"}}\n"), ":2: \"positive\" is missing or empty"),
        (Format::Pairs, "{\"query\":\" \",\"positive\":\"p\"}".into(), ":1: \"query\" is missing or empty"),
        (Format::Pairs, "{\"query\":\"a\",\"positive\":3}".into(), ":1: not of the right form"),
        (
            Format::Squad,
            "{\"data\": [\n{\"title\": \"t\"}]}".into(),
            ":2: the entry that starts here is not of",
        ),
        (Format::Squad, "{\"data\": [".into(), ":1: the file ends where"),
        (Format::Dpr, "[{\"question\": \"q\"}]".into(), "missing field `positive_ctxs`"),
        (Format::Dpr, "{\"question\": \"q\"}".into(), ":1: the file is not a list"),
        (Format::Hotpotqa, "[\n\n{\"question\": 1}]".into(), ":3: the entry that starts here"),
        (
            Format::Hotpotqa,
            "[{\"question\":\"q\",\"supporting_facts\":[],\"context\":{\"title\":[\"a\"],\"sentences\":[]}}]"
                .into(),
            "1 titles and 0 paragraphs",
        ),
        (Format::Triviaqa, "{\"Data\": [{}]}".into(), "missing field `Question`"),
        (Format::Fever, "{\"claim\": \"c\"}".into(), ":1: not of the right form (missing field `evidence`"),
        (Format::Eli5, "{\"title\": \"t\"}".into(), ":1: has neither \"answers\" nor \"output\""),
        (
            Format::Eli5,
            "{\"title\":\"t\",\"answers\":{\"text\":[],\"score\":[1]}}".into(),
            ":1: 0 answers and 1 scores",
        ),
        (Format::MsmarcoTriples, "q\tp\tn\nq\tp\n".into(), ":2: 2 columns; want query"),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), &content).unwrap();
        let source = SourceSettings { path: file.path().to_owned(), ..source(format, "") };
        let error = read_all(&source).unwrap_err().to_string();
        assert!(error.contains(wrong), "{content:?}: {error}");
        assert!(error.contains(&*file.path().to_string_lossy()), "{error}");
    }
}

#[test]
fn as_many_broken_lines_as_allowed_are_passed_over_and_counted() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs_err::write(
        file.path(),
        "{\"query\":\"a\",\"positive\":\"p\"}\n{\n}\n{\"query\":\"b\",\"positive\":\"p\"}\n",
    )
    .unwrap();
    let allowed = |broken_lines| SourceSettings {
        path: file.path().to_owned(),
        broken_lines,
        ..source(Format::Pairs, "")
    };
    let (examples, counts) = read_all(&allowed(2)).unwrap();
    assert_eq!((examples.len(), counts.broken), (2, 2));
    assert!(read_all(&allowed(1)).unwrap_err().to_string().contains(":3: "));
}
