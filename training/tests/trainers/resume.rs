//! A run that was killed and resumed ends with the same bits as one that was not.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use candle_core::Device;
use expandr_models::trainable::{LoraSettings, Method, TrainableDecoder, TrainableOptions};
use expandr_training::dpo::{DpoOptions, DpoTask};
use expandr_training::schedule::Shape;
use expandr_training::trainer::{End, Event, StopSignal, Summary, Surroundings, TrainerSettings, train};

use crate::decoder::Data;
use crate::support::{bits, fixture};

const FOLDER: &str = "EXPANDR_TRAINING_TEST_FOLDER";

fn decoder() -> Result<TrainableDecoder> {
    let settings = LoraSettings {
        rank: 4,
        alpha: 8.0,
        dropout: 0.2,
        target_modules: vec!["all-linear".into()],
        rank_stabilised: false,
    };
    let options = TrainableOptions { method: Method::Lora(settings), seed: 3, ..TrainableOptions::default() };
    Ok(TrainableDecoder::load(&fixture("llama/model"), &options, &Device::Cpu)?)
}

/// Twelve steps in three epochs, with an evaluation and a checkpoint now and then.
fn settings() -> TrainerSettings {
    TrainerSettings {
        epochs: 3.0,
        batch_size: 2,
        learning_rate: 1e-2,
        schedule: Shape::Cosine,
        bucket: 2,
        seed: 11,
        evaluate_every: 3,
        keep_best: true,
        checkpoint_every: 2,
        ..TrainerSettings::default()
    }
}

fn go_on(
    decoder: &TrainableDecoder,
    folder: Option<&Path>,
    settings: &TrainerSettings,
    stop: &StopSignal,
    tell: &mut dyn FnMut(&Event),
) -> Result<Summary> {
    let data = Data::read("llama")?;
    let dev = data.preferences()[..3].to_vec();
    let task = DpoTask::new(decoder, DpoOptions::default(), data.preferences(), dev, folder, &mut |_, _| ())?;
    let checkpoints = folder.map(|folder| folder.join("checkpoints"));
    Ok(train(&task, settings, Surroundings { folder: checkpoints.as_deref(), stop, tell })?)
}

fn undisturbed() -> Result<(Vec<u32>, Summary)> {
    let decoder = decoder()?;
    let summary = go_on(&decoder, None, &settings(), &StopSignal::default(), &mut |_| ())?;
    assert_eq!((summary.end, summary.steps), (End::Complete, 12));
    Ok((bits(decoder.parameters())?, summary))
}

#[test]
fn a_run_that_stopped_at_steps_5_and_9_ends_with_the_same_bits() -> Result<()> {
    let (expected, whole) = undisturbed()?;
    let folder = tempfile::tempdir()?;
    for last in [5, 9] {
        let stop = StopSignal::default();
        let mut tell = |event: &Event| {
            if matches!(event, Event::Step(report) if report.step == last) {
                stop.stop();
            }
        };
        let decoder = decoder()?;
        let summary = go_on(&decoder, Some(folder.path()), &settings(), &stop, &mut tell)?;
        assert_eq!((summary.end, summary.steps), (End::Stopped, last));
        assert_ne!(bits(decoder.parameters())?, expected);
    }
    let decoder = decoder()?;
    let mut first = None;
    let mut tell = |event: &Event| {
        if let Event::Started { done, .. } = event {
            first = Some(*done);
        }
    };
    let summary = go_on(&decoder, Some(folder.path()), &settings(), &StopSignal::default(), &mut tell)?;
    assert_eq!(first, Some(9));
    assert_eq!(bits(decoder.parameters())?, expected);
    assert_eq!(Summary { seconds: 0.0, ..summary }, Summary { seconds: 0.0, ..whole });
    Ok(())
}

/// Not a test of its own: what the next test runs in a process that it kills.
#[test]
#[ignore = "a child process of killed_runs_end_with_the_same_bits"]
fn child() -> Result<()> {
    let Some(folder) = std::env::var_os(FOLDER) else { return Ok(()) };
    let decoder = decoder()?;
    let mut tell = |event: &Event| {
        if let Event::Step(report) = event {
            println!("step {}", report.step);
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    go_on(&decoder, Some(Path::new(&folder)), &settings(), &StopSignal::default(), &mut tell)?;
    fs_err::write(Path::new(&folder).join("bits"), format!("{:?}", bits(decoder.parameters())?))?;
    Ok(())
}

#[test]
fn killed_runs_end_with_the_same_bits() -> Result<()> {
    let expected = format!("{:?}", undisturbed()?.0);
    let folder = tempfile::tempdir()?;
    let run = |last: Option<&str>| -> Result<()> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", "resume::child", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        for line in lines {
            if last.is_some_and(|last| line.as_ref().is_ok_and(|line| line.ends_with(last))) {
                child.kill()?; // kill -9
                break;
            }
        }
        child.wait()?;
        Ok(())
    };
    run(Some("step 5"))?;
    assert!(folder.path().join("checkpoints/step-00000004").is_dir());
    run(Some("step 9"))?;
    assert!(!folder.path().join("bits").exists());
    run(None)?;
    assert_eq!(fs_err::read_to_string(folder.path().join("bits"))?, expected);
    Ok(())
}

