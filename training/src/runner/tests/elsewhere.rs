//! What was made elsewhere: adopted files, stages of other runs, models of other servers.

use super::*;

#[tokio::test]
async fn files_made_elsewhere_are_taken() {
    let mut bench = Bench::new();
    bench.run(&[], only(&[Stage::Pairs])).await.unwrap();
    let pairs: Vec<Pair> = bench.lines("pairs.jsonl");
    let dpo: Vec<&Pair> = pairs.iter().filter(|pair| pair.part.trains_expander()).collect();

    // Candidates of all queries but one, in another order, as plain texts without fingerprints.
    let texts = ["water and topic", "a mill", "the thing itself", "nothing"];
    let lines: Vec<String> =
        dpo[1..].iter().rev().map(|pair| json!({"query": pair.query, "texts": texts}).to_string()).collect();
    fs_err::write(bench.path("candidates.jsonl"), lines.join("\n") + "\n").unwrap();
    let error = bench.run(&[], only(&[Stage::Candidates])).await.unwrap_err().to_string();
    assert!(error.contains("nothing says what made it; take it as it is with --adopt candidates"), "{error}");
    let adopt = |stages: &[Stage]| Options { adopt: stages.to_vec(), ..only(stages) };
    bench.run(&[], adopt(&[Stage::Candidates])).await.unwrap();
    assert_eq!(bench.steps.prompts.load(Ordering::SeqCst), 1, "only the missing one is written here");
    let candidates: Vec<WrittenLine> = bench.lines("candidates.jsonl");
    assert_eq!(candidates.len(), 12);
    assert_eq!(candidates[3].texts.iter().map(|text| text.text.as_str()).collect::<Vec<_>>(), texts);
    // Settings that it was not made with can't make it stale.
    bench.run(&["candidates.samples=9"], only(&[Stage::Candidates])).await.unwrap();
    assert!(bench.ears.stages("stage_started").is_empty());
    // Other queries don't take it away: it is taken again, and only what it lacks is written.
    let before = bench.steps.prompts.load(Ordering::SeqCst);
    let more = ["candidates.samples=9", "data.dpo_queries=14"];
    let stages = [Stage::Pairs, Stage::Candidates];
    let error = bench.run(&more, only(&stages)).await.unwrap_err().to_string();
    assert!(error.contains("was taken from elsewhere; take it as it is with --adopt candidates"), "{error}");
    bench.run(&more, Options { adopt: vec![Stage::Candidates], ..only(&stages) }).await.unwrap();
    assert_eq!(bench.steps.prompts.load(Ordering::SeqCst) - before, 2);
    let again: Vec<WrittenLine> = bench.lines("candidates.jsonl");
    assert!(candidates.iter().all(|line| again.iter().any(|l| l.id == line.id && l.texts == line.texts)));
    bench.run(&[], Options { adopt: vec![Stage::Candidates], ..only(&stages) }).await.unwrap();

    // An adoption that breaks in the middle can be repeated, and one that fits nothing leaves the file.
    let scores = bench.path("scores.jsonl");
    bench.run(&[], only(&[Stage::Answers])).await.unwrap();
    fs_err::write(
        &scores,
        "{\"id\":\"of another run\",\"of\":\"\",\"answer\":[],\"gold\":[],\"query\":[]}\n",
    )
    .unwrap();
    let error = bench.run(&[], adopt(&[Stage::Scores])).await.unwrap_err().to_string();
    assert!(error.contains("has no line for any query") && scores.is_file(), "{error}");
    fs_err::remove_file(&scores).unwrap();
    let mut other = Bench::new();
    other.run(&[], only(&[Stage::Pairs])).await.unwrap();
    fs_err::write(other.path("candidates.jsonl"), lines.join("\n") + "\n").unwrap();
    other.steps.prompts_left.store(0, Ordering::SeqCst);
    other.run(&[], adopt(&[Stage::Candidates])).await.unwrap_err();
    other.steps.prompts_left.store(usize::MAX, Ordering::SeqCst);
    // Gone on with as any interrupted stage it is still an adoption, which other inputs don't take away.
    let error = other.run(&more, only(&stages)).await.unwrap_err().to_string();
    assert!(error.contains("--adopt candidates"), "{error}");
    other.run(&[], only(&stages)).await.unwrap();
    assert_eq!(other.hashes("candidates"), bench.hashes("candidates"));
    let manifest = Manifest::read(&other.path("stages/candidates.json")).unwrap().unwrap();
    assert!(manifest.adopted);

    // An adapter of another trainer.
    bench.run(&[], only(&[Stage::Answers, Stage::Scores, Stage::Preferences])).await.unwrap();
    fs_err::create_dir_all(bench.path("adapter")).unwrap();
    fs_err::write(bench.path("adapter/adapter_config.json"), "{}").unwrap();
    let error = bench.run(&[], adopt(&[Stage::Dpo])).await.unwrap_err().to_string();
    assert!(error.contains("has no adapter_model.safetensors"), "{error}");
    fs_err::write(bench.path("adapter/adapter_model.safetensors"), "x").unwrap();
    bench.run(&[], adopt(&[Stage::Dpo])).await.unwrap();
    bench.run(&[], Options::default()).await.unwrap();
    let jobs = bench.steps.jobs.lock().unwrap().clone();
    assert!(
        !jobs.iter().any(|job| job.starts_with("dpo")) && jobs.iter().any(|job| job.starts_with("merge"))
    );
}

