//! The gateway's second opinion: an engine in the process that starts the gateway, loaded when it is first needed.

use crate::{load, state};
use anyhow::Context;
use assay_engine::{LoadOptions, Model, Runner};
use assay_gateway::{Referee, Refereed, Sign};
use assay_types::{AuditTask, ModelId, ReceiptFile};
use assay_verify::audit::examine;
use assay_verify::likeness::compare;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// Replays with the model that the network serves, and keeps receipts of wrong answers for a court.
pub struct EngineReferee {
    model: PathBuf,
    model_id: ModelId,
    cache: load::CacheArgs,
    context_max: usize,
    /// Where receipts of wrong answers go.
    convictions: PathBuf,
    /// Takes them to court from there.
    prosecutor: Option<Arc<Notify>>,
    loaded: Mutex<Option<Arc<Model>>>,
}

/// A wrong answer, as it is kept.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Conviction {
    /// Index of the first wrong token; the number of tokens where only the end is wrong.
    pub first_wrong: u32,
    /// The answer and its signatures.
    pub file: ReceiptFile,
}

impl EngineReferee {
    /// For the model in the file `model`, whose hash is known. Wrong answers go to the folder `convictions`.
    pub fn new(
        model: &Path,
        model_id: ModelId,
        cache: load::CacheArgs,
        context_max: usize,
        convictions: PathBuf,
    ) -> Self {
        Self {
            model: model.into(),
            model_id,
            cache,
            context_max,
            convictions,
            prosecutor: None,
            loaded: Mutex::default(),
        }
    }

    /// With somebody to wake who takes wrong answers to court.
    pub fn with_prosecutor(self, prosecutor: Option<Arc<Notify>>) -> Self {
        Self { prosecutor, ..self }
    }

    fn model(&self) -> anyhow::Result<Arc<Model>> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = &*loaded {
            return Ok(Arc::clone(model));
        }
        let name = self.model.to_str().context("the model's path is no text")?;
        let model = load::open(name)?.load(&self.cache, LoadOptions { context_max: self.context_max })?;
        Ok(Arc::clone(loaded.insert(model)))
    }

    fn keep(&self, file: &ReceiptFile, first_wrong: u32) -> anyhow::Result<PathBuf> {
        std::fs::create_dir_all(&self.convictions)?;
        let path = self.convictions.join(format!("{}.json", file.id));
        state::write_json(&path, &Conviction { first_wrong, file: file.clone() })?;
        Ok(path)
    }
}

impl std::fmt::Debug for EngineReferee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineReferee").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Referee for EngineReferee {
    fn replay(&self, task: &AuditTask) -> Result<Refereed, String> {
        let model = self.model().map_err(|error| crate::one_line(&error))?;
        let examined = examine(task, &model, self.model_id, &mut Runner::new(1)).map_err(|error| error.to_string())?;
        Ok(Refereed { verdict: examined.verdict, leaves: examined.leaves })
    }

    fn compare(&self, task: &AuditTask) -> Result<Vec<Sign>, String> {
        let model = self.model().map_err(|error| crate::one_line(&error))?;
        compare(&task.job, &task.output, &model, self.model_id, &mut Runner::new(1)).map_err(|error| error.to_string())
    }

    fn on_conviction(&self, file: &ReceiptFile, first_wrong: u32) {
        match self.keep(file, first_wrong) {
            Ok(path) => {
                let disputed = self.prosecutor.is_some();
                tracing::warn!(receipt = %file.id, path = %path.display(), disputed, "the proof of a wrong answer is kept");
                if let Some(prosecutor) = &self.prosecutor {
                    prosecutor.notify_one();
                }
            }
            Err(error) => tracing::error!(receipt = %file.id, %error, "the proof of a wrong answer could not be kept"),
        }
    }
}
