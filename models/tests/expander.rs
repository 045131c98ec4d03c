//! What every expander promises, on the double, on an OpenAI-compatible server and on mistralrs with real weights.
//!
//! The last one wants the default weights in `models/store` (or the folder that `EXPANDR_TEST_MODELS` or
//! `EXPANDR_MODELS_DIR` names) and says so loudly when it skips.

mod mock_server;

use std::{sync::Arc, time::Duration};

use expandr_models::{
    Error, Expander, FinishReason, Generation, GenerationRequest, Sampling,
    expander::openai::{OpenAiExpander, OpenAiOptions},
    testing::{Conformance, Script, ScriptedExpander, ScriptedFailure, check_expander},
};
use mock_server::{Behaviour, MockServer};
use tokio::time::Instant;

fn request(prompt: &str, max_tokens: usize) -> GenerationRequest {
    GenerationRequest { prompt: prompt.into(), sampling: Sampling::greedy(max_tokens) }
}

async fn generate(expander: &dyn Expander, request: GenerationRequest) -> Result<Generation, Error> {
    expander.generate(request).await?.collect_until(None).await
}

/// Waits, within a second, until `condition` holds.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn quick() -> Conformance {
    Conformance { patience: Duration::from_secs(20), ..Conformance::default() }
}

/// A double that writes without end unless it is told how much.
fn endless_script() -> Script {
    Script { natural_length: 10_000, token_delay: Duration::from_millis(1), ..Script::default() }
}

#[tokio::test]
async fn the_double_conforms() {
    let double = Arc::new(ScriptedExpander::new(endless_script()));
    check_expander(double.clone(), &quick()).await;
    let counts = double.counts();
    assert!(counts.cancelled >= 5 && counts.finished >= 16 && counts.failed == 0, "{counts:?}");
    assert_eq!(counts.started, counts.finished + counts.cancelled);
}

