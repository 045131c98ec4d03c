//! What a contrastive training leaves: all of what it found, a part of it, or the mean of several.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor, safetensors};
use expandr_training::progress::{Silent, StepProgress};
use expandr_training::recipe::{self, ContrastiveSettings};
use expandr_training::steps::{ContrastiveJob, Places};
use expandr_training::trainers;
use serde_json::{Value, json};

use crate::support::checkpoint;

const METHODS: [recipe::Method; 2] = [recipe::Method::Full, recipe::Method::Lora];

/// Settings by which a few steps on two examples move the weights far.
fn settings(method: recipe::Method) -> ContrastiveSettings {
    ContrastiveSettings {
        method,
        learning_rate: 0.05,
        epochs: 4.0,
        batch_size: 2,
        ..ContrastiveSettings::default()
    }
}

/// Trains into `folder/name`; gives what is told of it, and the encoder's weights.
fn train(
    folder: &Path,
    name: &str,
    settings: &ContrastiveSettings,
    seed: u64,
) -> Result<(Value, HashMap<String, Tensor>)> {
    let at = |name: &str| folder.join(name);
    let line = |query: &str, positive: &str| {
        format!("{}\n", json!({ "query": query, "expansion": "a passage", "positive": positive }))
    };
    let lines = line("what is query expansion", "expansion adds words")
        + &line("retrieval", "systems answer questions");
    fs_err::write(at("examples.jsonl"), lines)?;
    let (work, out) = (at(&format!("{name}-work")), at(name));
    fs_err::create_dir_all(&work)?;
    let told = trainers::contrastive(
        &ContrastiveJob {
            base: &checkpoint("distilbert"),
            train: &at("examples.jsonl"),
            dev: &at("examples.jsonl"),
            settings,
            seed,
            places: Places { work: &work, out: &out, log: &at(&format!("{name}.log")) },
            progress: StepProgress::new(&Silent, "contrastive"),
        },
        &Device::Cpu,
    )?;
    Ok((told, safetensors::load(out.join("model.safetensors"), &Device::Cpu)?))
}

fn largest(tensor: &Tensor) -> Result<f32> {
    Ok(tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()?)
}

#[test]
fn an_interpolated_encoder_has_gone_its_share_of_the_way() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let before = safetensors::load(checkpoint("distilbert").join("model.safetensors"), &Device::Cpu)?;
    for method in METHODS {
        let train = |interpolation: f64| {
            let settings = ContrastiveSettings { interpolation, ..settings(method) };
            train(folder.path(), &format!("{method:?}-{interpolation}"), &settings, 7)
        };
        let ((whole, after), (part, between)) = (train(1.0)?, train(0.25)?);
        assert!(whole.get("interpolated").is_none());
        assert_ne!(part["interpolated"]["loss"], part["outcome"]["evaluation"]["loss"]);
        assert_eq!(whole["outcome"]["evaluation"], part["outcome"]["evaluation"]);
        let mut moved = 0;
        for (name, before) in &before {
            let before = before.to_dtype(DType::F32)?;
            let way = (&after[name] - &before)?;
            let wrong = largest(&((&between[name] - &before)? - (&way * 0.25)?)?)?;
            assert!(wrong < 1e-5, "{method:?} {name}: {wrong}");
            moved += usize::from(largest(&way)? > 1e-3);
        }
        assert!(moved > 5, "{method:?}: only {moved} tensors moved");
    }
    Ok(())
}

#[test]
fn a_soup_is_the_mean_of_the_trainings_with_the_seed_and_the_next() -> Result<()> {
    let folder = tempfile::tempdir()?;
    for method in METHODS {
        let train = |soup: usize, seed: u64| {
            let settings = ContrastiveSettings { soup, interpolation: 0.5, ..settings(method) };
            train(folder.path(), &format!("{method:?}-{soup}-{seed}"), &settings, seed)
        };
        let ((one, first), (other, second), (both, soup)) = (train(1, 7)?, train(1, 8)?, train(2, 7)?);
        for (member, alone) in [(0, one), (1, other)] {
            let member = &both["members"][member];
            assert_eq!(member["outcome"]["evaluation"], alone["outcome"]["evaluation"], "the same training");
            assert_eq!(member["interpolated"], alone["interpolated"]);
        }
        assert!(both["averaged"]["loss"].as_f64().is_some_and(f64::is_finite), "{both}");
        let mut apart = 0;
        for (name, soup) in &soup {
            let mean = ((&first[name] + &second[name])? / 2.0)?;
            let wrong = largest(&(soup - mean)?)?;
            assert!(wrong < 1e-5, "{method:?} {name}: {wrong}");
            apart += usize::from(largest(&(&first[name] - &second[name])?)? > 1e-3);
        }
        assert!(apart > 5, "{method:?}: the trainings are the same");

        // An attempt that was interrupted after the first training does only the second one again.
        let name = format!("{method:?}-2-7");
        let work = folder.path().join(format!("{name}-work"));
        fs_err::remove_dir_all(work.join("member-1"))?;
        let log = folder.path().join(format!("{name}.log"));
        let before = fs_err::read_to_string(&log)?.lines().count();
        let (again, weights) = train(2, 7)?;
        assert_eq!(fs_err::read_to_string(&log)?.lines().count(), before + before / 2);
        for member in 0..2 {
            let loss =
                |told: &Value| told["members"][member]["outcome"]["evaluation"]["loss"].as_f64().unwrap();
            // Read from a file, its last digit may be another.
            assert!((loss(&again) - loss(&both)).abs() < 1e-12, "{again} {both}");
        }
        for (name, soup) in &soup {
            assert_eq!(largest(&(soup - &weights[name])?)?, 0.0, "{method:?} {name}");
        }
    }
    Ok(())
}
