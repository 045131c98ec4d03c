//! Stages that another run has done: taken from there instead of being done again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Run;
use crate::Result;
use crate::folder::{Hashes, Manifest, manifest_path};
use crate::plan::{Node, NodeId};
use crate::progress::Event;
use crate::stages::input_label;

impl Run<'_> {
    /// Takes the outputs of a node from one of the other runs, if one has done the same with the same; whether it did.
    pub(super) fn reuse(&mut self, id: NodeId) -> Result<bool> {
        if self.options.reuse.is_empty() {
            return Ok(false);
        }
        let node = self.graph.nodes[id].clone();
        let inputs = self.inputs(id)?.unwrap_or_default();
        for other in self.options.reuse.clone() {
            for (home, manifest) in candidates(&other, &node)? {
                let same = manifest.version == node.stage().version()
                    && manifest.settings == node.settings
                    && manifest.inputs == inputs
                    && self.is_whole(&other, &manifest)?;
                if !same {
                    continue;
                }
                let manifest = self.take(&other, &home, &node, manifest)?;
                self.done.insert(id, manifest.outputs);
                self.hashes.save()?;
                let text = format!("taken from {}, where the same was done", other.join(home).display());
                self.observer.observe(&Event::Note { stage: &node.name(), text: &text });
                self.observer.observe(&Event::StageSkipped { stage: &node.name() });
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the files of a stage that lie in the folder `home` of the other run; the manifest with this run's names.
    fn take(&self, other: &Path, home: &Path, node: &Node, manifest: Manifest) -> Result<Manifest> {
        let mut outputs = BTreeMap::new();
        for (label, hash) in &manifest.outputs {
            let name = Path::new(label).strip_prefix(home).unwrap_or(Path::new(label));
            let own = input_label(node, &name.to_string_lossy());
            place(&other.join(label), &self.folder.join(&own))?;
            outputs.insert(own, hash.clone());
        }
        let manifest = Manifest { outputs, ..manifest };
        manifest.write(&manifest_path(&self.folder, node))?;
        Ok(manifest)
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

/// What another run has of this kind of stage, and where: in the folder that this run keeps it in, and in those of other
/// rows, which may have done the same.
fn candidates(other: &Path, node: &Node) -> Result<Vec<(PathBuf, Manifest)>> {
    let mut homes = vec![node.home.clone(), PathBuf::new()];
    let rows = other.join("arms");
    if rows.is_dir() {
        for entry in fs_err::read_dir(rows)? {
            homes.push(Path::new("arms").join(entry?.file_name()));
        }
        homes[2..].sort();
    }
    let mut found = Vec::new();
    for home in homes {
        let there = Node { home: home.clone(), ..node.clone() };
        found.extend(Manifest::read(&manifest_path(other, &there))?.map(|manifest| (home, manifest)));
    }
    Ok(found)
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