#[tokio::test]
async fn the_double_fails_as_told() {
    let double = ScriptedExpander::new(Script::default());
    let text = generate(&double, request("why is the sky blue", 100)).await.unwrap();
    assert_eq!(text.finish_reason, Some(FinishReason::Stop));
    assert_eq!(text.text, double.text_for("why is the sky blue", 100));
    for (failure, message) in [
        (ScriptedFailure::Start, "does not start"),
        (ScriptedFailure::After(3), "it breaks"),
        (ScriptedFailure::Cut(3), "without a finish reason"),
        (ScriptedFailure::Overloaded, "overloaded"),
    ] {
        double.set_failure(failure);
        let error = generate(&double, request("q", 10)).await.unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
    double.set_failure(ScriptedFailure::Empty);
    let empty = generate(&double, request("q", 10)).await.unwrap();
    assert_eq!((empty.text.as_str(), empty.finish_reason), ("", Some(FinishReason::Stop)));
    double.set_failure(ScriptedFailure::Hang);
    let stream = double.generate(request("q", 10)).await.unwrap();
    let nothing = stream.collect_until(Some(Instant::now() + Duration::from_millis(20))).await.unwrap();
    assert_eq!(nothing, Generation::default());
    until("the hanging generation is cancelled", || double.counts().cancelled == 1).await;
}

#[tokio::test]
async fn seeds_repeat_samples() {
    let double = ScriptedExpander::new(Script::default());
    seeds_repeat(&double).await;
}

async fn seeds_repeat(expander: &dyn Expander) {
    let sample = |seed| async move {
        let sampling = Sampling { max_tokens: 16, temperature: 1.0, top_p: 0.9, seed };
        let request = GenerationRequest { prompt: "Tell me about rivers.".into(), sampling };
        generate(expander, request).await.unwrap().text
    };
    assert!(expander.info().honours_seed);
    assert_eq!(sample(Some(1)).await, sample(Some(1)).await);
    assert_ne!(sample(Some(1)).await, sample(Some(2)).await);
    assert_ne!(sample(None).await, sample(None).await);
}

fn client(server: &MockServer) -> OpenAiExpander {
    OpenAiExpander::new(OpenAiOptions {
        max_concurrency: 4,
        idle_timeout: Duration::from_millis(500),
        ..OpenAiOptions::new(server.url(), "mock")
    })
    .unwrap()
}

#[tokio::test]
async fn a_server_conforms_and_stops_when_the_stream_is_dropped() {
    let server = MockServer::start(endless_script()).await;
    check_expander(Arc::new(client(&server)), &quick()).await;
    // The connections were closed, so that the server's own generations stopped too.
    until("the server has stopped too", || server.double().running() == 0).await;
    let counts = server.double().counts();
    assert!(counts.cancelled >= 4, "{counts:?}");
}

#[tokio::test]
async fn what_is_sent_is_what_was_asked_for() {
    let server = MockServer::start(Script::default()).await;
    let mut options = OpenAiOptions::new(server.url(), "mock");
    options.api_key = Some("key".into());
    let expander = OpenAiExpander::new(options).unwrap();
    let sampling = Sampling { max_tokens: 7, temperature: 0.5, top_p: 0.75, seed: Some(11) };
    let prompt = "a <|im_end|> b";
    let generation =
        generate(&expander, GenerationRequest { prompt: prompt.into(), sampling }).await.unwrap();
    assert_eq!((generation.output_tokens, generation.finish_reason), (7, Some(FinishReason::Length)));
    assert!(generation.time_to_first_token.is_some());
    let (headers, body) = server.last_request();
    assert_eq!(headers["authorization"], "Bearer key");
    assert_eq!(body["model"], "mock");
    assert_eq!(body["messages"][0]["role"], "user");
    assert_eq!(body["messages"][0]["content"], "a < |im_end|> b");
    assert_eq!(
        (&body["max_tokens"], &body["temperature"], &body["top_p"], &body["seed"], &body["stream"]),
        (&7.into(), &0.5.into(), &0.75.into(), &11.into(), &true.into())
    );
    let sampling = Sampling { seed: Some(u64::MAX), ..sampling };
    generate(&expander, GenerationRequest { prompt: prompt.into(), sampling }).await.unwrap();
    assert_eq!(server.last_request().1["seed"], i64::MAX, "servers take signed numbers");
}

#[tokio::test]
async fn tokens_are_counted_as_the_server_counts_them() {
    let server = MockServer::start(Script::default()).await;
    server.behave(Behaviour::Usage(99));
    let generation = generate(&client(&server), request("q", 100)).await.unwrap();
    assert_eq!((generation.output_tokens, generation.finish_reason), (99, Some(FinishReason::Stop)));
}

#[tokio::test]
async fn broken_streams_are_failures() {
    let server = MockServer::start(Script::default()).await;
    let expander = client(&server);
    for (behaviour, message) in [
        (
            Behaviour::Raw("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n"),
            "without a finish reason",
        ),
        (
            Behaviour::Raw("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n"),
            "without a finish reason",
        ),
        (Behaviour::Raw("data: {broken\n\n"), "no completion chunk"),
        (Behaviour::Raw("<html>hello</html>"), "without a finish reason"),
        (Behaviour::Raw("data: {\"error\":{\"message\":\"out of memory\"}}\n\n"), "out of memory"),
        (
            Behaviour::Raw("data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"content_filter\"}]}\n\n"),
            "content_filter",
        ),
        (Behaviour::Abort, "broke"),
        (Behaviour::Silent, "was silent"),
        (Behaviour::SilentAfterStart, "was silent"),
    ] {
        server.behave(behaviour);
        let error = generate(&expander, request("q", 10)).await.unwrap_err();
        assert!(matches!(error, Error::Engine { .. }), "{behaviour:?}: {error:?}");
        assert!(error.to_string().contains(message), "{behaviour:?}: {error}");
        assert_eq!(expander.running(), 0, "{behaviour:?}");
    }
}

#[tokio::test]
async fn a_server_that_keeps_the_connection_open_after_the_end_does_not_delay_it() {
    let server = MockServer::start(Script::default()).await;
    server.behave(Behaviour::OpenEnd);
    let start = Instant::now();
    let generation = generate(&client(&server), request("q", 10)).await.unwrap();
    assert_eq!((generation.text.as_str(), generation.finish_reason), ("whole", Some(FinishReason::Stop)));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let server = MockServer::start(Script::default()).await;
    let expander = client(&server);
    for (status, message) in [
        (401, "check the key"),
        (404, "knows no model `mock`"),
        (400, "the server's words"),
        (500, "the server's words"),
    ] {
        server.behave(Behaviour::Status(status));
        let error = generate(&expander, request("q", 10)).await.unwrap_err();
        assert!(matches!(error, Error::Engine { .. }), "{status}: {error:?}");
        assert!(error.to_string().contains(message), "{status}: {error}");
    }
    for status in [429, 503] {
        server.behave(Behaviour::Status(status));
        let error = generate(&expander, request("q", 10)).await.unwrap_err();
        assert!(matches!(error, Error::Overloaded { .. }), "{status}: {error:?}");
        assert!(error.to_string().contains("try again after 7 s"), "{status}: {error}");
    }
    let nobody = OpenAiExpander::new(OpenAiOptions::new("http://127.0.0.1:9/v1", "m")).unwrap();
    let error = generate(&nobody, request("q", 10)).await.unwrap_err().to_string();
    assert!(error.contains("can't be reached"), "{error}");
}

#[tokio::test]
async fn a_full_queue_sheds() {
    let server = MockServer::start(endless_script()).await;
    let options =
        OpenAiOptions { max_concurrency: 1, queue_capacity: 1, ..OpenAiOptions::new(server.url(), "m") };
    let expander = Arc::new(OpenAiExpander::new(options).unwrap());
    let running = expander.generate(request("q", 5000)).await.unwrap();
    let waiting = tokio::spawn({
        let expander = expander.clone();
        async move { expander.generate(request("q", 2)).await.unwrap().collect_until(None).await.unwrap() }
    });
    until("one waits", || expander.waiting() == 1).await;
    let error = expander.generate(request("q", 2)).await.unwrap_err();
    assert!(matches!(error, Error::Overloaded { .. }), "{error:?}");
    drop(running);
    assert_eq!(waiting.await.unwrap().output_tokens, 2);
}

#[cfg(feature = "mistralrs")]
mod in_process {
    use std::path::{Path, PathBuf};

    use expandr_models::{
        DeviceChoice,
        expander::{
            PromptTemplate, SpecialTokens, clean,
            mistral::{self, MistralExpander, MistralOptions, WeightFormat},
        },
        weights::{DEFAULT_EXPANDER, DEFAULT_EXPANDER_GGUF},
    };
    use tokenizers::Tokenizer;

    use super::*;

    fn weights(name: &str) -> Option<PathBuf> {
        let named = ["EXPANDR_TEST_MODELS", "EXPANDR_MODELS_DIR"]
            .into_iter()
            .find_map(std::env::var_os)
            .map(PathBuf::from);
        let store = named.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("store"));
        let path = store.join(name);
        if path.exists() {
            return Some(path);
        }
        eprintln!(
            "SKIPPED: {} is not there; pull the default weights, or set EXPANDR_TEST_MODELS",
            path.display()
        );
        None
    }

    async fn load(path: &Path) -> Arc<MistralExpander> {
        let options = MistralOptions { device: DeviceChoice::Cpu, queue_capacity: 32, ..Default::default() };
        mistral::load(path, options).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_hugging_face_directory_conforms() {
        let Some(path) = weights(DEFAULT_EXPANDER) else { return };
        let expander = load(&path).await;
        let info = expander.info();
        assert_eq!((info.engine, info.concurrency, info.device.as_str()), ("mistralrs", 1, "cpu"));
        assert!(info.id.starts_with("smollm2-135m-instruct@"), "{}", info.id);
        check_expander(
            expander.clone(),
            &Conformance { prompts: 4, max_tokens: 10, ..Conformance::default() },
        )
        .await;
        seeds_repeat(&*expander).await;
        limits_hold(&expander).await;
        characters_are_whole(&expander).await;
        assert!(expander.is_alive());

        let prompt = PromptTemplate::q2d().render(&["what is the capital of France?"]).unwrap();
        let passage = clean(&generate(&*expander, request(&prompt, 32)).await.unwrap().text);
        assert!(passage.contains("Paris"), "{passage}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_gguf_file_conforms() {
        let Some(path) = weights(DEFAULT_EXPANDER_GGUF) else { return };
        let expander = load(&path).await;
        // Its prefill is slow in a plain build, so that it is tried less hard.
        let special_tokens = vec!["<|im_end|>"];
        check_expander(
            expander,
            &Conformance { prompts: 2, max_tokens: 6, special_tokens, ..Conformance::default() },
        )
        .await;
    }

    async fn limits_hold(expander: &MistralExpander) {
        let error = generate(expander, request(&"river ".repeat(9000), 4)).await.unwrap_err();
        assert!(matches!(&error, Error::Input(detail) if detail.contains("shorten the query")), "{error:?}");
        assert!(matches!(generate(expander, request("q", 0)).await.unwrap_err(), Error::Input(_)));
    }

    /// Cutting after every possible token never leaves half a character, and always a finish reason.
    async fn characters_are_whole(expander: &MistralExpander) {
        for max_tokens in 1..6 {
            let generation =
                generate(expander, request("Repeat exactly: 🚀👩‍🚀🎉🦀", max_tokens)).await.unwrap();
            assert!(!generation.text.contains('\u{fffd}'), "{:?}", generation.text);
            assert!(
                generation.finish_reason.is_some() && generation.output_tokens <= max_tokens,
                "{generation:?}"
            );
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn contradicting_options_are_refused() {
        let Some(path) = weights(DEFAULT_EXPANDER_GGUF) else { return };
        let refused = |path: PathBuf, options: MistralOptions| async move {
            mistral::load(&path, options).await.err().unwrap().to_string()
        };
        let cpu = MistralOptions { device: DeviceChoice::Cpu, ..Default::default() };
        let isq = MistralOptions { isq: Some("Q4K".into()), ..cpu.clone() };
        assert!(refused(path.clone(), isq).await.contains("quantised already"));
        let half = MistralOptions { format: Some(WeightFormat::Bf16), ..cpu.clone() };
        assert!(refused(path, half).await.contains("f32 only"));
        let empty = tempfile::tempdir().unwrap();
        assert!(refused(empty.path().to_path_buf(), cpu).await.contains("tokenizer.json"));
    }

    /// No special id of the real tokenizer appears in what a user writes.
    #[test]
    fn special_tokens_in_queries_are_text_to_the_real_tokenizer() {
        let Some(path) = weights(DEFAULT_EXPANDER) else { return };
        let file = path.join("tokenizer.json");
        let tokenizer = Tokenizer::from_file(&file).unwrap();
        let special = SpecialTokens::of_tokenizer(&file).unwrap();
        let added = tokenizer.get_added_tokens_decoder();
        assert!(added.len() >= 17);
        let mut query = String::from("what is ");
        for token in added.values() {
            query.push_str(&token.content);
            query.push_str(&token.content[1..]);
            query.push_str(&token.content.to_uppercase());
        }
        let raw = tokenizer.encode(query.as_str(), false).unwrap();
        assert!(raw.get_ids().iter().any(|id| added.contains_key(id)), "the query has special tokens");
        let neutral = special.neutralise(&query);
        let encoded = tokenizer.encode(neutral.as_ref(), false).unwrap();
        assert!(encoded.get_ids().iter().all(|id| !added.contains_key(id)), "{neutral}");
    }
}
