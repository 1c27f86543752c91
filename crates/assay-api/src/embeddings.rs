//! `POST /v1/embeddings` and `POST /v1/rerank`: the requests, and the replies as bytes.

use crate::RequestError;
use crate::base64;
use crate::json::{Field, Fields};
use crate::request::{Asked, asked, model_name};
use assay_types::{Amount, ProviderId, RequestHash, TokenId};
use serde::Serialize;

/// Most texts in one request: OpenAI's bound.
pub const INPUTS_MAX: usize = 2048;

/// How vectors are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// Little-endian `f32`, one after the other.
    Base64,
}

/// What is to become a vector.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// Text, yet to be tokenized.
    Text(String),
    /// Token ids, used as they are.
    Tokens(Vec<TokenId>),
}

/// `POST /v1/embeddings`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EmbeddingRequest {
    /// The model's name.
    pub model: String,
    /// 1 to [`INPUTS_MAX`].
    pub input: Vec<Input>,
    /// How the vectors are written.
    pub encoding: Encoding,
    /// How many values each has to have.
    pub dimensions: Option<u32>,
    /// Providers, checks and warnings.
    pub asked: Asked,
}

/// `POST /v1/rerank`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RerankRequest {
    /// The model's name.
    pub model: String,
    /// What documents are compared with.
    pub query: String,
    /// 1 to [`INPUTS_MAX`] less one.
    pub documents: Vec<String>,
    /// So many results; all without it.
    pub top_n: Option<usize>,
    /// Whether results repeat their documents.
    pub return_documents: bool,
    /// Providers, checks and warnings.
    pub asked: Asked,
}

impl EmbeddingRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::parse_body(body)?;
        let model = model_name(&mut fields)?;
        let input = inputs(&fields.require("input")?)?;
        let encoding = match fields.take("encoding_format") {
            None => Encoding::default(),
            Some(field) => match field.string()?.as_str() {
                "float" => Encoding::Float,
                "base64" => Encoding::Base64,
                _ => return Err(field.refuse("expected \"float\" or \"base64\"")),
            },
        };
        let dimensions = fields.take("dimensions").map(|field| at_least_one(&field)).transpose()?;
        // Known, and changes nothing.
        let _ = fields.take("user");
        Ok(Self { model, input, encoding, dimensions, asked: asked(fields)? })
    }
}

impl RerankRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn parse(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::parse_body(body)?;
        let model = model_name(&mut fields)?;
        let query = text(&fields.require("query")?)?;
        let list = fields.require("documents")?;
        let items = list.array("an array of documents")?;
        if items.is_empty() || items.len() >= INPUTS_MAX {
            return Err(list.refuse(format!("expected 1 to {} documents, got {}", INPUTS_MAX - 1, items.len())));
        }
        let documents = items.iter().map(document).collect::<Result<_, _>>()?;
        let top_n = fields.take("top_n").map(|field| at_least_one(&field)).transpose()?;
        let return_documents = fields.take("return_documents").map_or(Ok(false), |field| field.bool())?;
        let top_n = top_n.map(|top| top as usize);
        Ok(Self { model, query, documents, top_n, return_documents, asked: asked(fields)? })
    }
}

fn at_least_one(field: &Field<'_>) -> Result<u32, RequestError> {
    const EXPECTED: &str = "an integer from 1 to 4294967295";
    match field.integer::<u32>(EXPECTED)? {
        0 => Err(field.refuse(format!("expected {EXPECTED}, got 0"))),
        number => Ok(number),
    }
}

/// A string that is not empty: of an empty one a model says nothing.
fn text(field: &Field<'_>) -> Result<String, RequestError> {
    let text = field.string()?;
    if text.is_empty() { Err(field.refuse("the text is empty")) } else { Ok(text) }
}

/// A string, or an object with a `text`.
fn document(field: &Field<'_>) -> Result<String, RequestError> {
    if field.is_string() {
        return text(field);
    }
    field
        .object()
        .map_err(|_| field.wrong("a string or an object with a 'text'"))?
        .require("text")
        .and_then(|f| text(&f))
}

