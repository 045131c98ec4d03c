//! Server-sent events, as the HTML standard defines them, from bytes that come in any pieces.

/// Longest event in bytes.
const EVENT_BYTES: usize = 4 << 20;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Event {
    /// The id to go on after; none when the event has none.
    pub(super) id: Option<String>,
    /// What it says.
    pub(super) data: String,
}

/// Puts events together.
#[derive(Default)]
pub(super) struct EventStream {
    line: Vec<u8>,
    /// The last byte was a carriage return, which ends a line alone or with the line feed that may follow.
    after_return: bool,
    event: Event,
    has_data: bool,
}

impl EventStream {
    /// The events that are whole with `bytes`.
    ///
    /// # Errors
    /// When an event is too long to be one.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<Event>, String> {
        let mut events = Vec::new();
        for &byte in bytes {
            let is_second = std::mem::take(&mut self.after_return) && byte == b'\n';
            match byte {
                b'\n' if is_second => {}
                b'\n' | b'\r' => {
                    self.after_return = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    events.extend(self.end_line(&String::from_utf8_lossy(&line)));
                }
                _ => self.line.push(byte),
            }
            if self.line.len() + self.event.data.len() > EVENT_BYTES {
                return Err(format!("an event of more than {EVENT_BYTES} bytes"));
            }
        }
        Ok(events)
    }

    fn end_line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.event.id = Some(value.to_owned()),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            _ => {} // comments keep the connection alive; names and retry times say nothing that is needed
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_whole_however_they_came_in() {
        let text = ": hello\n\nid: 7\nevent: progress\ndata: {\"a\":\ndata: 1}\n\ndata:x\r\n\r\nid: 8\n\nretry: 5\ndata: ä\r\rdata: half";
        for size in 1..=text.len() {
            let mut stream = EventStream::default();
            let mut events = Vec::new();
            for piece in text.as_bytes().chunks(size) {
                events.extend(stream.feed(piece).unwrap());
            }
            let data: Vec<&str> = events.iter().map(|event| event.data.as_str()).collect();
            assert_eq!(data, ["{\"a\":\n1}", "x", "ä"], "in pieces of {size}");
            assert_eq!(events[0].id.as_deref(), Some("7"));
        }
    }

    #[test]
    fn an_endless_event_ends_the_stream() {
        let mut stream = EventStream::default();
        assert!((0..100).any(|_| stream.feed(&vec![b'x'; 1 << 20]).is_err()));
    }
}
