//! What is done to texts on their way in, the same for every source.

use unicode_normalization::UnicodeNormalization;

/// What makes two texts the same: their words (letters and digits, compatibility forms folded), lower-cased, with
/// single spaces between. A text without any word is only trimmed, so that two such texts stay apart.
pub fn normalize(text: &str) -> String {
    let folded: String = text.nfkc().flat_map(char::to_lowercase).collect();
    let words: Vec<&str> =
        folded.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    if words.is_empty() { text.trim().to_owned() } else { words.join(" ") }
}

/// What the retriever reads of a document: title and text with a space between, as the service joins them.
pub(crate) fn joined(title: &str, text: &str) -> String {
    let (title, text) = (title.trim(), text.trim());
    match (title.is_empty(), text.is_empty()) {
        (true, _) => text.to_owned(),
        (_, true) => title.to_owned(),
        _ => format!("{title} {text}"),
    }
}

/// The first `limit` words of a text and whether any were cut; 0 cuts nothing.
pub(crate) fn first_words(text: &str, limit: usize) -> (&str, bool) {
    if limit == 0 {
        return (text, false);
    }
    let mut words = 0;
    let mut inside = false;
    for (index, c) in text.char_indices() {
        if c.is_whitespace() {
            inside = false;
        } else if !inside {
            if words == limit {
                return (text[..index].trim_end(), true);
            }
            words += 1;
            inside = true;
        }
    }
    (text, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_spaces_punctuation_and_forms_do_not_count() {
        for text in ["What  is Rust?", "what is rust ?", " WHAT is\trust", "“what” is ｒｕｓｔ"] {
            assert_eq!(normalize(text), "what is rust", "{text}");
        }
        assert_ne!(normalize("what is c3"), normalize("what is c4"));
        assert_eq!((normalize(" ?? "), normalize("!")), ("??".into(), "!".into()));
    }

    #[test]
    fn words_are_cut_whole() {
        assert_eq!(first_words("one  two\nthree", 2), ("one  two", true));
        assert_eq!(first_words("one two ", 2), ("one two ", false));
        assert_eq!(first_words("é é é", 1), ("é", true));
        assert_eq!(first_words("one two", 0), ("one two", false));
    }

    #[test]
    fn a_title_comes_first() {
        assert_eq!(joined(" T ", "text "), "T text");
        assert_eq!(joined("", "text"), "text");
        assert_eq!(joined("T", ""), "T");
    }
}
