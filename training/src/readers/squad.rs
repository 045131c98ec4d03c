//! SQuAD: `{"data": [{"title", "paragraphs": [{"context", "qas": [{"question", "answers"}]}]}]}`.

use serde::Deserialize;

use super::{Example, Intake, json_lines::for_each_element};
use crate::{Result, text::joined};

#[derive(Deserialize)]
struct Article {
    #[serde(default)]
    title: String,
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<Question>,
}

#[derive(Deserialize)]
struct Question {
    question: String,
    #[serde(default)]
    answers: Vec<serde::de::IgnoredAny>,
    /// Version 2 only: nothing in the paragraph answers the question.
    #[serde(default)]
    is_impossible: bool,
}

/// One pair a question that has an answer: its paragraph, behind the article's title.
pub(super) fn read(intake: &mut Intake<'_>) -> Result<()> {
    let path = &intake.source().path;
    let wanted = "an article {\"title\", \"paragraphs\": [{\"context\", \"qas\"}]}";
    for_each_element(path, Some("data"), wanted, intake, |article: Article, _, intake| {
        let title = article.title.replace('_', " ");
        for paragraph in article.paragraphs {
            let positive = joined(&title, &paragraph.context);
            for question in paragraph.qas {
                if question.is_impossible || question.answers.is_empty() {
                    intake.without_positive();
                    continue;
                }
                let (query, positive) = (question.question.trim().to_owned(), positive.clone());
                intake.example(Example { query, positive, ..Example::default() })?;
            }
        }
        Ok(())
    })
}
