//! Queries: BEIR's `queries.jsonl`, plain TSV (`id<tab>text`), and TREC topics.

use std::collections::HashMap;
use std::path::Path;

use super::corpus::Record;
use crate::lines::Lines;
use crate::{Error, Result};

/// One query of a test collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// As in the file; a number has become its decimal string.
    pub id: String,
    /// What is asked; of a TREC topic, its title.
    pub text: String,
}

/// Reads queries in the order of the file. The first line that is not blank tells the form: `{` starts JSONL, `<`
/// TREC topics, and a line with a tab TSV.
///
/// # Errors
/// When the file is missing or empty, a line is broken, a query has no text, or an id occurs twice.
pub fn read_queries(path: &Path) -> Result<Vec<Query>> {
    let mut lines = Lines::open(path)?;
    let mut collector = Collector { path, queries: Vec::new(), lines_by_id: HashMap::new() };
    match lines.next_line()? {
        None => {
            return Err(Error::file(path, "holds no query; is it the right file, and was it written whole?"));
        }
        Some((_, line)) if line.starts_with('<') => read_topics(path, &mut collector)?,
        Some((number, line)) if !line.starts_with('{') && !line.contains('\t') => {
            return Err(Error::line(
                path,
                number,
                "neither JSON ({\"_id\", \"text\"}), TSV (id, tab, text) nor a TREC topic (<top>); convert the file to one of them",
            ));
        }
        Some((number, line)) => {
            let json = line.starts_with('{');
            collector.line(json, number, line)?;
            while let Some((number, line)) = lines.next_line()? {
                collector.line(json, number, line)?;
            }
        }
    }
    Ok(collector.queries)
}

struct Collector<'a> {
    path: &'a Path,
    queries: Vec<Query>,
    lines_by_id: HashMap<String, usize>,
}

impl Collector<'_> {
    fn line(&mut self, json: bool, number: usize, line: &str) -> Result<()> {
        let parsed = if json { parse_json(line) } else { parse_tsv(line) };
        let (id, text) = parsed.map_err(|detail| Error::line(self.path, number, detail))?;
        self.add(number, id, &text)
    }

    fn add(&mut self, number: usize, id: String, text: &str) -> Result<()> {
        if text.trim().is_empty() {
            return Err(Error::line(
                self.path,
                number,
                format!("query {id:?} has no text; give it one or remove it"),
            ));
        }
        if let Some(earlier) = self.lines_by_id.insert(id.clone(), number) {
            return Err(Error::line(
                self.path,
                number,
                format!("query id {id:?} is already on line {earlier}; ids must be unique"),
            ));
        }
        self.queries.push(Query { id, text: text.to_owned() });
        Ok(())
    }
}

fn parse_json(line: &str) -> std::result::Result<(String, String), String> {
    let mut record = Record::parse(line)?;
    let id = record.take_id()?;
    Ok((id, record.text.unwrap_or_default()))
}

fn parse_tsv(line: &str) -> std::result::Result<(String, String), String> {
    match line.split_once('\t') {
        Some((id, text)) if !id.trim().is_empty() => Ok((id.trim().to_owned(), text.to_owned())),
        _ => Err("not a query: want an id, a tab and the text".into()),
    }
}

