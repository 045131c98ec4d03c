//! Loading, overriding and refusing recipes.

use expandr_models::expander::{Q2A, Q2D};

use super::*;

const SMALLEST: &str = "[[data.sources]]\nname = \"a\"\npath = \"a.jsonl\"\n";

fn parse(text: &str, overrides: &[&str]) -> std::result::Result<Recipe, String> {
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    Recipe::parse(&format!("{text}\n{SMALLEST}"), &overrides)
}

#[test]
fn the_defaults_are_the_papers() {
    let recipe = parse("", &[]).unwrap();
    assert_eq!(recipe.candidates.temperatures.len() * recipe.candidates.samples, 32);
    assert_eq!((recipe.dpo.beta, recipe.dpo.lora_rank, recipe.dpo.lora_alpha), (0.1, 8, 32.0));
    assert_eq!((recipe.dpo.learning_rate, recipe.dpo.epochs, recipe.dpo.batch_size), (2e-5, 2.0, 16));
    assert_eq!((recipe.contrastive.batch_size, recipe.contrastive.learning_rate), (1024, 1e-5));
    assert_eq!(recipe.rewards.filter(), crate::Filter::AnswerPlusGold(0.6));
    assert_eq!((recipe.data.dpo_queries, recipe.evaluation.query_weight), (100_000, QueryWeight::Fixed(0.5)));
}

#[test]
fn overrides_reach_every_depth() {
    let recipe = parse(
        "[dpo]\nlearning_rate = 1.0",
        &[
            "dpo.learning_rate = 1e-5",
            "data.sources.0.limit=7",
            "data.sources.a.ratio=0.5",
            "seed=3",
            "candidates.temperatures=[0.5, 1]",
            "expander.model=some/model",
            "encoder.layers=2",
            "contrastive.method=lora",
            "machine.endpoint=http://127.0.0.1:8000/v1",
        ],
    )
    .unwrap();
    assert_eq!((recipe.dpo.learning_rate, recipe.seed, recipe.encoder.layers), (1e-5, 3, Some(2)));
    assert_eq!((recipe.data.sources[0].limit, recipe.data.sources[0].ratio), (Some(7), 0.5));
    assert_eq!(recipe.candidates.temperatures, [0.5, 1.0]);
    assert_eq!((recipe.expander.model.as_str(), recipe.contrastive.method), ("some/model", Method::Lora));
    assert_eq!(recipe.machine.endpoint.as_deref(), Some("http://127.0.0.1:8000/v1"));
    let unset = parse("[encoder]\nlayers = 2", &["encoder.layers=none"]).unwrap();
    assert_eq!(unset.encoder.layers, None);
}

#[test]
fn unknown_settings_come_with_a_suggestion() {
    for (text, wrong) in [
        (
            "[dpo]\nlearnign_rate = 1.0",
            "unknown setting `dpo.learnign_rate`; did you mean `dpo.learning_rate`?",
        ),
        ("[dpo]\nlr = 1.0", "unknown setting `dpo.lr`"),
        ("learning_rate = 1.0", "unknown setting `learning_rate`; did you mean `contrastive.learning_rate`?"),
        ("[candidate]\nsamples = 8", "unknown setting `candidate`; did you mean `candidates`?"),
        ("[rewards]\ntemperature = 8", "did you mean `answers.temperature`?"),
        ("[xyzzy]", "unknown setting `xyzzy`; docs/training.md lists all"),
    ] {
        let error = parse(text, &[]).unwrap_err();
        assert!(error.contains(wrong), "{text}: {error}");
    }
    let error = parse("", &["data.sources.0.limt=1"]).unwrap_err();
    assert!(error.contains("did you mean `data.sources.limit`?"), "{error}");
}

#[test]
fn values_of_another_type_are_named() {
    for (text, overrides, wrong) in [
        ("[dpo]\nlearning_rate = \"fast\"", vec![], "`dpo.learning_rate`: invalid type: string \"fast\""),
        ("[candidates]\nsamples = 1.5", vec![], "`candidates.samples`: invalid type: floating point"),
        (
            "[dpo]\nschedule = \"step\"",
            vec![],
            "`dpo.schedule`: unknown variant `step`, expected one of `linear`",
        ),
        ("dpo = 3", vec![], "`dpo`: invalid type"),
        ("", vec!["evaluation.query_weight=best"], "expected a number between 0 and 1, or \"dev\""),
        ("seed = 1\nseed = 2", vec![], "not TOML: "),
        ("", vec!["seed"], "override `seed` has no `=`"),
        ("", vec!["=1"], "override `=1` names no setting"),
        ("", vec!["data.sources.9.limit=1"], "`9` is neither a position below 1 nor the name"),
        ("", vec!["seed.part=1", "seed=1", "seed.part=1"], "has no parts"),
        ("", vec!["data.sources.0.format=xml"], "`data.sources[0].format`: unknown variant `xml`"),
    ] {
        let error = parse(text, &overrides).unwrap_err();
        assert!(error.contains(wrong), "{text}: {error}");
    }
}