#[tokio::test]
async fn cheap_files_made_elsewhere_are_kept_and_tested_queries_refused() {
    let mut bench = Bench::new();
    let stages = [Stage::Pairs, Stage::Candidates, Stage::Answers, Stage::Scores, Stage::Preferences];
    bench.run(&[], only(&stages)).await.unwrap();
    let ours = read(&bench.path("preferences.jsonl"));
    let theirs = ours.lines().skip(1).map(|line| format!("{line}\n")).collect::<String>();
    fs_err::write(bench.path("preferences.jsonl"), &theirs).unwrap();
    let only_preferences = only(&[Stage::Preferences]);
    let adopt = Options { adopt: vec![Stage::Preferences], ..only_preferences.clone() };
    bench.run(&[], adopt).await.unwrap();
    // The scores change, and the preferences could be made anew in no time; they are not ours, though.
    let dot = ["rewards.similarity=dot"];
    bench.run(&dot, Options { redo: true, ..only(&[Stage::Scores]) }).await.unwrap();
    let scores_changed = bench.run(&dot, only_preferences.clone()).await;
    if let Err(error) = &scores_changed {
        assert!(error.to_string().contains("--adopt preferences"), "{error}");
    }
    assert!(scores_changed.is_err() && read(&bench.path("preferences.jsonl")) == theirs);
    bench.run(&dot, Options { redo: true, ..only_preferences }).await.unwrap();
    assert_ne!(read(&bench.path("preferences.jsonl")), theirs);

    let mut pair = bench.lines::<Pair>("pairs.jsonl").remove(0);
    pair.query = "what is topic5 river5".into();
    fs_err::write(bench.path("pairs.jsonl"), serde_json::to_string(&pair).unwrap()).unwrap();
    let adopt = Options { adopt: vec![Stage::Pairs], ..only(&[Stage::Pairs]) };
    let error = bench.run(&[], adopt).await.unwrap_err().to_string();
    assert!(error.contains("\"what is topic5 river5\" is one of the evaluation"), "{error}");
}

#[tokio::test]
async fn a_tuned_model_is_asked_for_with_its_parts_unless_it_was_made_elsewhere() {
    let mut bench = Bench::new();
    bench.run(&[], Options::default()).await.unwrap();
    let tuned = Model::Adapted {
        base: Box::new(Model::Named("language-model".into())),
        adapter: bench.path("adapter"),
        merged: bench.path("expander"),
    };
    let untuned = Model::Named("language-model".into());
    // Candidates, answers, expansions, test expansions.
    assert_eq!(*bench.steps.loaded.lock().unwrap(), [untuned.clone(), untuned, tuned.clone(), tuned]);

    // A merged model of another trainer need not be what its adapter would give.
    fs_err::write(bench.path("expander/weights"), "of another trainer").unwrap();
    bench.run(&[], Options { adopt: vec![Stage::Merge], ..only(&[Stage::Merge]) }).await.unwrap();
    let redo = Options { redo: true, ..only(&[Stage::Expansions]) };
    bench.run(&[], redo).await.unwrap();
    assert_eq!(bench.steps.loaded.lock().unwrap().last(), Some(&Model::Made(bench.path("expander"))));
}