fn inputs(field: &Field<'_>) -> Result<Vec<Input>, RequestError> {
    const EXPECTED: &str = "a string, an array of strings, an array of token ids, or an array of such arrays";
    let tokens = |field: &Field<'_>| match field.token_ids()? {
        tokens if tokens.is_empty() => Err(field.refuse("the text is empty")),
        tokens => Ok(Input::Tokens(tokens)),
    };
    if field.is_string() {
        return Ok(vec![Input::Text(text(field)?)]);
    }
    if !field.is_array() {
        return Err(field.wrong(EXPECTED));
    }
    // A list of ids may be long, and needs no path for each.
    if field.token_ids().is_ok_and(|tokens| !tokens.is_empty()) {
        return Ok(vec![tokens(field)?]);
    }
    let items = field.array(EXPECTED)?;
    if items.is_empty() || items.len() > INPUTS_MAX {
        return Err(field.refuse(format!("expected 1 to {INPUTS_MAX} texts, got {}", items.len())));
    }
    let input = |item: &Field<'_>| match item {
        item if item.is_string() => text(item).map(Input::Text),
        item if item.is_array() => tokens(item),
        item => Err(item.wrong("a string or an array of token ids")),
    };
    items.iter().map(input).collect()
}

/// What every reply with vectors says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VectorInfo {
    /// Name of the (first) receipt.
    pub receipt: RequestHash,
    /// All receipts, where there are several: a large request is several jobs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub receipts: Vec<RequestHash>,
    /// Who computed, each once.
    pub providers: Vec<ProviderId>,
    /// What was charged in base units of the settlement token.
    pub cost: Amount,
}

/// Tokens that were read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct VectorUsage {
    /// All of them.
    pub prompt_tokens: u64,
    /// The same: nothing is written.
    pub total_tokens: u64,
}

impl VectorUsage {
    /// So many were read.
    #[must_use]
    pub fn new(tokens: u64) -> Self {
        Self { prompt_tokens: tokens, total_tokens: tokens }
    }
}

#[derive(Serialize)]
struct EmbeddingList<'a> {
    object: &'static str,
    data: Vec<EmbeddingObject<'a>>,
    model: &'a str,
    usage: VectorUsage,
    assay: &'a VectorInfo,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct EmbeddingObject<'a> {
    object: &'static str,
    index: usize,
    embedding: Values<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Values<'a> {
    Float(&'a [f32]),
    Base64(String),
}

/// The reply to an [`EmbeddingRequest`].
#[must_use]
pub fn embedding_reply(
    request: &EmbeddingRequest,
    vectors: &[Vec<f32>],
    usage: VectorUsage,
    assay: &VectorInfo,
) -> Vec<u8> {
    let object = |(index, vector): (usize, _)| EmbeddingObject {
        object: "embedding",
        index,
        embedding: values(request.encoding, vector),
    };
    let data = vectors.iter().map(Vec::as_slice).enumerate().map(object).collect();
    let (model, warnings) = (request.model.as_str(), request.asked.warnings.as_slice());
    let list = EmbeddingList { object: "list", data, model, usage, assay, warnings };
    // Strings, integers and finite numbers always have a JSON form.
    serde_json::to_vec(&list).unwrap_or_default()
}

fn values(encoding: Encoding, vector: &[f32]) -> Values<'_> {
    match encoding {
        Encoding::Float => Values::Float(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            Values::Base64(base64::encode(&bytes))
        }
    }
}

#[derive(Serialize)]
struct Reranked<'a> {
    object: &'static str,
    id: String,
    model: &'a str,
    results: Vec<RerankResult<'a>>,
    usage: VectorUsage,
    assay: &'a VectorInfo,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct RerankResult<'a> {
    index: usize,
    relevance_score: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<Document<'a>>,
}

#[derive(Serialize)]
struct Document<'a> {
    text: &'a str,
}

