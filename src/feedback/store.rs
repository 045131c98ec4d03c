//! Feedback on disk: one file of JSON lines a day (UTC), each line synced before it is acknowledged.
//!
//! Files of days, because retention and deletion must take the bytes off the disk: a whole day is unlinked, a part of one
//! is written anew without what is deleted. (A database would keep deleted queries in its free pages.)

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
};

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use parking_lot::Mutex;

use super::event::{Event, Selection};
use crate::files;

const SUFFIX: &str = ".ndjson";

/// The files; one call writes at a time.
pub(super) struct Store {
    folder: PathBuf,
    files: Mutex<DayFiles>,
}

#[derive(Default)]
struct DayFiles {
    known: BTreeMap<NaiveDate, Size>,
    /// The file of the day that was written last.
    open: Option<(NaiveDate, fs_err::File)>,
}

/// What a file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) bytes: u64,
    pub(super) events: usize,
}

impl std::iter::Sum for Size {
    fn sum<I: Iterator<Item = Self>>(sizes: I) -> Self {
        sizes.fold(Self::default(), |a, b| Self { bytes: a.bytes + b.bytes, events: a.events + b.events })
    }
}

impl Store {
    /// Opens the folder, or makes it. A line that was being written when the process died was never acknowledged, and goes.
    pub(super) fn open(folder: &Path) -> std::io::Result<Self> {
        fs_err::create_dir_all(folder)?;
        files::remove_partials(folder)?;
        let mut known = BTreeMap::new();
        for entry in fs_err::read_dir(folder)? {
            let path = entry?.path();
            let Some(day) = day_of(&path) else { continue };
            let size = repaired(&path)?;
            known.insert(day, size);
        }
        Ok(Self { folder: folder.to_owned(), files: Mutex::new(DayFiles { known, open: None }) })
    }

    /// What all files hold.
    pub(super) fn size(&self) -> Size {
        self.files.lock().known.values().copied().sum()
    }

    /// Adds an event; when this returns `Ok`, a power cut can't take it away, and when it returns an error, it is not there.
    pub(super) fn append(&self, event: &Event) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let day = event.at.date_naive();
        let path = self.path(day);
        let mut files = self.files.lock();
        let is_new = !files.known.contains_key(&day);
        let mut file = match files.open.take() {
            Some((open, file)) if open == day => file,
            _ => files::append(&path)?,
        };
        let before = files.known.get(&day).copied().unwrap_or_default();
        let written = file.write_all(&line).and_then(|()| file.sync_all());
        let written = written.and_then(|()| if is_new { files::sync_folder_of(&path) } else { Ok(()) });
        if let Err(error) = written {
            file.set_len(before.bytes)?; // half a line would spoil the next one
            return Err(error);
        }
        let after = Size { bytes: before.bytes + line.len() as u64, events: before.events + 1 };
        files.known.insert(day, after);
        files.open = Some((day, file));
        Ok(())
    }

    /// The days of which there is feedback, oldest first.
    pub(super) fn days(&self) -> Vec<NaiveDate> {
        self.files.lock().known.keys().copied().collect()
    }

    /// A day's file and how many bytes of it are whole lines; none when it is gone.
    pub(super) fn open_day(&self, day: NaiveDate) -> std::io::Result<Option<(fs_err::File, u64)>> {
        let files = self.files.lock();
        let Some(size) = files.known.get(&day) else { return Ok(None) };
        Ok(Some((fs_err::File::open(self.path(day))?, size.bytes)))
    }

    /// Deletes what is selected; gives how many events that were. When this returns `Ok`, they are off the disk.
    pub(super) fn delete(&self, selection: &Selection) -> std::io::Result<usize> {
        let mut files = self.files.lock();
        files.open = None;
        let mut deleted = 0;
        let days: Vec<(NaiveDate, Size)> = files.known.iter().map(|(day, size)| (*day, *size)).collect();
        for (day, size) in days {
            if selection.before.is_some_and(|before| first_moment(day) >= before) {
                continue;
            }
            let is_over = selection
                .before
                .is_none_or(|before| day.succ_opt().is_some_and(|next| first_moment(next) <= before));
            let left = if selection.is_by_time() && is_over {
                Size::default()
            } else {
                self.write_without(day, selection)?.unwrap_or(size)
            };
            if left == Size::default() {
                fs_err::remove_file(self.path(day))?;
                files.known.remove(&day);
            } else {
                files.known.insert(day, left);
            }
            deleted += size.events - left.events;
        }
        if deleted > 0 {
            fs_err::File::open(&self.folder)?.sync_all()?;
        }
        Ok(deleted)
    }

    /// Writes a day's file anew without what is selected; none when nothing of it is.
    fn write_without(&self, day: NaiveDate, selection: &Selection) -> std::io::Result<Option<Size>> {
        let path = self.path(day);
        let partial = files::partial(&path);
        let kept = copy_without(&path, &partial, selection);
        match kept {
            Ok((kept, true)) => {
                files::install(&partial, &path)?;
                Ok(Some(kept))
            }
            Ok((_, false)) => {
                fs_err::remove_file(&partial)?;
                Ok(None)
            }
            Err(error) => {
                let _ = fs_err::remove_file(&partial);
                Err(error)
            }
        }
    }

    fn path(&self, day: NaiveDate) -> PathBuf {
        self.folder.join(format!("{day}{SUFFIX}"))
    }
}

