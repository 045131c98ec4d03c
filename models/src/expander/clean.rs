//! From what a model wrote to a passage: without lead-ins ("Here is a passage …:"), labels, quotes and markup around it.
//!
//! The paper filters introductory phrases out before expansions are used (Appendix A.2), for they say nothing about the
//! query and pull every expansion towards the same point.

/// Words that begin a lead-in, possibly after an interjection.
const OPENINGS: &[&str] = &[
    "here is",
    "here's",
    "here’s",
    "here are",
    "below is",
    "below are",
    "this is",
    "that is",
    "the following is",
    "the following",
    "i'd be happy to",
    "i’d be happy to",
    "i would be happy to",
    "i'll",
    "i’ll",
    "i will",
    "i can",
    "let me",
    "as requested",
    "based on",
    "to answer",
    "in response to",
    "the answer to",
    "the passage",
    "a passage",
    "passage",
    "answer",
    "response",
    "possible passage",
];

/// What a lead-in speaks of.
const SUBJECTS: &[&str] = &[
    "passage",
    "passages",
    "answer",
    "answers",
    "response",
    "paragraph",
    "text",
    "explanation",
    "query",
    "question",
    "prompt",
    "request",
    "document",
    "summary",
    "overview",
    "expansion",
    "write",
];

/// What was asked for.
const TASKS: &[&str] = &["question", "query", "prompt", "request"];

/// Openings that hand something over, so that it matters less what they call it.
const OFFERS: &[&str] = &[
    "here is",
    "here's",
    "here’s",
    "here are",
    "below is",
    "below are",
    "the following",
    "i'd be happy to",
    "i’d be happy to",
    "i would be happy to",
    "i'll",
    "i’ll",
    "i will",
    "i can",
    "let me",
    "as requested",
];

/// Interjections before a lead-in or on their own.
const INTERJECTIONS: &[&str] = &[
    "sure thing",
    "sure",
    "certainly",
    "of course",
    "absolutely",
    "okay",
    "ok",
    "alright",
    "great question",
    "good question",
    "yes",
];

/// Labels that stand before the passage itself, with a colon.
const LABELS: &[&str] = &[
    "passage",
    "answer",
    "response",
    "output",
    "document",
    "text",
    "paragraph",
    "expansion",
    "expanded query",
    "expanded passage",
    "generated passage",
    "relevant passage",
    "sample passage",
    "final answer",
    "short answer",
    "assistant",
];

/// Longer first sentences are passages, not lead-ins.
const LONGEST_LEAD_IN: usize = 220;

