//! A model as the gateway sees it: names, tokenizer and chat template. No weights.

use assay_api::Message;
use assay_gguf::{ChatMessage, ChatTemplate, Gguf, GgufError, Limits, Tokenizer, TokenizerError, chat_tokens};
use assay_types::{JobLimits, Manifest, ModelId, TokenId};
use std::sync::Arc;

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
    /// Longest prompt and output in tokens.
    pub context_length: u32,
    pub(crate) tokenizer: Arc<Tokenizer>,
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
        let template = ChatTemplate::from_gguf(gguf).map_err(|e| ModelError::Template(e.to_string()))?;
        Ok(Self {
            name,
            aliases,
            model_id: manifest.model_id(),
            manifest,
            context_length: gguf.context_length()?,
            tokenizer: Arc::new(Tokenizer::from_gguf(gguf)?),
            template: template.map(Arc::new),
        })
    }

    /// Bounds for jobs.
    #[must_use]
    pub fn job_limits(&self) -> JobLimits {
        JobLimits { vocab_size: self.tokenizer.vocab_size(), context_length: self.context_length }
    }

    /// The prompt of a chat: the template's text. Special tokens are not read from what the messages say.
    ///
    /// # Errors
    /// [`PromptError`].
    pub fn chat_prompt(&self, messages: &[Message]) -> Result<Vec<TokenId>, PromptError> {
        let template = self.template.as_ref().ok_or(PromptError::NoTemplate)?;
        let messages: Vec<ChatMessage> = messages
            .iter()
            .map(|m| ChatMessage { role: m.role.template_name().into(), content: m.content.clone() })
            .collect();
        chat_tokens(&self.tokenizer, template, &messages, &Limits::default())
            .map_err(|e| PromptError::Template(e.to_string()))
    }

    /// The prompt of a completion. Special tokens are not read from the text.
    #[must_use]
    pub fn text_prompt(&self, text: &str) -> Vec<TokenId> {
        self.tokenizer.encode(text, true, false)
    }

    /// `canonical-1:0x..`: profile and model.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        format!("{}:{}", self.manifest.profile, self.model_id)
    }

    pub(crate) fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.aliases.iter().any(|alias| alias == name)
    }
}