#[tokio::test]
async fn another_runs_stages_are_taken_where_they_are_the_same() {
    let mut bench = Bench::new();
    bench.run(&[], Options::default()).await.unwrap();
    let prompts = bench.steps.prompts.load(Ordering::SeqCst);
    let second = bench.folder.join("second");
    let out = format!("output={}", second.display());
    let options = Options { reuse: vec![bench.path("")], ..Options::default() };
    bench.run(&[&out, "encoder.model=teacher"], options).await.unwrap();
    let started = bench.ears.stages("stage_started");
    let taken: Vec<String> =
        bench.ears.stages("note").into_iter().filter(|stage| !started.contains(stage)).collect();
    // Another encoder: all that doesn't depend on it is taken, and nothing is written again but with a new adapter.
    assert_eq!(taken, ["pairs", "candidates", "answers", "examples@ft"]);
    assert!(bench.steps.prompts.load(Ordering::SeqCst) - prompts <= 24 + 4);
    let manifest = Manifest::read(&second.join("stages/candidates.json")).unwrap().unwrap();
    assert_eq!(manifest.outputs, bench.hashes("candidates"));
    assert_eq!(read(&second.join("candidates.jsonl")), read(&bench.path("candidates.jsonl")));
}

#[tokio::test]
async fn what_another_row_of_another_run_has_done_is_taken_too() {
    let mut bench = Bench::new();
    bench.run(&[], Options::default()).await.unwrap();
    assert!(bench.path("arms/query/vectors/vectors.json").is_file(), "the untrained encoder's are the row's");
    let untrained = bench.folder.join("untrained");
    let out = format!("output={}", untrained.display());
    let options = Options { reuse: vec![bench.path("")], ..Options::default() };
    let encoded = bench.steps.encoded.load(Ordering::SeqCst);
    bench.run(&[&out, "contrastive.enabled=false"], options).await.unwrap();
    // Without a training of the encoder every row has the same vectors, and they lie in the run folder itself.
    assert!(untrained.join("vectors/vectors.json").is_file() && !untrained.join("encoder").exists());
    let jobs = bench.steps.jobs.lock().unwrap().iter().filter(|job| job.starts_with("contrastive")).count();
    assert_eq!(jobs, 2, "those of the first run");
    let texts = bench.steps.encoded.load(Ordering::SeqCst) - encoded;
    assert_eq!(texts, 4 + 2 * 4, "test queries and their expansions, and no document");
    let manifest = Manifest::read(&untrained.join("stages/vectors.json")).unwrap().unwrap();
    assert!(manifest.outputs.contains_key("vectors"), "{:?}", manifest.outputs);
}

#[tokio::test]
async fn a_run_to_take_stages_from_must_be_one() {
    let bench = Bench::new();
    let recipe = bench.recipe(&[]);
    let options = Options { reuse: vec![bench.folder.join("typo")], ..Options::default() };
    let error = Run::new(&recipe, options, &bench.steps, &bench.ears).err().unwrap().to_string();
    assert!(error.contains("typo: not a run folder"), "{error}");
}

#[tokio::test]
async fn a_model_that_only_a_server_has_counts_by_its_name() {
    let mut bench = Bench::new();
    let elsewhere = ["candidates.model=giant"];
    let error = bench.run(&elsewhere, only(&[Stage::Pairs, Stage::Candidates])).await.unwrap_err();
    assert!(error.to_string().contains("there is no model giant"), "{error}");
    let served = ["candidates.model=giant", "machine.endpoint=http://127.0.0.1:1/v1"];
    let planned = bench.plan(&served, Options::default());
    assert!(matches!(planned[1].status, Status::Todo { .. }), "{:?}", planned[1].status);
}

#[tokio::test]
async fn a_servers_texts_stay_when_this_machine_gets_the_model_too() {
    let mut bench = Bench::new();
    let served = ["candidates.model=giant", "machine.endpoint=http://127.0.0.1:1/v1"];
    let stages = only(&[Stage::Pairs, Stage::Candidates]);
    bench.run(&served, stages.clone()).await.unwrap();
    let written = bench.steps.prompts.load(Ordering::SeqCst);
    let folder = bench.folder.join("models/giant");
    fs_err::create_dir_all(&folder).unwrap();
    fs_err::write(folder.join("weights"), "g").unwrap();
    bench.run(&served[..1], stages.clone()).await.unwrap();
    assert_eq!(bench.steps.prompts.load(Ordering::SeqCst), written);
    // And with more queries they are of use still.
    bench.run(&[served[0], "data.dpo_queries=14"], stages).await.unwrap();
    assert_eq!(bench.steps.prompts.load(Ordering::SeqCst), written + 2);
}