/// Markers that a model writes for itself and that a server may have let through.
const LEFTOVERS: &[&str] =
    &["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "</s>", "<s>"];

/// The passage in `text`: lead-ins, labels, an echoed question, quotes around the whole, markdown headers, fences and a
/// character cut in half at the end are taken away, runs of white space become one space. Applying it twice changes
/// nothing more. Only a text that is nothing but such things becomes empty.
pub fn clean(text: &str) -> String {
    let mut current = text.to_owned();
    loop {
        let next = pass(&current);
        if next == current {
            return next;
        }
        current = next;
    }
}

/// The text of joint encoding: `passage` behind its `query`, as one text.
pub fn behind_query(query: &str, passage: &str) -> String {
    format!("{} {}", query.trim(), passage.trim())
}

/// Takes away what is seen now; what that uncovers is for the next pass.
fn pass(text: &str) -> String {
    let text = without_leftovers(&without_thoughts(text));
    let text = without_wrapping(without_lead_in(&text));
    // Line breaks end lead-ins, so that they stay until nothing else is found.
    if text == without_wrapping(without_lead_in(text)) { collapse(text) } else { text.to_owned() }
}

/// Drops what a reasoning model thought before it answered; thoughts that never ended leave nothing.
fn without_thoughts(text: &str) -> String {
    let mut rest = text;
    let mut kept = String::new();
    while let Some((before, thoughts)) = rest.split_once("<think>") {
        kept.push_str(before);
        rest = thoughts.split_once("</think>").map_or("", |(_, after)| after);
    }
    // Some templates open the thoughts themselves, so that only their end is in the text.
    let rest = rest.split_once("</think>").map_or(rest, |(_, after)| after);
    kept.push_str(rest);
    kept
}

fn without_leftovers(text: &str) -> String {
    let mut text = text.replace(['\u{200b}', '\u{feff}', '\0'], "");
    while let Some(marker) = LEFTOVERS.iter().find(|marker| text.contains(**marker)) {
        text = text.replace(marker, " ");
    }
    // A token boundary inside a character leaves a replacement character behind.
    text.trim_end_matches(|c: char| c == '\u{fffd}' || c.is_whitespace()).trim_start().to_owned()
}

/// Takes away one thing that introduces the passage, if there is one.
fn without_lead_in(text: &str) -> &str {
    let text = text.trim();
    let text = without_markdown(text);
    if let Some(rest) = after_echoed_question(text) {
        return rest;
    }
    if let Some(rest) = after_label(text) {
        return rest;
    }
    if let Some(rest) = after_interjection(text) {
        return rest;
    }
    after_introduction(text).unwrap_or(text)
}

/// Header signs, fences and rules at the beginning; a fence at the end.
fn without_markdown(text: &str) -> &str {
    let mut text = text;
    if let Some(rest) = text.strip_prefix("```") {
        // The fence's line may name a language.
        let after_line = rest.split_once('\n').map_or(rest, |(language, body)| {
            if language.trim().chars().all(char::is_alphanumeric) { body } else { rest }
        });
        text = after_line.trim();
        text = text.strip_suffix("```").unwrap_or(text).trim();
    }
    let without_signs = text.trim_start_matches('#');
    let is_header = without_signs.len() < text.len() && without_signs.starts_with([' ', '\n']);
    if is_header {
        text = without_signs.trim_start();
    }
    let without_rule = text.trim_start_matches(['-', '*', '_']);
    if text.len() - without_rule.len() >= 3 && without_rule.starts_with('\n') {
        text = without_rule.trim_start();
    }
    text
}

/// "Question: … Passage: …", when the model begins with the prompt's own last lines.
fn after_echoed_question(text: &str) -> Option<&str> {
    let rest = strip_word(text, "question").or_else(|| strip_word(text, "query"))?;
    let rest = rest.trim_start_matches('*').strip_prefix(':')?;
    let (_, after) = rest.split_once('\n')?;
    let after = after.trim();
    after_label(after)
}

/// "Passage:", "**Answer:**", "Passage 1:" and the like.
fn after_label(text: &str) -> Option<&str> {
    let bare = text.trim_start_matches(['*', '_', '#', '[', ' ']);
    let rest = LABELS.iter().filter_map(|label| strip_word(bare, label)).min_by_key(|rest| rest.len())?;
    let rest = rest.trim_start_matches([' ', '#']).trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = rest.trim_start_matches(['*', '_', ']']);
    let rest = rest.strip_prefix(':').or_else(|| rest.strip_prefix('：'))?;
    Some(rest.trim_start_matches(['*', '_']).trim_start())
}

/// "Sure!", "Of course, …" with something after it.
fn after_interjection(text: &str) -> Option<&str> {
    let rest = INTERJECTIONS.iter().find_map(|word| strip_word(text, word))?;
    let after_mark = rest.strip_prefix(['!', '.', ',', ':', '-', '—', '–'])?.trim_start();
    // "Yes, the sky is blue" answers; only a lead-in makes the comma an interjection's.
    let ends_a_sentence = rest.starts_with(['!', '.', ':']) && !text.to_ascii_lowercase().starts_with("yes");
    let leads_in = after_introduction(after_mark).is_some() || after_mark.is_empty();
    (ends_a_sentence || leads_in).then_some(after_mark)
}

/// "Here is a passage to answer the question:", "This is the answer to the query."
fn after_introduction(text: &str) -> Option<&str> {
    if !OPENINGS.iter().any(|opening| strip_word(text, opening).is_some()) {
        return None;
    }
    let (sentence, end, rest) = first_sentence(text)?;
    if sentence.len() > LONGEST_LEAD_IN {
        return None;
    }
    let spoken = words_of(sentence);
    let speaks_of = |words: &[&str]| spoken.iter().any(|word| words.contains(&word.as_str()));
    let ends_with = |words: &[&str]| spoken.last().is_some_and(|word| words.contains(&word.as_str()));
    let lower = sentence.to_lowercase();
    let offers = OFFERS.iter().any(|offer| lower.starts_with(offer) || lower.contains(&format!(" {offer} ")));
    let is_lead_in = match end {
        // What follows a colon is the passage, unless the colon belongs to it ("The passage of the Red Sea: …").
        ':' => {
            speaks_of(SUBJECTS)
                && (offers || (ends_with(SUBJECTS) && (names_the_task(&spoken) || spoken.len() <= 5)))
        }
        // A whole sentence must speak of the question that was asked, and end there.
        _ => {
            let is_answer = offers || speaks_of(&["passage", "answer", "response"]);
            is_answer && names_the_task(&spoken) && ends_with(TASKS) && spoken.len() <= 16
        }
    };
    is_lead_in.then(|| rest.trim_start_matches(['*', '_']).trim_start())
}

/// "the question" or "your query": the one that was asked, not a question as a topic.
fn names_the_task(words: &[String]) -> bool {
    words
        .windows(2)
        .any(|pair| ["the", "your", "this"].contains(&pair[0].as_str()) && TASKS.contains(&pair[1].as_str()))
}

/// The text up to its first sentence end (a colon, a full stop or an exclamation mark before white space, a line break),
/// which it was, and the rest.
fn first_sentence(text: &str) -> Option<(&str, char, &str)> {
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        let next = characters.peek().map(|(_, next)| *next);
        let before_space = next.is_none_or(|next| next.is_whitespace() || "*_\"“".contains(next));
        let ends = match character {
            '\n' | '：' => true,
            ':' | '.' | '!' => before_space,
            _ => false,
        };
        if ends {
            let end = if character == '：' { ':' } else { character };
            return Some((&text[..at], end, &text[at + character.len_utf8()..]));
        }
    }
    None
}

