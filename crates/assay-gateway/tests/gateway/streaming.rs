//! Answers that go well.

use crate::world::{CONTEXT, World, story, text_of};
use assay_types::Finish;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_and_a_whole_answer_are_the_same_text() {
    let world = World::start(1, &story(40)).await;
    let whole = world.chat(json!({"seed": 5})).await;
    assert_eq!(whole.content(), story(40));
    let body = whole.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "fake");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["choices"][0]["message"]["role"], "assistant");
    assert_eq!(body["assay"]["seed"], 5);
    assert_eq!(body["assay"]["providers"], json!([world.providers[0].id().to_string()]));
    assert_eq!(body["system_fingerprint"], format!("canonical-1:{}", world.model.model_id));
    assert_eq!(body["usage"]["completion_tokens"], world.tokenizer.encode(&story(40), false, false).len() + 1);

    let stream = world.chat(json!({"seed": 5, "stream": true, "stream_options": {"include_usage": true}})).await;
    assert_eq!(stream.streamed_text(), story(40));
    let events = stream.events();
    let (first, usage) = (&events[0], &events[events.len() - 2]);
    assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(first["assay"]["receipt"], stream.receipt_id());
    assert_eq!(first["assay"]["providers"], json!([world.providers[0].id().to_string()]));
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"], body["usage"]);
    let last = &events[events.len() - 3];
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["assay"]["cost"], body["assay"]["cost"]);
    assert_eq!(last["assay"]["receipt"], stream.receipt_id());
    // The role chunk, the text, the end, the usage, [DONE]: nothing else, and text in more than one piece.
    assert!(events.len() > 10, "{}", events.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_reply_has_a_receipt_that_can_be_fetched() {
    let world = World::start(1, &story(60)).await;
    let reply = world.chat(json!({})).await;
    let id = reply.receipt_id();
    assert_eq!(reply.json()["assay"]["receipt"], id);
    let file = world.receipt(&id).await;
    assert_eq!(world.text_of(&file), story(60));
    assert_eq!(file.parts.len(), 1);
    assert_eq!(file.parts[0].finish, Finish::Stop);
    assert_eq!(file.parts[0].signed.receipt.charged.to_string(), reply.json()["assay"]["cost"]);
    assert_eq!(file.job.sampling.seed, reply.json()["assay"]["seed"].as_u64().unwrap());
    // Several chunks were paid for on the way, and no more than that was ever signed.
    assert!(file.parts[0].output.len() > 128);
    assert_eq!(world.settled().await, file.parts[0].signed.receipt.charged.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_requests_without_seed_get_different_ones() {
    let world = World::start(1, "x").await;
    let (one, two) = (world.chat(json!({})).await, world.chat(json!({})).await);
    assert_ne!(one.json()["assay"]["seed"], two.json()["assay"]["seed"]);
    assert_ne!(one.receipt_id(), two.receipt_id());
    let jobs = world.providers[0].jobs();
    assert_ne!(jobs[0].nonce, jobs[1].nonce);
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_strings_cut_the_text_and_end_the_work() {
    let world = World::start(1, &story(40)).await;
    for stream in [false, true] {
        let reply = world.chat(json!({"stop": ["w7", "never"], "stream": stream})).await;
        let text = if stream { reply.streamed_text() } else { reply.content() };
        assert_eq!(text, story(7));
    }
    let file = world.receipt(&world.chat(json!({"stop": "w7"})).await.receipt_id()).await;
    assert_eq!(file.parts[0].finish, Finish::Stop);
    assert_eq!(world.text_of(&file), format!("{}w7", story(7)));
}

#[tokio::test(flavor = "multi_thread")]
async fn completions_take_text_and_tokens_and_stop_at_max_tokens() {
    let world = World::start(1, &story(40)).await;
    let check = async |prompt: Value, prompt_tokens: usize| {
        let body = json!({"model": "alias", "prompt": prompt, "max_tokens": 9});
        let whole = world.post("/v1/completions", &body).await;
        assert_eq!(whole.status, 200, "{}", whole.text());
        let reply = whole.json();
        assert_eq!(reply["object"], "text_completion");
        assert_eq!(reply["model"], "alias");
        assert_eq!(reply["choices"][0]["finish_reason"], "length");
        let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": 9, "total_tokens": prompt_tokens + 9});
        assert_eq!(reply["usage"], usage);
        let mut streamed = body.clone();
        streamed["stream"] = true.into();
        let stream = world.post("/v1/completions", &streamed).await;
        assert_eq!(reply["choices"][0]["text"], stream.streamed_text());
    };
    let tokens = world.tokenizer.encode("abc", true, false);
    check(json!("abc"), tokens.len()).await;
    check(json!(["abc"]), tokens.len()).await;
    check(json!([7, 8, 9, 10]), 4).await;
    assert_eq!(world.providers[0].jobs().last().unwrap().prompt, [7, 8, 9, 10]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_job_is_what_was_asked_for() {
    let world = World::start(1, "x").await;
    let ask = json!({"seed": 7, "temperature": 0.25, "top_p": 0.5, "top_k": 3, "max_tokens": 11, "stop": ["q"],
        "ignore_eos": true, "user": "someone"});
    let reply = world.chat(ask).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.json()["warnings"], json!(["parameter 'user' was ignored"]));
    let job = world.providers[0].jobs().pop().unwrap();
    assert_eq!((job.sampling.seed, job.max_tokens, job.ignore_eos), (7, 11, true));
    assert_eq!((job.sampling.temperature_micro, job.sampling.top_p_micro, job.sampling.top_k), (250_000, 500_000, 3));
    assert_eq!(job.stop, ["q"]);
    assert_eq!(job.request_hash().to_string(), reply.receipt_id());
    // Begin of text once, then the template.
    assert_eq!(job.prompt.iter().filter(|&&t| Some(t) == world.tokenizer.bos()).count(), 1);

    let unbounded = world.chat(json!({})).await;
    assert_eq!(unbounded.status, 200);
    let job = world.providers[0].jobs().pop().unwrap();
    assert_eq!(job.max_tokens as usize + job.prompt.len(), CONTEXT as usize);
}

#[tokio::test(flavor = "multi_thread")]
async fn provider_filters_are_obeyed() {
    let world = World::start(3, "x").await;
    for number in 0..3 {
        let reply = world.chat(json!({"provider": world.only(number)})).await;
        assert_eq!(reply.json()["assay"]["providers"], json!([world.providers[number].id().to_string()]));
    }
    let ignore = [world.providers[0].id().to_string(), world.providers[2].id().to_string()];
    let reply = world.chat(json!({"provider": {"ignore": ignore}})).await;
    assert_eq!(reply.json()["assay"]["providers"], json!([world.providers[1].id().to_string()]));
    let nobody = world.chat(json!({"provider": {"only": [ignore[0]], "ignore": [ignore[0]]}})).await;
    assert_eq!(nobody.status, 503);
    assert_eq!(nobody.json()["error"]["code"], "no_provider");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_provider_gets_a_share_also_who_was_never_measured() {
    let world = World::start(3, &story(3)).await;
    for _ in 0..60 {
        assert_eq!(world.chat(json!({})).await.content(), story(3));
    }
    let shares: Vec<u32> = world.providers.iter().map(assay_testkit::fake_provider::FakeProvider::asked).collect();
    assert!(shares.iter().all(|&share| share > 0), "{shares:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_at_once_share_channels_and_each_is_whole() {
    let world = std::sync::Arc::new(World::start(2, &story(60)).await);
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..24 {
        let world = std::sync::Arc::clone(&world);
        streams.spawn(async move { world.chat(json!({"stream": true})).await.streamed_text() });
    }
    while let Some(text) = streams.join_next().await {
        assert_eq!(text.unwrap(), story(60));
    }
    let jobs: usize = world.providers.iter().map(|p| p.jobs().len()).sum();
    assert_eq!(jobs, 24);
    assert!(world.settled().await > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn models_health_and_metrics() {
    let world = World::start(1, "x").await;
    let models = world.get("/v1/models").await.json();
    let ids: Vec<&str> = models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["fake", "alias"]);
    assert_eq!(models["data"][0]["context_length"], CONTEXT);
    assert_eq!(models["data"][0]["model_id"], world.model.model_id.to_string());
    assert_eq!(world.send(axum::http::Method::GET, "/healthz", None, "").await.status, 200);
    assert_eq!(world.send(axum::http::Method::GET, "/readyz", None, "").await.status, 200);
    assert_eq!(world.chat(json!({})).await.status, 200);
    let metrics = world.send(axum::http::Method::GET, "/metrics", None, "").await.text();
    for line in ["assay_gateway_output_tokens_total 2", "assay_gateway_providers_ready 1", "# EOF"] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
    assert!(metrics.contains("assay_gateway_responses_total{status=\"200\"}"), "{metrics}");
    let text = text_of(&world.chat(json!({"stream": true})).await.events());
    assert_eq!(text, "x");
}
