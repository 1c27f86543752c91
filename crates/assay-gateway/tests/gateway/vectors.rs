//! Embeddings and reranking: forms of input, bounds, several jobs for one request, receipts, failover, faults.

use crate::world::World;
use assay_testkit::fake_provider::{Trick, fake_vector};
use assay_types::{Amount, EMBED_TEXTS_MAX, Finish, Prices, ReceiptFile, TokenId, receipt_domain, response_hash};
use serde_json::{Value, json};

const EMBEDDINGS: &str = "/v1/embeddings";
const WIDTH: u32 = 64;

/// What the fakes answer, as numbers.
fn expected(world: &World, texts: &[&str]) -> Vec<Vec<f32>> {
    texts.iter().map(|text| fake_vector(&world.encoder.text_prompt(text), WIDTH)).collect()
}

fn vectors(reply: &Value) -> Vec<Vec<f32>> {
    let data = reply["data"].as_array().unwrap();
    data.iter().map(|one| serde_json::from_value(one["embedding"].clone()).unwrap()).collect()
}

/// The receipt file of a reply, every statement of it checked.
async fn checked(world: &World, id: &str) -> ReceiptFile {
    let reply = world.get(&format!("/v1/receipts/{id}")).await;
    let file: ReceiptFile = serde_json::from_slice(&reply.body).unwrap();
    let [part] = file.parts.as_slice() else { panic!("one part, not {}", file.parts.len()) };
    let receipt = &part.signed.receipt;
    assert_eq!((file.id, receipt.request_hash), (file.job.request_hash(), file.job.request_hash()));
    assert_eq!((receipt.response_hash, part.finish), (response_hash(&part.output, Finish::Length), Finish::Length));
    // The price is that of what was read, whatever was written.
    let free = Prices { output_per_million: Amount::ZERO, ..crate::world::PRICES };
    assert_eq!(Some(receipt.charged), free.charge_up(file.job.prompt.len() as u64, 0));
    part.signed.verify(&receipt_domain(file.chain_id, file.registry), part.provider).unwrap();
    file
}

#[tokio::test]
async fn vectors_come_in_the_order_of_the_texts_with_a_receipt_over_their_bits() {
    let world = World::start(2, "unused").await;
    let texts = ["the cat", "the dog and the hat", "a"];
    let reply = world.post(EMBEDDINGS, &json!({"model": "encoder", "input": texts, "colour": 1})).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let body = reply.json();
    assert_eq!(vectors(&body), expected(&world, &texts));
    assert_eq!(
        (&body["data"][1]["index"], &body["warnings"][0]),
        (&json!(1), &json!("parameter 'colour' was ignored"))
    );
    let tokens: u64 = texts.iter().map(|text| world.encoder.text_prompt(text).len() as u64).sum();
    assert_eq!((&body["usage"]["prompt_tokens"], &body["usage"]["total_tokens"]), (&json!(tokens), &json!(tokens)));
    assert_eq!(body["assay"]["receipt"], reply.receipt_id());
    assert!(reply.headers["x-assay-route"].to_str().unwrap().contains("among=2"), "{:?}", reply.headers);
    let file = checked(&world, &reply.receipt_id()).await;
    let bits: Vec<TokenId> = expected(&world, &texts).concat().into_iter().map(f32::to_bits).collect();
    assert_eq!((&file.parts[0].output, file.job.texts().len()), (&bits, 3));
    assert_eq!(body["assay"]["cost"], file.parts[0].signed.receipt.charged.to_string());

    // One text, token ids as they are, and the form that stock clients ask for.
    let ids = world.encoder.text_prompt("the cat");
    for input in [json!("the cat"), json!(ids), json!([ids])] {
        let ask = json!({"model": "encoder", "input": input, "encoding_format": "base64", "dimensions": WIDTH});
        let body = world.post(EMBEDDINGS, &ask).await.json();
        let text = body["data"][0]["embedding"].as_str().unwrap();
        let bytes: Vec<u8> = expected(&world, &["the cat"])[0].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(text.len(), bytes.len().div_ceil(3) * 4);
        assert_eq!(decode(text), bytes);
    }
    world.settled().await;
}

/// Base64 by its definition.
fn decode(text: &str) -> Vec<u8> {
    let digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let value = |c: u8| digits.iter().position(|d| *d == c).unwrap() as u32;
    let bits: Vec<u32> = text.bytes().filter(|c| *c != b'=').map(value).collect();
    let bit = |n: usize| bits[n / 6] >> (5 - n % 6) & 1;
    (0..bits.len() * 6 / 8).map(|byte| (0..8).fold(0, |sum, n| sum << 1 | bit(8 * byte + n) as u8)).collect()
}

