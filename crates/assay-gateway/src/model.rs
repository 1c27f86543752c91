//! A model as the gateway sees it: names, tokenizer and chat template. No weights.

use crate::tools;
use assay_api::{Logprob, Message, OutputLogprob, ScoredToken, Tooling};
use assay_gguf::{ChatTemplate, Gguf, GgufError, Limits, Tokenizer, TokenizerError, ToolStyle, tool_chat_tokens};
use assay_grammar::{Vocabulary, VocabularyError};
use assay_types::{Class, Grammar, JobLimits, Manifest, ModelId, TokenId, TokenLogprobs};
use std::sync::{Arc, OnceLock};

/// Architecture of the models that make vectors.
const ENCODERS: &str = "bert";

/// A model that the gateway serves. Clones share tokenizer and template.
#[derive(Clone, Debug)]
pub struct GatewayModel {
    /// Name that clients ask for.
    pub name: String,
    /// Further names.
    pub aliases: Vec<String>,
    /// What it is.
    pub manifest: Manifest,
    /// Hash of the manifest.
    pub model_id: ModelId,
    /// Longest prompt and output in tokens; of an encoder the longest text.
    pub context_length: u32,
    /// Values of a vector; `None` for a model that writes text.
    pub dimensions: Option<u32>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    /// Made for the first request with a grammar.
    vocabulary: Arc<OnceLock<Result<Vocabulary, VocabularyError>>>,
    template: Option<Arc<ChatTemplate>>,
}

/// Why a file gives no model to serve.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A field is missing or wrong.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// No tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The chat template does not compile.
    #[error("chat template: {0}")]
    Template(String),
}

/// Why messages are no prompt.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PromptError {
    /// The file has no chat template.
    #[error("the model has no chat template; use /v1/completions")]
    NoTemplate,
    /// The template has tools in a way that is not known here.
    #[error("this model's way to call tools is not supported")]
    UnknownTools,
    /// The template refuses these messages (many want user and assistant to alternate).
    #[error("the model's chat template refuses these messages: {0}")]
    Template(String),
}

impl GatewayModel {
    /// Reads tokenizer, template and context from a file's metadata; `manifest` is the caller's, who read the weights.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn from_gguf(name: String, aliases: Vec<String>, manifest: Manifest, gguf: &Gguf) -> Result<Self, ModelError> {
        let is_encoder = gguf.architecture()? == ENCODERS;
        let dimensions = if is_encoder { Some(gguf.require("bert.embedding_length")?) } else { None };
        // Written by `assay import` where a model was made for shorter texts than it has positions for.
        let input_length: Option<u32> = if is_encoder { gguf.get("assay.input_length")? } else { None };
        let template = ChatTemplate::from_gguf(gguf).map_err(|e| ModelError::Template(e.to_string()))?;
        Ok(Self {
            name,
            aliases,
            model_id: manifest.model_id(),
            manifest,
            context_length: gguf.context_length()?.min(input_length.unwrap_or(u32::MAX)),
            dimensions,
            tokenizer: Arc::new(Tokenizer::from_gguf(gguf)?),
            vocabulary: Arc::default(),
            template: template.map(Arc::new),
        })
    }

    /// The same model run by engines that are not canonical: each name with `:tolerant` behind it.
    #[must_use]
    pub(crate) fn tolerant(&self) -> Self {
        let named = |name: &String| format!("{name}:tolerant");
        let manifest = self.manifest.tolerant();
        Self {
            name: named(&self.name),
            aliases: self.aliases.iter().map(named).collect(),
            model_id: manifest.model_id(),
            manifest,
            ..self.clone()
        }
    }

    /// What can be said of its answers afterwards.
    pub(crate) fn class(&self) -> Class {
        // A profile that nobody knows is not one whose answers can be re-derived.
        self.manifest.class().unwrap_or(Class::Tolerant)
    }

    /// Bounds for jobs.
    #[must_use]
    pub fn job_limits(&self) -> JobLimits {
        JobLimits {
            vocab_size: self.tokenizer.vocab_size(),
            context_length: self.context_length,
            dimensions: self.dimensions.unwrap_or(0),
        }
    }

    /// The prompt of a chat: the template's text. Special tokens are not read from what the messages say.
    ///
    /// # Errors
    /// [`PromptError`].
    pub fn chat_prompt(&self, messages: &[Message], tooling: &Tooling) -> Result<Vec<TokenId>, PromptError> {
        let template = self.template.as_ref().ok_or(PromptError::NoTemplate)?;
        let is_plain = tooling.tools.is_empty()
            && messages.iter().all(|message| message.tool_calls.is_empty() && message.tool_call_id.is_none());
        let style = match template.tool_style() {
            Some(style) => style,
            None if is_plain => ToolStyle::Hermes,
            None => return Err(PromptError::UnknownTools),
        };
        let chat = tools::chat(messages, tooling, style);
        tool_chat_tokens(&self.tokenizer, template, &chat, &Limits::default())
            .map_err(|e| PromptError::Template(e.to_string()))
    }

    /// How the model calls tools; without a template it does not.
    pub(crate) fn tool_style(&self) -> Option<ToolStyle> {
        self.template.as_ref().and_then(|template| template.tool_style())
    }

    /// The prompt of a completion. Special tokens are not read from the text.
    #[must_use]
    pub fn text_prompt(&self, text: &str) -> Vec<TokenId> {
        self.tokenizer.encode(text, true, false)
    }

    /// Log probabilities as clients read them. A token that ends the answer prints nothing and is left out.
    pub(crate) fn logprobs(&self, scored: Vec<(TokenId, TokenLogprobs)>, ignore_eos: bool) -> Vec<OutputLogprob> {
        let token = |id: TokenId, micro: i32| {
            // A control token prints nothing, but somebody who reads this list wants to tell it from others.
            let printed = self.tokenizer.token_bytes(id);
            let bytes = if printed.is_empty() { self.tokenizer.token_text(id).as_bytes() } else { printed };
            ScoredToken {
                token: String::from_utf8_lossy(bytes).into_owned(),
                logprob: Logprob(micro),
                bytes: bytes.to_vec(),
            }
        };
        let is_shown = |id: TokenId| ignore_eos || !self.tokenizer.is_eog(id);
        scored
            .into_iter()
            .filter(|(id, _)| is_shown(*id))
            .map(|(id, logprobs)| OutputLogprob {
                token: token(id, logprobs.token_micro),
                top_logprobs: logprobs.top.into_iter().map(|(id, micro)| token(id, micro)).collect(),
            })
            .collect()
    }

    /// `canonical-1:0x..`: profile and model.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        format!("{}:{}", self.manifest.profile, self.model_id)
    }

    /// Whether the model can follow a grammar: what a provider would find, found before one is paid.
    pub(crate) fn check_grammar(&self, grammar: &Grammar) -> Result<(), String> {
        let tokens = &self.tokenizer;
        let ids = || 0..tokens.vocab_size();
        let make = || {
            let ends: Vec<TokenId> = ids().filter(|id| tokens.is_eog(*id)).collect();
            Vocabulary::new(ids().map(|id| tokens.token_bytes(id)), &ends)
        };
        let vocabulary = self.vocabulary.get_or_init(make).as_ref().map_err(ToString::to_string)?;
        let mut matcher = vocabulary.compile(grammar).map_err(|error| error.to_string())?;
        matcher.mask().map(drop).map_err(|error| error.to_string())
    }

    pub(crate) fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }
}
