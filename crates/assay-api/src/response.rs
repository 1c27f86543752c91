//! Replies that are one JSON body.

use crate::logprobs::{ChatLogprobs, CompletionLogprobs, OutputLogprob};
use crate::tools::ToolCall;
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
    /// The receipts of all choices, where there are several; `receipt` is the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub receipts: Vec<RequestHash>,
    /// Who answers, in order; several where one was lost mid-stream.
    pub providers: Vec<ProviderId>,
    /// What the providers charged, in base units of the settlement token; not known in a stream's first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Amount>,
    /// Seed that was used; with it the request can be repeated.
    pub seed: u64,
    /// Whether the answer can be re-derived.
    pub class: assay_types::Class,
}

/// One whole answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// Its calls, which are not part of the text.
    pub tool_calls: Vec<ToolCall>,
    /// Of its tokens, if they were asked for.
    pub logprobs: Option<Vec<OutputLogprob>>,
    /// How it ended.
    pub finish_reason: FinishReason,
}

/// What the end of a reply adds to its choices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ending {
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
    /// The answer calls tools.
    ToolCalls,
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
    /// As many as were asked for.
    pub choices: Vec<ChatChoice>,
    /// Token counts.
    pub usage: Usage,
    /// Receipt and cost.
    pub assay: AssayInfo,
    /// What was ignored in the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One choice of a chat completion.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChatChoice {
    /// From 0.
    pub index: u32,
    /// The answer.
    pub message: AssistantMessage,
    /// `null` if they were not asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// How it ended.
    pub finish_reason: FinishReason,
}

/// The answer of a chat completion.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: String,
    /// The text; `null` if there is none beside the calls.
    pub content: Option<String>,
    /// Always `null`; clients expect the field.
    pub refusal: Option<String>,
    /// What the model calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

impl ChatCompletion {
    /// The reply with these choices.
    #[must_use]
    pub fn new(head: Head, choices: Vec<Choice>, ending: Ending) -> Self {
        let Ending { usage, assay, warnings } = ending;
        let choice = |(index, choice): (u32, Choice)| ChatChoice {
            index,
            message: AssistantMessage {
                role: "assistant".into(),
                content: Some(choice.text).filter(|text| !text.is_empty() || choice.tool_calls.is_empty()),
                refusal: None,
                tool_calls: choice.tool_calls,
            },
            logprobs: choice.logprobs.map(ChatLogprobs::new),
            finish_reason: choice.finish_reason,
        };
        Self {
            id: head.id,
            object: "chat.completion".into(),
            created: head.created,
            model: head.model,
            system_fingerprint: head.system_fingerprint,
            choices: (0..).zip(choices).map(choice).collect(),
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
    /// As many as were asked for.
    pub choices: Vec<CompletionChoice>,
    /// Token counts.
    pub usage: Usage,
    /// Receipt and cost.
    pub assay: AssayInfo,
    /// What was ignored in the request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One choice of a completion.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// From 0.
    pub index: u32,
    /// The text.
    pub text: String,
    /// `null` if they were not asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// How it ended.
    pub finish_reason: FinishReason,
}

impl Completion {
    /// The reply with these choices.
    #[must_use]
    pub fn new(head: Head, choices: Vec<Choice>, ending: Ending) -> Self {
        let Ending { usage, assay, warnings } = ending;
        let choice = |(index, choice): (u32, Choice)| CompletionChoice {
            index,
            text: choice.text,
            logprobs: choice.logprobs.map(|tokens| CompletionLogprobs::new(tokens, 0)),
            finish_reason: choice.finish_reason,
        };
        Self {
            id: head.id,
            object: "text_completion".into(),
            created: head.created,
            model: head.model,
            system_fingerprint: head.system_fingerprint,
            choices: (0..).zip(choices).map(choice).collect(),
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
    /// What can be said of its answers afterwards.
    pub class: assay_types::Class,
}

impl ModelCard {
    /// From what differs between models.
    #[must_use]
    pub fn new(
        id: String,
        created: u64,
        context_length: u32,
        model_id: assay_types::ModelId,
        class: assay_types::Class,
    ) -> Self {
        Self { id, object: "model".into(), created, owned_by: "assay".into(), context_length, model_id, class }
    }
}
