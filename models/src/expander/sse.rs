//! Reading server-sent events out of bytes as they come, with a bound on what one event may hold.

/// More than any completion chunk; a server that sends longer lines is broken or hostile.
const LONGEST_EVENT: usize = 1 << 20;

/// Collects bytes and gives back the `data` of each complete event.
#[derive(Debug, Default)]
pub(crate) struct SseParser {
    line: Vec<u8>,
    data: String,
    has_data: bool,
    skip_line_feed: bool,
}

impl SseParser {
    /// Takes the next bytes (cut anywhere) and returns the data of the events that they complete.
    ///
    /// # Errors
    /// When an event is longer than a mebibyte or not UTF-8.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<String>, String> {
        let mut events = Vec::new();
        for &byte in bytes {
            // A line ends with CR, LF or CR LF.
            if std::mem::take(&mut self.skip_line_feed) && byte == b'\n' {
                continue;
            }
            match byte {
                b'\n' => self.end_line(&mut events)?,
                b'\r' => {
                    self.skip_line_feed = true;
                    self.end_line(&mut events)?;
                }
                _ => self.line.push(byte),
            }
            if self.line.len() + self.data.len() > LONGEST_EVENT {
                return Err(format!("an event is longer than {LONGEST_EVENT} bytes"));
            }
        }
        Ok(events)
    }

    fn end_line(&mut self, events: &mut Vec<String>) -> Result<(), String> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                events.push(std::mem::take(&mut self.data));
            }
            return Ok(());
        }
        let line = std::str::from_utf8(&line).map_err(|_| "an event is not UTF-8".to_owned())?;
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        if field.trim_start_matches('\u{feff}') == "data" {
            if self.has_data {
                self.data.push('\n');
            }
            self.data.push_str(value.strip_prefix(' ').unwrap_or(value));
            self.has_data = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn events_are_read_as_the_specification_says() {
        let mut parser = SseParser::default();
        let text = ": comment\nevent: x\ndata: {\"a\":1}\n\ndata:one\r\ndata: two\r\n\r\nid: 4\n\ndata\n\ndata: [DONE]\r\r";
        assert_eq!(parser.push(text.as_bytes()).unwrap(), ["{\"a\":1}", "one\ntwo", "", "[DONE]"]);
        assert!(parser.push(b"data: unfinished").unwrap().is_empty());
    }

    #[test]
    fn hostile_events_are_refused() {
        assert!(SseParser::default().push(b"data: \xff\n").unwrap_err().contains("UTF-8"));
        assert!(SseParser::default().push(&vec![b'a'; LONGEST_EVENT + 1]).unwrap_err().contains("longer"));
        let line = [b"data: ".as_slice(), &[b'a'; 1000], b"\n"].concat();
        assert!(SseParser::default().push(&line.repeat(2000)).unwrap_err().contains("longer"));
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_the_bytes_are_cut(
            events in proptest::collection::vec("[^\r\n]{0,20}", 0..6),
            end in prop_oneof![Just("\n"), Just("\r\n"), Just("\r")],
            cuts in proptest::collection::vec(1_usize..7, 1..9),
        ) {
            let text: String = events.iter().map(|data| format!("data: {data}{end}{end}")).collect();
            let mut parser = SseParser::default();
            let mut found = Vec::new();
            let (mut rest, mut cuts) = (text.as_bytes(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (part, tail) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                found.extend(parser.push(part).unwrap());
                rest = tail;
            }
            prop_assert_eq!(found, events);
        }
    }
}
