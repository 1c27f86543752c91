//! Replies that are one JSON body.

use assay_types::{Amount, Finish, ProviderId, RequestHash};
use serde::{Deserialize, Serialize};

/// What every reply to one request repeats.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// `chatcmpl-..` or `cmpl-..`.
    pub id: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// The model's name as the client asked for it.
    pub model: String,
    /// Arithmetic profile and model id: equal fingerprint, request and seed give equal bytes.
    pub system_fingerprint: String,
}

/// Token counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Of the output.
    pub completion_tokens: u64,
    /// Their sum.
    pub total_tokens: u64,
}

impl Usage {
    /// From the two counts.
    #[must_use]
    pub fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self { prompt_tokens, completion_tokens, total_tokens: prompt_tokens.saturating_add(completion_tokens) }
    }
}

/// The network's part of a reply.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AssayInfo {
    /// Name of the receipt: `GET /v1/receipts/{receipt}`.
    pub receipt: RequestHash,
    /// Who answers, in order; several where one was lost mid-stream.
    pub providers: Vec<ProviderId>,
    /// What the providers charged, in base units of the settlement token; not known in a stream's first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Amount>,
    /// Seed that was used; with it the request can be repeated.
    pub seed: u64,
}

/// What the end of an answer adds to its text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ending {
    /// How it ended.
    pub finish_reason: FinishReason,
    /// Token counts.
    pub usage: Usage,
    /// Receipt and cost.
    pub assay: AssayInfo,
    /// What was ignored in the request.
    pub warnings: Vec<String>,
}

/// How an output ended, in OpenAI's words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// End-of-generation token or stop string.
    Stop,
    /// `max_tokens` reached.
    Length,
}

impl FinishReason {
    /// `None` for an output that did not end by itself.
    #[must_use]
    pub fn from_finish(finish: Finish) -> Option<Self> {
        match finish {
            Finish::Stop => Some(Self::Stop),
            Finish::Length => Some(Self::Length),
            Finish::Open | Finish::Cancelled => None,
        }
    }
}

/// Reply of `/v1/chat/completions`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChatCompletion {
    /// [`Head::id`].
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// [`Head::created`].
    pub created: u64,
    /// [`Head::model`].
    pub model: String,
    /// [`Head::system_fingerprint`].
    pub system_fingerprint: String,
    /// One.
    pub choices: Vec<ChatChoice>,
    /// Token counts.
    pub usage: Usage,
    /// Receipt and cost.
    pub assay: AssayInfo,
    /// What was ignored in the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The one choice of a chat completion.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChatChoice {
    /// 0.
    pub index: u32,
    /// The answer.
    pub message: AssistantMessage,
    /// Always `null`; clients expect the field.
    pub logprobs: Option<()>,
    /// How it ended.
    pub finish_reason: FinishReason,
}

/// The answer of a chat completion.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
    /// Always `null`; clients expect the field.
    pub refusal: Option<String>,
}

impl ChatCompletion {
    /// The reply with one choice.
    #[must_use]
    pub fn new(head: Head, content: String, ending: Ending) -> Self {
        let Ending { finish_reason, usage, assay, warnings } = ending;
        let message = AssistantMessage { role: "assistant".into(), content, refusal: None };
        Self {
            id: head.id,
            object: "chat.completion".into(),
            created: head.created,
            model: head.model,
            system_fingerprint: head.system_fingerprint,
            choices: vec![ChatChoice { index: 0, message, logprobs: None, finish_reason }],
            usage,
            assay,
            warnings,
        }
    }
}

/// Reply of `/v1/completions`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Completion {
    /// [`Head::id`].
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// [`Head::created`].
    pub created: u64,
    /// [`Head::model`].
    pub model: String,
    /// [`Head::system_fingerprint`].
    pub system_fingerprint: String,
    /// One.
    pub choices: Vec<CompletionChoice>,
    /// Token counts.
    pub usage: Usage,
    /// Receipt and cost.
    pub assay: AssayInfo,
    /// What was ignored in the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The one choice of a completion.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// 0.
    pub index: u32,
    /// The text.
    pub text: String,
    /// Always `null`; clients expect the field.
    pub logprobs: Option<()>,
    /// How it ended.
    pub finish_reason: FinishReason,
}

impl Completion {
    /// The reply with one choice.
    #[must_use]
    pub fn new(head: Head, text: String, ending: Ending) -> Self {
        let Ending { finish_reason, usage, assay, warnings } = ending;
        Self {
            id: head.id,
            object: "text_completion".into(),
            created: head.created,
            model: head.model,
            system_fingerprint: head.system_fingerprint,
            choices: vec![CompletionChoice { index: 0, text, logprobs: None, finish_reason }],
            usage,
            assay,
            warnings,
        }
    }
}

/// Reply of `GET /v1/models`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// The models.
    pub data: Vec<ModelCard>,
}

impl ModelList {
    /// From the cards.
    #[must_use]
    pub fn new(data: Vec<ModelCard>) -> Self {
        Self { object: "list".into(), data }
    }
}

/// One model.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ModelCard {
    /// Name to ask for.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Seconds since the Unix epoch.
    pub created: u64,
    /// `assay`.
    pub owned_by: String,
    /// Longest prompt and output in tokens.
    pub context_length: u32,
    /// Id on the network: hash of the manifest.
    pub model_id: assay_types::ModelId,
}

impl ModelCard {
    /// From what differs between models.
    #[must_use]
    pub fn new(id: String, created: u64, context_length: u32, model_id: assay_types::ModelId) -> Self {
        Self { id, object: "model".into(), created, owned_by: "assay".into(), context_length, model_id }
    }
}