/// The reply to a [`RerankRequest`]: `scores` of all its documents, of which it takes the best, equals in their order.
#[must_use]
pub fn rerank_reply(request: &RerankRequest, scores: &[f64], usage: VectorUsage, assay: &VectorInfo) -> Vec<u8> {
    let mut order: Vec<(usize, f64)> = scores.iter().copied().enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    order.truncate(request.top_n.unwrap_or(order.len()));
    let result = |(index, relevance_score): (usize, f64)| {
        let text = request.documents.get(index).filter(|_| request.return_documents);
        RerankResult { index, relevance_score, document: text.map(|text| Document { text }) }
    };
    let results = order.into_iter().map(result).collect();
    let id = format!("rerank-{}", assay.receipt.to_string().chars().skip(2).take(24).collect::<String>());
    let (model, warnings) = (request.model.as_str(), request.asked.warnings.as_slice());
    serde_json::to_vec(&Reranked { object: "list", id, model, results, usage, assay, warnings }).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn embedding(body: &Value) -> Result<EmbeddingRequest, RequestError> {
        EmbeddingRequest::parse(body.to_string().as_bytes())
    }

    fn info() -> VectorInfo {
        VectorInfo { receipt: RequestHash::default(), receipts: vec![], providers: vec![], cost: Amount(7) }
    }

    #[test]
    fn every_form_of_input_is_read() {
        let check = |input: Value, expect: &[Input]| {
            let request = embedding(&json!({"model": "m", "input": input, "user": "u", "x": 1})).unwrap();
            assert_eq!(request.input, expect);
            assert_eq!(request.asked.warnings, ["parameter 'x' was ignored"]);
        };
        let (a, b) = (Input::Text("a".into()), Input::Text("b".into()));
        check(json!("a"), std::slice::from_ref(&a));
        check(json!(["a", "b"]), &[a.clone(), b]);
        check(json!([1, 2]), &[Input::Tokens(vec![1, 2])]);
        check(json!([[1], [2, 3]]), &[Input::Tokens(vec![1]), Input::Tokens(vec![2, 3])]);
        check(json!([[1], "a"]), &[Input::Tokens(vec![1]), a]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |change: Value, param: &str| {
            let mut body = json!({"model": "m", "input": "a"});
            body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            assert_eq!(embedding(&body).unwrap_err().param(), Some(param), "{body}");
        };
        for input in [json!(""), json!([]), json!(7), json!([-1]), json!({}), json!(vec!["a"; 2049])] {
            check(json!({"input": input}), if input == json!([-1]) { "input[0]" } else { "input" });
        }
        check(json!({"input": ["a", ""]}), "input[1]");
        check(json!({"input": [[1], []]}), "input[1]");
        check(json!({"input": null}), "input");
        check(json!({"dimensions": 0}), "dimensions");
        check(json!({"encoding_format": "int8"}), "encoding_format");
        check(json!({"provider": {"only": 1}}), "provider.only");
        let check = |body: Value, param: &str| {
            let error = RerankRequest::parse(body.to_string().as_bytes()).unwrap_err();
            assert_eq!(error.param(), Some(param), "{body}");
        };
        check(json!({"model": "m", "documents": ["a"]}), "query");
        check(json!({"model": "m", "query": "q", "documents": []}), "documents");
        check(json!({"model": "m", "query": "q", "documents": ["a", 1]}), "documents[1]");
        check(json!({"model": "m", "query": "q", "documents": [{}]}), "documents[0].text");
        check(json!({"model": "m", "query": "q", "documents": ["a"], "top_n": 0}), "top_n");
    }

    #[test]
    fn vectors_are_written_as_numbers_or_little_endian_bytes() {
        let vectors = [vec![1.0, -0.5], vec![0.1, 3e-9]];
        let write = |encoding| {
            let request = embedding(&json!({"model": "m", "input": "a", "encoding_format": encoding})).unwrap();
            let bytes = embedding_reply(&request, &vectors, VectorUsage::new(5), &info());
            serde_json::from_slice::<Value>(&bytes).unwrap()
        };
        let plain = write("float");
        assert_eq!((&plain["object"], &plain["usage"]["total_tokens"]), (&json!("list"), &json!(5)));
        // The shortest decimals that are read as the same f32.
        let text = plain["data"][1]["embedding"].to_string();
        assert_eq!(serde_json::from_str::<Vec<f32>>(&text).unwrap(), vectors[1]);
        assert_eq!((&plain["data"][0]["index"], plain["data"][0]["embedding"][1].as_f64()), (&json!(0), Some(-0.5)));
        assert_eq!(write("base64")["data"][0]["embedding"], "AACAPwAAAL8=");
    }

    #[test]
    fn the_best_documents_come_first_and_equals_in_their_order() {
        let body = json!({"model": "m", "query": "q", "documents": ["a", {"text": "b"}, "c", "d"], "top_n": 3,
            "return_documents": true});
        let request = RerankRequest::parse(body.to_string().as_bytes()).unwrap();
        let bytes = rerank_reply(&request, &[0.1, 0.9, 0.9, -1.0], VectorUsage::new(1), &info());
        let reply: Value = serde_json::from_slice(&bytes).unwrap();
        let order: Vec<u64> =
            reply["results"].as_array().unwrap().iter().map(|r| r["index"].as_u64().unwrap()).collect();
        assert_eq!(order, [1, 2, 0]);
        assert_eq!((&reply["results"][0]["document"]["text"], &reply["assay"]["cost"]), (&json!("b"), &json!("7")));
    }
}