/// TREC topics: `<top>`, `<num> Number: 301`, `<title> …` (possibly over several lines) and further fields that
/// are passed over, `</top>`.
fn read_topics(path: &Path, collector: &mut Collector<'_>) -> Result<()> {
    let mut lines = Lines::open(path)?;
    let mut topic: Option<Topic> = None;
    let mut last = 0;
    while let Some((number, line)) = lines.next_line()? {
        last = number;
        let line = line.trim();
        let tag_end = if line.starts_with('<') { line.find('>') } else { None };
        let tag = tag_end.map(|end| line[1..end].to_ascii_lowercase());
        let rest = tag_end.map_or(line, |end| line[end + 1..].trim());
        match (tag.as_deref(), &mut topic) {
            (Some("top"), None) => topic = Some(Topic { line: number, ..Topic::default() }),
            (Some("top"), Some(open)) => {
                return Err(Error::line(
                    path,
                    number,
                    format!("<top> inside the topic of line {}; close that with </top>", open.line),
                ));
            }
            (Some("/top"), _) => match topic.take() {
                Some(topic) => {
                    let number = topic.line;
                    let (id, title) = topic.finish().map_err(|detail| Error::line(path, number, detail))?;
                    collector.add(number, id, &title)?;
                }
                None => return Err(Error::line(path, number, "</top> without <top>")),
            },
            (_, None) => {
                return Err(Error::line(
                    path,
                    number,
                    "text outside <top> … </top>; is this a TREC topics file?",
                ));
            }
            (Some(field), Some(topic)) if !field.starts_with('/') => {
                topic.field = field.to_owned();
                topic.append(rest);
            }
            (Some(_closing), Some(topic)) => topic.field.clear(),
            (None, Some(topic)) => topic.append(line),
        }
    }
    match topic {
        Some(topic) => Err(Error::line(
            path,
            last,
            format!("the topic of line {} is not closed; the file seems cut off", topic.line),
        )),
        None => Ok(()),
    }
}

#[derive(Default)]
struct Topic {
    line: usize,
    field: String,
    number: String,
    title: String,
}

impl Topic {
    fn append(&mut self, text: &str) {
        let text = text.split("</").next().unwrap_or_default().trim();
        let target = match self.field.as_str() {
            "num" => &mut self.number,
            "title" => &mut self.title,
            _ => return,
        };
        if !target.is_empty() && !text.is_empty() {
            target.push(' ');
        }
        target.push_str(text);
    }

    fn finish(self) -> std::result::Result<(String, String), String> {
        let id = self.number.trim();
        let id = id.strip_prefix("Number:").unwrap_or(id).trim();
        if id.is_empty() {
            return Err("topic without <num>; give it one".into());
        }
        let title = self.title.trim();
        let title = title.strip_prefix("Topic:").unwrap_or(title).trim();
        Ok((id.to_owned(), title.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Result<Vec<Query>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), content).unwrap();
        read_queries(file.path())
    }

    fn query(id: &str, text: &str) -> Query {
        Query { id: id.into(), text: text.into() }
    }

    #[test]
    fn the_three_forms_read_alike() {
        let expected =
            vec![query("301", "International Organized Crime"), query("302", "Poliomyelitis and Post-Polio")];
        let json = "{\"_id\":301,\"text\":\"International Organized Crime\"}\n{\"id\":\"302\",\"text\":\"Poliomyelitis and Post-Polio\"}\n";
        let tsv = "301\tInternational Organized Crime\n302\tPoliomyelitis and Post-Polio\n";
        let topics = "<top>\n<num> Number: 301\n<title> International Organized Crime\n\n<desc> Description:\nIdentify organizations.\n</top>\n\
                      <TOP>\n<num>302</num>\n<title>\nPoliomyelitis and\nPost-Polio\n</title>\n<narr> Narrative:\nno\n</top>\n";
        assert_eq!(read(json).unwrap(), expected);
        assert_eq!(read(tsv).unwrap(), expected);
        assert_eq!(read(topics).unwrap(), expected);
    }

    #[test]
    fn broken_files_are_named_by_line() {
        for (content, wrong) in [
            ("", "holds no query"),
            ("plain words\n", ":1: neither JSON"),
            ("1\ta\n2 b\n", ":2: not a query"),
            ("1\ta\n\n1\tb\n", ":3: query id \"1\" is already on line 1"),
            ("{\"_id\":\"1\",\"text\":\" \"}\n", ":1: query \"1\" has no text"),
            ("{\"_id\":\"1\",\"text\":\"a\"}\n2\tb\n", ":2: not a JSON object"),
            ("<top>\n<num>1\n<title>a\n", ":3: the topic of line 1 is not closed"),
            ("<top>\n<title>a\n</top>\n", ":1: topic without <num>"),
            ("<top>\n<num>1\n</top>\n", ":1: query \"1\" has no text"),
            ("<top>\n<num>1\n<top>\n", ":3: <top> inside the topic of line 1"),
        ] {
            let error = read(content).unwrap_err().to_string();
            assert!(error.contains(wrong), "{content:?}: {error}");
        }
    }
}