#[test]
fn checkpoints_are_few_and_those_of_another_training_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    go_on(&decoder()?, Some(folder.path()), &settings(), &StopSignal::default(), &mut |_| ())?;
    let mut names: Vec<String> = fs_err::read_dir(folder.path().join("checkpoints"))?
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()?;
    names.sort();
    assert_eq!(names, ["best", "step-00000010", "step-00000012"]);
    let other = TrainerSettings { learning_rate: 2e-2, ..settings() };
    let error =
        go_on(&decoder()?, Some(folder.path()), &other, &StopSignal::default(), &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("other settings"), "{error}");
    // How often checkpoints are written doesn't change the outcome, nor how the same gradient is computed.
    let other = TrainerSettings { checkpoint_every: 5, ..settings() };
    go_on(&decoder()?, Some(folder.path()), &other, &StopSignal::default(), &mut |_| ())?;
    let recomputed = DpoOptions { checkpoint_activations: true, ..DpoOptions::default() };
    let data = Data::read("llama")?;
    let with = |options: DpoOptions| -> Result<String> {
        let decoder = decoder()?;
        let task = DpoTask::new(&decoder, options, data.preferences(), Vec::new(), None, &mut |_, _| ())?;
        Ok(expandr_training::trainer::Task::fingerprint(&task))
    };
    assert_eq!(with(recomputed)?, with(DpoOptions::default())?);
    assert_ne!(with(DpoOptions { beta: 0.2, ..DpoOptions::default() })?, with(DpoOptions::default())?);

    let state = folder.path().join("checkpoints/step-00000012/state.json");
    fs_err::write(&state, "{")?;
    let error = go_on(&decoder()?, Some(folder.path()), &settings(), &StopSignal::default(), &mut |_| ())
        .unwrap_err();
    assert!(error.to_string().contains("remove it"), "{error}");
    Ok(())
}

#[test]
fn patience_ends_a_run_and_the_best_weights_are_kept() -> Result<()> {
    // Far too high a learning rate: the development loss gets worse.
    let settings = TrainerSettings {
        learning_rate: 5.0,
        clip: 0.0,
        warmup_ratio: 0.0,
        evaluate_every: 1,
        patience: Some(2),
        epochs: 10.0,
        ..settings()
    };
    let mut evaluations = Vec::new();
    let decoder = decoder()?;
    let mut tell = |event: &Event| {
        if let Event::Evaluated { outcome, best, step } = event {
            evaluations.push((*step, outcome.loss, *best));
        }
    };
    let summary = go_on(&decoder, None, &settings, &StopSignal::default(), &mut tell)?;
    assert_eq!(summary.end, End::Early, "{evaluations:?}");
    let (best, loss, _) = *evaluations.iter().rfind(|(_, _, best)| *best).context("no best")?;
    assert_eq!(summary.best_step, Some(best));
    assert_eq!(summary.steps, best + 2);
    let data = Data::read("llama")?;
    let dev = data.preferences()[..3].to_vec();
    let task = DpoTask::new(&decoder, DpoOptions::default(), data.preferences(), dev, None, &mut |_, _| ())?;
    let again = expandr_training::trainer::Task::evaluate(&task)?.context("no evaluation")?.loss;
    assert_eq!(again, loss, "the model does not have the best weights");
    Ok(())
}

#[test]
fn reference_log_probabilities_are_read_again_only_for_the_same_data() -> Result<()> {
    let (folder, decoder, data) = (tempfile::tempdir()?, decoder()?, Data::read("llama")?);
    let computed = |pairs: usize| -> Result<usize> {
        let mut last = 0;
        let train = data.preferences()[..pairs].to_vec();
        let progress = &mut |done: usize, _: usize| last = done;
        DpoTask::new(&decoder, DpoOptions::default(), train, Vec::new(), Some(folder.path()), progress)?;
        Ok(last)
    };
    assert_eq!(computed(7)?, 7);
    assert_eq!(computed(7)?, 0);
    assert_eq!(computed(6)?, 6);

    // A model in other numbers has other log-probabilities: what the file says of it has the numbers' type. (bf16, which a
    // GPU computes in, can't be had here.)
    let mut file = fs_err::read(folder.path().join("reference.safetensors"))?;
    let header = String::from_utf8_lossy(&file[..file.len().min(400)]).into_owned();
    assert!(header.contains(&format!("{} F32", decoder.id())), "{header}");
    let other = file.windows(4).position(|bytes| bytes == b" F32").context("no type")?;
    file[other + 1..other + 4].copy_from_slice(b"B16");
    fs_err::write(folder.path().join("reference.safetensors"), file)?;
    assert_eq!(computed(6)?, 6);
    Ok(())
}
