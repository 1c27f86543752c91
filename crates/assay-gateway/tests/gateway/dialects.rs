//! The Messages and the Responses API: the same jobs, said in other words.

use crate::world::{Reply, World, story};
use axum::http::Method;
use serde_json::{Value, json};

fn message(extra: Value) -> Value {
    let body = json!({"model": "fake", "max_tokens": 500, "messages": [{"role": "user", "content": "hi"}]});
    merged(body, extra)
}

fn response(extra: Value) -> Value {
    merged(json!({"model": "fake", "input": "hi"}), extra)
}

fn merged(mut body: Value, extra: Value) -> Value {
    for (key, value) in extra.as_object().expect("an object") {
        body[key] = value.clone();
    }
    body
}

/// Data of all events; each has the name that its data says.
fn events(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    let event = |event: &str| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        data
    };
    reply.text().split_terminator("\n\n").map(event).collect()
}

const TOOL_TEXT: &str = "Look: <tool_call>\n{\"name\": \"rain\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>";

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whole_and_streamed() {
    let world = World::start(1, &story(5)).await;
    let reply = world.post("/v1/messages", &message(json!({"system": "be brief", "zzz": 1}))).await;
    let whole = reply.json();
    assert_eq!(reply.status, 200, "{whole}");
    assert!(whole["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!(
        (&whole["type"], &whole["role"], &whole["model"]),
        (&json!("message"), &json!("assistant"), &json!("fake"))
    );
    assert_eq!(whole["content"], json!([{"type": "text", "text": story(5)}]));
    assert_eq!((&whole["stop_reason"], &whole["stop_sequence"]), (&json!("end_turn"), &Value::Null));
    assert_eq!(whole["warnings"], json!(["parameter 'zzz' was ignored"]));
    assert_eq!(whole["assay"]["receipt"], reply.receipt_id());
    let job = world.providers[0].jobs().pop().unwrap();
    assert_eq!(whole["usage"]["input_tokens"], job.prompt.len());
    world.receipt(&reply.receipt_id()).await;

    let streamed = events(&world.post("/v1/messages", &message(json!({"stream": true}))).await);
    assert_eq!(streamed[0]["message"]["content"], json!([]));
    let text: String = streamed.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    assert_eq!(text, story(5));
    let end = &streamed[streamed.len() - 2];
    assert_eq!((&end["type"], &end["delta"]["stop_reason"]), (&json!("message_delta"), &json!("end_turn")));
    assert_eq!(end["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
    assert_eq!(streamed.last().unwrap(), &json!({"type": "message_stop"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_message_ended() {
    let world = World::start(1, &story(5)).await;
    let ends = async |extra: Value| {
        let reply = world.post("/v1/messages", &message(extra)).await.json();
        (reply["stop_reason"].clone(), reply["stop_sequence"].clone(), reply["content"][0]["text"].clone())
    };
    assert_eq!(ends(json!({"max_tokens": 1})).await.0, "max_tokens");
    let stopped = ends(json!({"stop_sequences": ["zz", "w2"]})).await;
    assert_eq!(stopped, (json!("stop_sequence"), json!("w2"), json!(story(2))));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_tools_in_both_apis() {
    let world = World::start(1, TOOL_TEXT).await;
    let schema = json!({"type": "object"});
    let tools = json!([{"name": "rain", "input_schema": schema}]);
    let whole = world.post("/v1/messages", &message(json!({"tools": tools}))).await.json();
    assert_eq!(whole["stop_reason"], "tool_use", "{whole}");
    let call = &whole["content"][1];
    assert_eq!((&call["name"], &call["input"]), (&json!("rain"), &json!({"city": "Rome"})));
    let streamed = events(&world.post("/v1/messages", &message(json!({"tools": tools, "stream": true}))).await);
    let arguments: String = streamed.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&arguments).unwrap(), json!({"city": "Rome"}));

    let tools = json!([{"type": "function", "name": "rain", "parameters": schema}]);
    let whole = world.post("/v1/responses", &response(json!({"tools": tools}))).await.json();
    assert_eq!(whole["status"], "completed", "{whole}");
    assert_eq!(whole["output"][0]["type"], "message");
    let call = &whole["output"][1];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("rain")));
    let streamed = events(&world.post("/v1/responses", &response(json!({"tools": tools, "stream": true}))).await);
    let last = &streamed.last().unwrap()["response"];
    assert_eq!(last["output"][1]["arguments"], call["arguments"]);
    // The result goes back, and the answer's calls can be part of what is sent.
    let input = json!([
        {"role": "user", "content": "hi"}, call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": "dry"},
    ]);
    let reply = world.post("/v1/responses", &response(json!({"tools": tools, "input": input}))).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_whole_and_streamed() {
    let world = World::start(1, &story(5)).await;
    let reply = world.post("/v1/responses", &response(json!({"instructions": "be brief", "temperature": 0}))).await;
    let whole = reply.json();
    assert_eq!(reply.status, 200, "{whole}");
    assert_eq!(whole["output"][0]["content"][0]["text"], story(5));
    assert_eq!((&whole["instructions"], &whole["temperature"]), (&json!("be brief"), &json!(0)));
    assert_eq!((&whole["store"], &whole["status"]), (&json!(false), &json!("completed")));
    assert_eq!(whole["assay"]["receipt"], reply.receipt_id());
    let streamed = events(&world.post("/v1/responses", &response(json!({"stream": true}))).await);
    let text: String = streamed.iter().filter_map(|event| event["delta"].as_str()).collect();
    assert_eq!(text, story(5));
    let last = streamed.last().unwrap();
    assert_eq!(
        (&last["type"], &last["response"]["usage"]["output_tokens"]),
        (&json!("response.completed"), &whole["usage"]["output_tokens"])
    );
    let cut = world.post("/v1/responses", &response(json!({"max_output_tokens": 1}))).await.json();
    assert_eq!(
        (&cut["status"], &cut["incomplete_details"]["reason"]),
        (&json!("incomplete"), &json!("max_output_tokens"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_shape_of_their_api() {
    let world = World::start(1, "x").await;
    let check = |reply: Reply, status: u16, kind: &str| {
        assert_eq!((reply.status.as_u16(), &reply.json()["type"]), (status, &json!("error")), "{}", reply.text());
        assert_eq!(reply.json()["error"]["type"], kind);
    };
    let post = async |body: Value| world.post("/v1/messages", &body).await;
    check(post(message(json!({"model": "gpt-9"}))).await, 404, "not_found_error");
    check(post(message(json!({"max_tokens": null}))).await, 400, "invalid_request_error");
    let stranger = world.send(Method::POST, "/v1/messages", Some("sk-x"), message(json!({})).to_string()).await;
    check(stranger, 401, "authentication_error");
    let wrong = world.post("/v1/responses", &response(json!({"input": 7}))).await;
    assert_eq!((wrong.status.as_u16(), &wrong.json()["error"]["param"]), (400, &json!("input")));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_break_say_so_in_their_own_words() {
    let world = World::start(1, &story(50)).await;
    world.providers[0].set(assay_testkit::fake_provider::Trick::DieAt(10));
    let broken = events(&world.post("/v1/messages", &message(json!({"stream": true}))).await);
    let last = broken.last().unwrap();
    assert_eq!((&last["type"], &last["error"]["code"]), (&json!("error"), &json!("stream_broken")));
    let world = World::start(1, &story(50)).await;
    world.providers[0].set(assay_testkit::fake_provider::Trick::DieAt(10));
    let broken = events(&world.post("/v1/responses", &response(json!({"stream": true}))).await);
    let last = broken.last().unwrap();
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    assert_eq!(last["response"]["error"]["code"], "stream_broken");
}
