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
    assert_eq!(nobody.status, 404);
    assert_eq!(nobody.json()["error"]["code"], "no_provider_allowed");
    assert_eq!(nobody.json()["error"]["param"], "provider");
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
    assert_eq!(ids, ["fake", "alias", "encoder"]);
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

#[tokio::test(flavor = "multi_thread")]
async fn log_probabilities_arrive_whole_and_streamed() {
    let world = World::start(1, &story(12)).await;
    let ask = json!({"logprobs": true, "top_logprobs": 2});
    let whole = world.chat(ask).await.json();
    let content = whole["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    // All tokens but the one that ends the answer.
    assert_eq!(content.len() as u64 + 1, whole["usage"]["completion_tokens"].as_u64().unwrap());
    let bytes: Vec<u8> =
        content.iter().flat_map(|t| t["bytes"].as_array().unwrap()).map(|b| b.as_u64().unwrap() as u8).collect();
    assert_eq!(String::from_utf8(bytes).unwrap(), story(12));
    assert_eq!(content[0]["logprob"], -0.5);
    assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(content[0]["top_logprobs"][1]["logprob"], -1.000_001);

    let stream = world.chat(json!({"logprobs": true, "top_logprobs": 2, "stream": true})).await;
    let parts = |event: &Value| event["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default();
    let streamed: Vec<Value> = stream.events().iter().flat_map(parts).collect();
    assert_eq!(streamed, content);

    let body = json!({"model": "fake", "prompt": "abc", "logprobs": 1, "max_tokens": 5});
    let completion = world.post("/v1/completions", &body).await.json();
    let logprobs = &completion["choices"][0]["logprobs"];
    let texts: Vec<&str> = logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(texts.concat(), completion["choices"][0]["text"].as_str().unwrap());
    assert_eq!(logprobs["token_logprobs"][4], -0.5);
    assert_eq!(logprobs["text_offset"][1], texts[0].chars().count());
    assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap()[texts[0]], -0.5);
    // Nobody asked: the field is there and empty.
    assert_eq!(world.chat(json!({})).await.json()["choices"][0]["logprobs"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_choices_are_jobs_of_their_own_and_one_reply() {
    let world = World::start(2, &story(30)).await;
    let whole = world.chat(json!({"n": 3, "seed": 5})).await.json();
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    let mut cost = 0;
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["message"]["content"]), (&json!(index), &json!(story(30))));
        let receipt = whole["assay"]["receipts"][index].as_str().unwrap();
        let file = world.receipt(receipt).await;
        assert_eq!(file.job.sampling.seed, assay_types::choice_seed(5, index as u32));
        cost += file.parts[0].signed.receipt.charged.0;
    }
    assert_eq!(whole["assay"]["receipt"], whole["assay"]["receipts"][0]);
    assert_eq!(whole["assay"]["cost"], cost.to_string());
    let jobs: Vec<_> = world.providers.iter().flat_map(assay_testkit::fake_provider::FakeProvider::jobs).collect();
    let usage = &whole["usage"];
    assert_eq!(usage["prompt_tokens"], 3 * jobs[0].prompt.len());
    let one = world.chat(json!({})).await.json()["usage"]["completion_tokens"].as_u64().unwrap();
    assert_eq!(usage["completion_tokens"], 3 * one);

    let body = json!({"n": 3, "stream": true, "stream_options": {"include_usage": true}});
    let events = world.chat(body).await.events();
    for index in 0..3 {
        let of = |event: &&Value| event["choices"][0]["index"] == index;
        let mine: Vec<Value> = events.iter().filter(of).cloned().collect();
        assert_eq!(text_of(&mine), story(30));
        assert_eq!(mine[0]["choices"][0]["delta"]["role"], "assistant");
        let last = mine.last().unwrap();
        assert_eq!(last["choices"][0]["finish_reason"], "stop");
        world.receipt(last["assay"]["receipt"].as_str().unwrap()).await;
    }
    assert_eq!(events[events.len() - 2]["usage"]["completion_tokens"], 3 * one);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_is_checked_before_anybody_is_paid_and_goes_into_the_job() {
    let world = World::start(1, &story(3)).await;
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}});
    assert_eq!(world.chat(schema(json!({"type": "object"}))).await.status, 200);
    let job = world.providers[0].jobs().pop().unwrap();
    assert_eq!(job.grammar.unwrap().text, r#"{"type":"object"}"#);
    for (ask, param) in [
        (schema(json!({"type": "strange"})), "response_format.json_schema.schema"),
        (json!({"guided_regex": "("}), "guided_regex"),
        (json!({"guided_grammar": "start: nowhere"}), "guided_grammar"),
    ] {
        let reply = world.chat(ask).await;
        assert_eq!(reply.status, 400, "{}", reply.text());
        assert_eq!(reply.json()["error"]["param"], param, "{}", reply.text());
        assert_eq!(reply.json()["error"]["type"], "invalid_request_error");
    }
    assert_eq!(world.providers[0].jobs().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_are_found_whole_and_streamed() {
    let call = "<tool_call>\n{\"name\": \"rain\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";
    let world = World::start(1, &format!("Look. {call}")).await;
    let tools = json!([{"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}]);
    let whole = world.chat(json!({"tools": tools})).await.json();
    let choice = &whole["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls", "{whole}");
    assert_eq!(choice["message"]["content"], "Look. ");
    let function = json!({"name": "rain", "arguments": "{\"city\": \"Rome\"}"});
    assert_eq!(choice["message"]["tool_calls"][0]["function"], function);
    let events = world.chat(json!({"tools": tools, "stream": true})).await.events();
    assert_eq!(text_of(&events), "Look. ");
    let deltas: Vec<&Value> = events.iter().map(|e| &e["choices"][0]["delta"]["tool_calls"][0]).collect();
    let names: Vec<&Value> = deltas.iter().map(|d| &d["function"]["name"]).filter(|name| name.is_string()).collect();
    assert_eq!(names, [&json!("rain")]);
    let arguments: String = deltas.iter().filter_map(|d| d["function"]["arguments"].as_str()).collect();
    assert_eq!(arguments, "{\"city\": \"Rome\"}");
    assert!(events.iter().any(|e| e["choices"][0]["finish_reason"] == "tool_calls"));
    // Without tools it is text; a forced call is part of the job.
    assert_eq!(world.chat(json!({})).await.content(), format!("Look. {call}"));
    assert_eq!(world.chat(json!({"tools": tools, "tool_choice": "required"})).await.status, 200);
    assert!(world.providers[0].jobs().pop().unwrap().grammar.unwrap().text.contains("<tool_call>"));
    // And what comes of it goes back into the conversation.
    let messages = json!([{"role": "user", "content": "Rain?"},
        {"role": "assistant", "content": null, "tool_calls": choice["message"]["tool_calls"]},
        {"role": "tool", "tool_call_id": choice["message"]["tool_calls"][0]["id"], "content": "no"}]);
    let reply = world.chat(json!({"tools": tools, "messages": messages})).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}
