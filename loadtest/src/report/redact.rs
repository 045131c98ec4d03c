//! Commands without the keys in them.

const HIDDEN: &str = "***";

/// A command line to show: whatever follows a flag or is given to a variable whose name ends in `key` or `keys` is
/// hidden.
pub(super) fn words(words: impl IntoIterator<Item = String>) -> String {
    let mut shown: Vec<String> = Vec::new();
    let mut hide_next = false;
    for word in words {
        let text = match word.split_once('=') {
            _ if hide_next => HIDDEN.to_owned(),
            Some((name, _)) if is_secret(name) => format!("{name}={HIDDEN}"),
            // A flag whose value is a command itself.
            _ if word.contains(char::is_whitespace) => format!("'{}'", command(&word)),
            _ => word.clone(),
        };
        hide_next = !hide_next && word.starts_with("--") && is_secret(&word);
        shown.push(text);
    }
    shown.join(" ")
}

/// The same for a command in one text.
pub(super) fn command(text: &str) -> String {
    words(text.split_whitespace().map(str::to_owned))
}

fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    !name.contains(char::is_whitespace) && (name.ends_with("key") || name.ends_with("keys"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hidden_wherever_they_stand() {
        let all = [
            "load",
            "--key",
            "s1",
            "--key=s2",
            "--rate",
            "3",
            "--start",
            "env A_KEY=s3 serve --read-keys s4 --x 1",
        ];
        assert_eq!(
            words(all.map(str::to_owned)),
            "load --key *** --key=*** --rate 3 --start 'env A_KEY=*** serve --read-keys *** --x 1'"
        );
    }
}
