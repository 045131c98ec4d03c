//! ELI5 as JSON lines: the original (`title`, `answers` with scores) and KILT's (`input`, `output`).

use serde::Deserialize;

use super::{Example, Intake, json_lines::for_each_line};
use crate::Result;

#[derive(Deserialize)]
struct Line {
    #[serde(alias = "question")]
    title: Option<String>,
    answers: Option<Answers>,
    answer: Option<String>,
    input: Option<String>,
    output: Option<Vec<Output>>,
}

/// Two lists side by side (the published script's output and the hub's copy), or a list of objects.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answers {
    Lists { text: Vec<String>, score: Vec<f64> },
    Objects(Vec<Answer>),
}

#[derive(Deserialize)]
struct Answer {
    text: String,
    #[serde(default)]
    score: f64,
}

#[derive(Deserialize)]
struct Output {
    answer: Option<String>,
    #[serde(default)]
    meta: Meta,
}

#[derive(Default, Deserialize)]
struct Meta {
    #[serde(default)]
    score: f64,
}

/// The answer with the best score (the first of equals) is the positive; the others are not negatives.
pub(super) fn read(intake: &mut Intake<'_>) -> Result<()> {
    let path = &intake.source().path;
    let wanted =
        "{\"title\", \"answers\": {\"text\": [..], \"score\": [..]}} or KILT's {\"input\", \"output\"}";
    for_each_line(path, wanted, intake, |line: Line, number, intake| {
        let Some(query) = line.title.or(line.input) else {
            return intake.broken(
                path,
                number,
                &format!("has neither \"title\" nor \"input\"; want {wanted}"),
            );
        };
        let one_answer = line.answer.map(|text| vec![Answer { text, score: 0.0 }]);
        let answers: Vec<(String, f64)> =
            match (line.answers.or(one_answer.map(Answers::Objects)), line.output) {
                (Some(Answers::Lists { text, score }), _) if text.len() == score.len() => {
                    text.into_iter().zip(score).collect()
                }
                (Some(Answers::Lists { text, score }), _) => {
                    let detail =
                        format!("{} answers and {} scores; they must be as many", text.len(), score.len());
                    return intake.broken(path, number, &detail);
                }
                (Some(Answers::Objects(answers)), _) => {
                    answers.into_iter().map(|answer| (answer.text, answer.score)).collect()
                }
                (None, Some(outputs)) => outputs
                    .into_iter()
                    .filter_map(|output| output.answer.map(|answer| (answer, output.meta.score)))
                    .collect(),
                (None, None) => {
                    return intake.broken(
                        path,
                        number,
                        &format!("has neither \"answers\" nor \"output\"; want {wanted}"),
                    );
                }
            };
        match best(answers) {
            Some(positive) => intake.example(Example { query, positive, ..Example::default() }),
            None => {
                intake.without_positive();
                Ok(())
            }
        }
    })
}

fn best(answers: Vec<(String, f64)>) -> Option<String> {
    let mut best: Option<(String, f64)> = None;
    for (text, score) in answers {
        let better = best.as_ref().is_none_or(|(_, best)| score > *best);
        if better && !text.trim().is_empty() {
            best = Some((text, score));
        }
    }
    best.map(|(text, _)| text)
}
