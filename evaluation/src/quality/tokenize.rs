//! The tokenisation `13a` of mteval-v13a.pl, as sacrebleu applies it: the standard one for BLEU.

/// Splits a text into the words and marks that BLEU counts.
pub(super) fn tokenize_13a(text: &str) -> Vec<String> {
    let text = text.trim_end_matches(is_space);
    let mut text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if text.contains('&') {
        text = text.replace("&quot;", "\"").replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">");
    }
    let mut spaced = Vec::with_capacity(text.len() + 2);
    for character in format!(" {text} ").chars() {
        if is_mark(character) {
            spaced.extend([' ', character, ' ']);
        } else {
            spaced.push(character);
        }
    }
    // Points and commas are set apart unless they stand between digits, hyphens only after a digit.
    let spaced = replace_pairs(&spaced, |first, second| {
        (!first.is_ascii_digit() && is_point(second)).then(|| vec![first, ' ', second, ' '])
    });
    let spaced = replace_pairs(&spaced, |first, second| {
        (is_point(first) && !second.is_ascii_digit()).then(|| vec![' ', first, ' ', second])
    });
    let spaced = replace_pairs(&spaced, |first, second| {
        (first.is_ascii_digit() && second == '-').then(|| vec![first, ' ', second, ' '])
    });
    let spaced: String = spaced.into_iter().collect();
    spaced.split(is_space).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Goes from left to right; a pair that was replaced is not looked at again (as a regular expression would have it).
fn replace_pairs(text: &[char], replacement: impl Fn(char, char) -> Option<Vec<char>>) -> Vec<char> {
    let mut replaced = Vec::with_capacity(text.len());
    let mut index = 0;
    while index < text.len() {
        let pair = text.get(index + 1).and_then(|second| replacement(text[index], *second));
        match pair {
            Some(pair) => {
                replaced.extend(pair);
                index += 2;
            }
            None => {
                replaced.push(text[index]);
                index += 1;
            }
        }
    }
    replaced
}

/// ASCII punctuation but for the apostrophe, the comma, the hyphen and the full stop.
fn is_mark(character: char) -> bool {
    matches!(character, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/')
}

fn is_point(character: char) -> bool {
    matches!(character, '.' | ',')
}

/// What Python's `str.split` takes for white space.
fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stand_alone_and_numbers_stay_whole() {
        let tokens = tokenize_13a("It's 1,000.5 (of 3-4), \"so\" e.g. end.");
        let expected = [
            "It's", "1,000.5", "(", "of", "3", "-", "4", ")", ",", "\"", "so", "\"", "e", ".", "g", ".",
            "end", ".",
        ];
        assert_eq!(tokens, expected);
        assert_eq!(tokenize_13a("a &lt; b &amp;amp; c-\nd"), ["a", "<", "b", "&", "amp", ";", "cd"]);
        assert!(tokenize_13a(" \n ").is_empty());
    }
}