#[tokio::test]
async fn a_large_request_is_several_jobs_and_one_answer() {
    let world = World::start(3, "unused").await;
    let texts: Vec<String> = (0..2 * EMBED_TEXTS_MAX + 5).map(|n| format!("cat {n}")).collect();
    let reply = world.post(EMBEDDINGS, &json!({"model": "encoder", "input": texts})).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let body = reply.json();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(vectors(&body), expected(&world, &texts));
    let receipts: Vec<&str> =
        body["assay"]["receipts"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    assert_eq!((receipts.len(), receipts[0]), (3, reply.receipt_id().as_str()));
    let mut cost = 0;
    for id in receipts {
        cost += checked(&world, id).await.parts[0].signed.receipt.charged.0;
    }
    assert_eq!(body["assay"]["cost"], cost.to_string());
    assert_eq!(world.settled().await, cost);
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_its_field_before_anything_is_sent() {
    let world = World::start(1, "unused").await;
    let check = async |path: &str, body: Value, code: &str, param: &str| {
        let reply = world.post(path, &body).await;
        let error = &reply.json()["error"];
        assert_eq!(
            (reply.status.as_u16(), error["code"].as_str(), error["param"].as_str()),
            (400, Some(code), Some(param))
        );
    };
    let embed = |input: Value| json!({"model": "encoder", "input": input});
    let long = "cat ".repeat(700);
    check(EMBEDDINGS, embed(json!([&long])), "context_length_exceeded", "input").await;
    check(EMBEDDINGS, embed(json!(["a", &long])), "context_length_exceeded", "input[1]").await;
    check(EMBEDDINGS, embed(json!([[1, 2], [99_999]])), "invalid_value", "input[1]").await;
    check(EMBEDDINGS, embed(json!("")), "invalid_value", "input").await;
    check(EMBEDDINGS, json!({"model": "encoder", "input": "a", "dimensions": 8}), "invalid_value", "dimensions").await;
    check(EMBEDDINGS, json!({"model": "fake", "input": "a"}), "model_not_supported", "model").await;
    let chat = json!({"model": "encoder", "messages": [{"role": "user", "content": "hi"}]});
    check("/v1/chat/completions", chat, "model_not_supported", "model").await;
    let rank = json!({"model": "encoder", "query": "a", "documents": ["b", &long]});
    check("/v1/rerank", rank, "context_length_exceeded", "documents[1]").await;
    let unknown = world.post(EMBEDDINGS, &json!({"model": "nobody", "input": "a"})).await;
    assert_eq!((unknown.status.as_u16(), &unknown.json()["error"]["code"]), (404, &json!("model_not_found")));
    let stranger =
        world.send(axum::http::Method::POST, EMBEDDINGS, Some("sk-assay-no"), embed(json!("a")).to_string()).await;
    assert_eq!(stranger.status, 401);
    assert_eq!(world.providers[0].asked(), 0);
}

#[tokio::test]
async fn another_provider_answers_where_one_is_lost_or_lies() {
    for trick in [Trick::DieAt(0), Trick::WrongTokenAt(70), Trick::EndAt(9), Trick::Overcharge] {
        let world = World::start(2, "unused").await;
        world.providers[0].set(trick);
        let ask = json!({"model": "encoder", "input": ["the cat", "the dog"],
            "provider": {"order": [world.providers[0].id().to_string()]}});
        let reply = world.post(EMBEDDINGS, &ask).await;
        assert_eq!(reply.status, 200, "{trick:?}: {}", reply.text());
        assert_eq!(vectors(&reply.json()), expected(&world, &["the cat", "the dog"]), "{trick:?}");
        assert_eq!(reply.json()["assay"]["providers"], json!([world.providers[1].id()]), "{trick:?}");
        checked(&world, &reply.receipt_id()).await;
    }
}

#[tokio::test]
async fn several_providers_can_be_made_to_agree() {
    let world = World::start(3, "unused").await;
    let ask = json!({"model": "encoder", "input": "the cat", "assay": {"verify": {"redundant": 2}}});
    let reply = world.post(EMBEDDINGS, &ask).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let body = reply.json();
    assert_eq!(vectors(&body), expected(&world, &["the cat"]));
    assert_eq!(body["assay"]["providers"].as_array().unwrap().len(), 2);
    for id in body["assay"]["receipts"].as_array().unwrap() {
        checked(&world, id.as_str().unwrap()).await;
    }
}

#[tokio::test]
async fn documents_are_ranked_by_the_cosine_of_signed_vectors() {
    let world = World::start(1, "unused").await;
    let documents = ["the hat", "a", "the house and the dog", "z9 z9 z9"];
    let ask =
        json!({"model": "encoder", "query": "the cat", "documents": documents, "top_n": 3, "return_documents": true});
    let reply = world.post("/v1/rerank", &ask).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let body = reply.json();
    // By its definition, from the vectors that the receipt commits to.
    let file = checked(&world, &reply.receipt_id()).await;
    let signed: Vec<f64> = file.parts[0].output.iter().map(|bits| f32::from_bits(*bits).into()).collect();
    let (query, rest) = signed.split_at(WIDTH as usize);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let score = |vector: &[f64]| dot(query, vector) / (dot(query, query) * dot(vector, vector)).sqrt();
    let mut expected: Vec<(usize, f64)> = rest.chunks(WIDTH as usize).map(score).enumerate().collect();
    expected.sort_by(|a, b| b.1.total_cmp(&a.1));
    let results = body["results"].as_array().unwrap();
    assert_eq!(results.len(), 3);
    for (result, (index, score)) in results.iter().zip(expected) {
        assert_eq!(result["index"], index);
        // The reader of JSON rounds in the last place.
        assert!((result["relevance_score"].as_f64().unwrap() - score).abs() < 1e-12, "{result} {score}");
        assert_eq!(result["document"]["text"], documents[index]);
    }
    assert_eq!(body["usage"]["total_tokens"], file.job.prompt.len());
}