/// Copies the lines of a file that are not selected; says what the copy holds, and whether anything was left out.
fn copy_without(from: &Path, to: &Path, selection: &Selection) -> std::io::Result<(Size, bool)> {
    let mut copy = BufWriter::new(files::create(to)?);
    let (mut kept, mut left_out) = (Size::default(), false);
    for line in BufReader::new(fs_err::File::open(from)?).split(b'\n') {
        let line = line?;
        let selected = serde_json::from_slice::<Event>(&line).is_ok_and(|event| selection.selects(&event));
        if selected {
            left_out = true;
            continue;
        }
        copy.write_all(&line)?;
        copy.write_all(b"\n")?;
        kept = Size { bytes: kept.bytes + line.len() as u64 + 1, events: kept.events + 1 };
    }
    copy.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()?;
    Ok((kept, left_out))
}

/// Counts the lines of a file, and cuts off a last one that is not whole.
fn repaired(path: &Path) -> std::io::Result<Size> {
    let mut size = Size::default();
    let mut reader = BufReader::new(fs_err::File::open(path)?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if !line.ends_with(b"\n") {
            let file = fs_err::OpenOptions::new().write(true).open(path)?;
            file.set_len(size.bytes)?;
            file.sync_all()?;
            break;
        }
        size = Size { bytes: size.bytes + line.len() as u64, events: size.events + 1 };
        line.clear();
    }
    Ok(size)
}

fn day_of(path: &Path) -> Option<NaiveDate> {
    path.file_name()?.to_str()?.strip_suffix(SUFFIX)?.parse().ok()
}

fn first_moment(day: NaiveDate) -> DateTime<Utc> {
    day.and_time(NaiveTime::MIN).and_utc()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, feedback::event::Kind};

    fn event(at: &str, query: &str, document_id: &str) -> Event {
        Event {
            at: clock::parse(at).unwrap(),
            request_id: "r".to_owned(),
            query: query.to_owned(),
            document_id: document_id.to_owned(),
            kind: Kind::Clicked,
            relevant: None,
            rank: Some(1),
            bundle: "bundle-1".to_owned(),
        }
    }

    fn filled(folder: &Path) -> Store {
        let store = Store::open(folder).unwrap();
        for (at, query, id) in [
            ("2026-11-01T10:00:00Z", "secret of frogs", "a"),
            ("2026-11-01T12:00:00Z", "whales", "b"),
            ("2026-11-02T09:00:00Z", "secret of frogs", "b"),
            ("2026-11-03T23:59:59Z", "whales", "a"),
        ] {
            store.append(&event(at, query, id)).unwrap();
        }
        store
    }

    /// Everything in the folder, names too.
    fn bytes(folder: &Path) -> String {
        let mut found = String::new();
        for entry in fs_err::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            found.push_str(&path.display().to_string());
            found.push_str(&String::from_utf8_lossy(&fs_err::read(&path).unwrap()));
        }
        found
    }

    #[test]
    fn deleted_queries_are_off_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let store = filled(folder.path());
        let selection = Selection { query: Some(" secret of frogs".to_owned()), ..Selection::default() };
        assert!(bytes(folder.path()).contains("secret of frogs"));
        assert_eq!(store.delete(&selection).unwrap(), 2);
        assert!(!bytes(folder.path()).contains("secret"), "{}", bytes(folder.path()));
        assert_eq!(store.size().events, 2);
        assert!(!folder.path().join("2026-11-02.ndjson").exists(), "nothing is left of that day");
        // Written on, and opened again: the counts are those of the files.
        store.append(&event("2026-11-01T13:00:00Z", "herons", "c")).unwrap();
        let size = store.size();
        drop(store);
        assert_eq!(Store::open(folder.path()).unwrap().size(), size);
    }

    #[test]
    fn selections_are_by_time_document_and_query_together() {
        let deleted = |selection: Selection| {
            let folder = tempfile::tempdir().unwrap();
            filled(folder.path()).delete(&selection).unwrap()
        };
        let before = |at: &str| Selection { before: Some(clock::parse(at).unwrap()), ..Selection::default() };
        assert_eq!(deleted(Selection::default()), 4);
        assert_eq!(deleted(before("2026-11-01T12:00:00Z")), 1, "a part of a day");
        assert_eq!(deleted(before("2026-11-02")), 2);
        assert_eq!(deleted(before("2026-12-01")), 4);
        assert_eq!(deleted(before("2026-11-01")), 0);
        let document = Selection { document_id: Some("b".to_owned()), ..Selection::default() };
        assert_eq!(deleted(document.clone()), 2);
        assert_eq!(deleted(Selection { query: Some("whales".to_owned()), ..document }), 1);
        assert_eq!(deleted(Selection { query: Some("whale".to_owned()), ..Selection::default() }), 0);
    }

    #[test]
    fn a_torn_line_is_cut_off_and_the_next_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        drop(filled(folder.path()));
        let path = folder.path().join("2026-11-01.ndjson");
        let mut content = fs_err::read(&path).unwrap();
        content.extend_from_slice(b"{\"at\":\"2026-11-01T1");
        fs_err::write(&path, content).unwrap();
        fs_err::write(folder.path().join("2026-11-02.ndjson.1.partial"), b"half").unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert_eq!(store.size().events, 4);
        store.append(&event("2026-11-01T13:00:00Z", "herons", "c")).unwrap();
        let text = fs_err::read_to_string(&path).unwrap();
        assert_eq!(text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap()).count(), 3);
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 3);
    }
}