#[test]
fn values_out_of_range_are_refused() {
    for (set, wrong) in [
        ("dpo.learning_rate=0", "`dpo.learning_rate` is 0; it must be above 0"),
        ("dpo.learning_rate=nan", "`dpo.learning_rate` is NaN"),
        ("contrastive.epochs=-1", "`contrastive.epochs` is -1"),
        ("dpo.accumulation=3", "it must divide `dpo.batch_size` = 16"),
        ("dpo.max_prompt_length=612", "below `dpo.max_length` = 612"),
        ("dpo.target_modules=[]", "`dpo.target_modules` is empty"),
        ("dpo.lora_dropout=1", "at least 0 and below 1"),
        ("contrastive.batch_size=1", "at least 2"),
        ("contrastive.negatives=5", "at most `data.max_negatives` = 1"),
        ("contrastive.mined_to=9", "`contrastive.mined_to` is 9; it must be at least 10"),
        ("candidates.top_p=0", "`candidates.top_p` is 0"),
        ("answers.top_p=1.1", "`answers.top_p` is 1.1"),
        ("candidates.temperatures=[1.0, 1]", "has 1 twice"),
        ("candidates.temperatures=[]", "`candidates.temperatures` is empty"),
        ("data.dpo_dev_share=1", "`data.dpo_dev_share` is 1"),
        ("data.sources.0.ratio=0", "`data.sources.0.ratio` is 0"),
        ("data.sources.0.name=", "every source needs a name"),
        ("data.sources.0.format=msmarco_qrels", "needs `documents` and `queries`"),
        ("data.sources=[]", "`data.sources` is empty"),
        ("encoder.layers=0", "`encoder.layers` is 0"),
        ("expander.prompt=no slot", "`expander.prompt`: a prompt template must have"),
        ("evaluation.metrics=[\"speed\"]", "`evaluation.metrics`: "),
        ("evaluation.arms=[\"expander\"]", "did you mean `expandr`?"),
        ("evaluation.arms=[\"auto\"]", "needs `gate.enabled` = true"),
        ("contrastive.expansion_dropout=1", "at least 0 and below 1"),
        ("contrastive.interpolation=0", "`contrastive.interpolation` is 0; it must be above 0 and at most 1"),
        ("contrastive.interpolation=1.5", "above 0 and at most 1"),
        ("contrastive.soup=0", "`contrastive.soup` is 0; it must be at least 1"),
        ("evaluation.query_weight=2", "between 0 and 1"),
        ("expansions.count=0", "`expansions.count` is 0; it must be between 1 and 8"),
        ("expansions.count=9", "`expansions.count` is 9"),
    ] {
        let error = parse("", &[set]).unwrap_err();
        assert!(error.contains(wrong), "{set}: {error}");
    }
    let both = parse("[rewards]\nself_reward = false\nretriever_reward = false", &[]);
    assert!(both.unwrap_err().contains("both off"));
    let greedy = parse("[expansions]\ncount = 4\ntemperature = 0", &[]).unwrap_err();
    assert!(greedy.contains("writes the same passage 4 times"), "{greedy}");
}

#[test]
fn what_is_written_reads_back_alike() {
    let recipe = parse("[encoder]\nlayers = 2\n[evaluation]\ncollections = [{path = \"c\"}]", &[]).unwrap();
    let again = Recipe::parse(&recipe.to_toml().unwrap(), &[]).unwrap();
    assert_eq!(recipe, again);
}

fn recipes() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut recipes = Vec::new();
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            recipes.push((name, fs_err::read_to_string(&path).unwrap()));
        }
    }
    recipes.sort();
    recipes
}

#[test]
fn the_committed_recipes_load() {
    let names: Vec<String> = recipes().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["paper.toml", "small.toml", "smoke.toml"]);
    for (name, text) in recipes() {
        let recipe = Recipe::parse(&text, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(recipe.expander.prompt, Q2D, "{name}");
        assert_eq!(recipe.expander.answer_prompt, Q2A, "{name}");
    }
}

/// The paper's recipe is also the reference of all settings: each stands in it, commented out where it has no value.
#[test]
fn the_papers_recipe_and_the_page_name_every_setting() {
    let (_, paper) = recipes().into_iter().next().unwrap();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/training.md");
    let page = fs_err::read_to_string(page).unwrap();
    let mut section = String::new();
    let mut stated = Vec::new();
    for line in paper.lines() {
        let line = line.trim_start_matches('#').trim();
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_matches(|c| c == '[' || c == ']'));
        } else if let Some((key, _)) = line.split_once(" = ") {
            stated.push(format!("{section}{key}"));
        }
    }
    for name in Recipe::setting_names() {
        assert!(stated.contains(&name), "paper.toml doesn't state {name}");
        assert!(page.contains(&format!("| `{name}` |")), "docs/training.md has no row for {name}");
    }
}

#[test]
fn measures_have_one_name() {
    let text = "[[data.sources]]\nname = \"a\"\npath = \"a.jsonl\"\n[evaluation]\nmetrics = [\"nDCG@10\", \"Recall@100\", \"precision@5\"]\n";
    assert_eq!(Recipe::parse(text, &[]).unwrap().evaluation.metrics, ["ndcg@10", "recall@100", "p@5"]);
}