fn words_of(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// What follows `word` at the beginning of `text`, upper and lower case being the same, if a word ends there.
fn strip_word<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let start = text.get(..word.len())?;
    let rest = &text[word.len()..];
    let whole_word = rest.chars().next().is_none_or(|next| !next.is_alphanumeric());
    (start.eq_ignore_ascii_case(word) && whole_word).then_some(rest)
}

/// Quotes and emphasis around the whole; an opening quote whose end was cut off.
fn without_wrapping(text: &str) -> &str {
    let text = text.trim();
    for (open, close) in [('"', '"'), ('“', '”'), ('«', '»'), ('`', '`')] {
        let Some(inner) = text.strip_prefix(open) else { continue };
        match inner.strip_suffix(close) {
            Some(inside) if !inside.contains([open, close]) => return inside.trim(),
            None if !inner.contains(close) => return inner.trim(),
            _ => {}
        }
    }
    let bold = text.strip_prefix("**").and_then(|inner| inner.strip_suffix("**"));
    bold.filter(|inside| !inside.contains("**")).map_or(text, str::trim)
}

fn collapse(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lead_ins_go() {
        for lead_in in [
            "Here is a passage to answer the question:",
            "Here's a passage that answers the question:\n\n",
            "Here’s a possible passage:",
            "This is the answer to the query:",
            "This is the answer to the query.\n",
            "Sure! Here is a passage to answer your question:",
            "Sure, here's a short passage:",
            "Sure!",
            "Certainly! Below is a passage that answers the question:\n",
            "Of course. Here is the answer:",
            "Passage:",
            "passage :",
            "**Passage:**",
            "**Answer**:",
            "## Passage:\n",
            "### Here is a passage to answer the question:\n\n",
            "Passage 1:",
            "Answer: Passage:",
            "Question: why is the sky blue?\nPassage:",
            "Question: why is the sky blue?\n\n**Passage:**\n",
            "The following passage answers the question:",
            "I'd be happy to write a passage to answer the question:",
            "Based on the query, here is a passage:",
            "Here is a passage to answer the question.\n\n",
            "<think>\nThe user wants… a passage: yes\n</think>\n\n",
            "```text\n",
            "---\n",
            "\u{200b} \n\t",
        ] {
            let passage = "The sky is blue because of Rayleigh scattering: short waves scatter more.";
            assert_eq!(clean(&format!("{lead_in} {passage}")), passage, "{lead_in:?}");
        }
    }

    #[test]
    fn wrapping_goes() {
        for text in [
            "\"Cats purr.\"",
            "“Cats purr.”",
            "Passage: \"Cats purr.\"",
            "\"Here is a passage: Cats purr.\"",
            "\"Cats purr.",
            "**Cats purr.**",
            "```\nCats purr.\n```",
            "# Cats purr.",
            "Cats\n\n  purr.\u{fffd}",
            "Cats purr.<|im_end|>",
            "Cats purr.</s>\n",
        ] {
            assert_eq!(clean(text), "Cats purr.", "{text:?}");
        }
    }

    #[test]
    fn passages_stay() {
        for passage in [
            "This is a large country in the south of Africa.",
            "This is the question that philosophers of mind ask most often, and it has no agreed answer.",
            "The passage of the Red Sea: an account.",
            "Answering machines record calls.",
            "Text is what a document holds: letters, words and sentences.",
            "Here the river bends.",
            "Yes, the sky is blue.",
            "Sure-footed goats climb mountains.",
            "Document databases store JSON: MongoDB is one.",
            "\"To be\" is a verb, and \"not to be\" is its negation",
            "Based on Darwin's work, biologists study selection.",
            "The question of free will is old. It is the question of choice.",
            "3.14 is close to pi: a ratio.",
            "#hashtags are used on social networks.",
            "OK",
            "`ls` lists files; `rm` removes them",
        ] {
            assert_eq!(clean(passage), passage);
        }
    }

    #[test]
    fn nothing_but_a_lead_in_is_empty() {
        for text in [
            "",
            " \n",
            "Passage:",
            "Here is a passage to answer the question:",
            "Sure! Here is the answer:\n",
            "\u{fffd}",
            "<think>unfinished thoughts",
            "\"\"",
        ] {
            assert_eq!(clean(text), "", "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn twice_is_once(parts in proptest::collection::vec(
            prop_oneof![
                Just("Here is a passage to answer the question:"), Just("Passage:"), Just("\n"), Just("Sure!"), Just("\""),
                Just("**"), Just("# "), Just("```"), Just("<think>"), Just("</think>"), Just("The sky is blue."), Just("Question: a"),
                Just("<|im_"), Just("end|>"), Just("\u{fffd}"), Just("“"), Just("---"), Just("this is the answer to the query. "), Just(" ")
            ], 0..10))
        {
            let once = clean(&parts.concat());
            prop_assert_eq!(clean(&once), once);
        }

        #[test]
        fn ordinary_words_are_kept(words in proptest::collection::vec("[a-z]{2,9}", 1..30), end in "[.?!]?") {
            let known: Vec<&str> = OPENINGS.iter().chain(INTERJECTIONS).chain(LABELS).flat_map(|text| text.split(' ')).collect();
            prop_assume!(!known.contains(&words[0].as_str()));
            let passage = format!("{}{end}", words.join(" "));
            prop_assert_eq!(clean(&passage), passage);
        }

        #[test]
        fn any_text_is_survived(text in "\\PC{0,80}") {
            let cleaned = clean(&text);
            prop_assert!(cleaned.len() <= text.len());
        }
    }
}
