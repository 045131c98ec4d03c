//! Stages that another run has done: taken from there instead of being done again.

use std::path::{Path, PathBuf};

use super::Run;
use crate::Result;
use crate::folder::{Hashes, Manifest, manifest_path};
use crate::plan::NodeId;
use crate::progress::Event;

impl Run<'_> {
    /// Takes the outputs of a node from one of the other runs, if one has done the same with the same; whether it did.
    pub(super) fn reuse(&mut self, id: NodeId) -> Result<bool> {
        if self.options.reuse.is_empty() {
            return Ok(false);
        }
        let node = self.graph.nodes[id].clone();
        let inputs = self.inputs(id)?.unwrap_or_default();
        for other in self.options.reuse.clone() {
            let Some(manifest) = Manifest::read(&manifest_path(&other, &node))? else { continue };
            let same = manifest.version == node.stage().version()
                && manifest.settings == node.settings
                && manifest.inputs == inputs
                && self.is_whole(&other, &manifest)?;
            if !same {
                continue;
            }
            for label in manifest.outputs.keys() {
                place(&other.join(label), &self.folder.join(label))?;
            }
            manifest.write(&manifest_path(&self.folder, &node))?;
            self.done.insert(id, manifest.outputs);
            self.hashes.save()?;
            let text = format!("taken from {}, where the same was done", other.display());
            self.observer.observe(&Event::Note { stage: &node.name(), text: &text });
            self.observer.observe(&Event::StageSkipped { stage: &node.name() });
            return Ok(true);
        }
        Ok(false)
    }

    /// Whether the other run's files are as its manifest says.
    fn is_whole(&mut self, other: &Path, manifest: &Manifest) -> Result<bool> {
        let mut hashes = Hashes::open(&other.join("hashes.json"));
        for (label, hash) in &manifest.outputs {
            let path = other.join(label);
            if !path.exists() || hashes.of(&path)? != *hash {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Links a file or all files of a folder to another place; copies them where links can't be made.
fn place(from: &Path, to: &Path) -> Result<()> {
    let to: PathBuf = to.to_owned();
    if from.is_dir() {
        fs_err::create_dir_all(&to)?;
        for entry in fs_err::read_dir(from)? {
            let path = entry?.path();
            place(&path, &to.join(path.file_name().unwrap_or_default()))?;
        }
        return Ok(());
    }
    if let Some(folder) = to.parent() {
        fs_err::create_dir_all(folder)?;
    }
    if to.exists() {
        fs_err::remove_file(&to)?;
    }
    if std::fs::hard_link(from, &to).is_err() {
        fs_err::copy(from, &to)?;
    }
    Ok(())
}
