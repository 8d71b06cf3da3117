//! What is continued, and by which model.
//!
//! Whoever includes this file also has the type `Failure` beside it.

use std::path::{Path, PathBuf};

use clap::Args;
use tokenizers::Tokenizer;

use super::Failure;

/// A model and a prompt on the command line.
#[derive(Args)]
pub struct Source {
    /// Folder with config.json, model.safetensors and, for text, tokenizer.json. Default: the tiny adder.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Text to continue.
    #[arg(long, conflicts_with = "prompt_ids")]
    prompt: Option<String>,
    /// Token ids to continue, as in 5,9,2.
    #[arg(long, value_delimiter = ',')]
    prompt_ids: Option<Vec<u32>>,
}

/// What is continued, and what makes text of it.
pub struct Prompt {
    pub ids: Vec<u32>,
    pub tokenizer: Option<Tokenizer>,
}

impl Source {
    /// The folder of the model: that of the adder that `train_adder` made, if none is given.
    pub fn folder(&self) -> PathBuf {
        let adder = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/adder"));
        self.model.clone().unwrap_or_else(adder)
    }

    /// Reads the prompt with the tokenizer of the folder; the adder has one of its own.
    pub fn read(&self, folder: &Path) -> Result<Prompt, Failure> {
        let tokenizer = folder.join("tokenizer.json");
        let tokenizer = match tokenizer.exists() {
            true => Some(Tokenizer::from_file(&tokenizer)?),
            false => None,
        };
        let ids = match (&self.prompt_ids, &self.prompt, &tokenizer) {
            (Some(ids), _, _) => ids.clone(),
            (None, prompt, Some(tokenizer)) => {
                let prompt = match (prompt, &self.model) {
                    (Some(prompt), _) => prompt.as_str(),
                    (None, None) => "17+25=",
                    (None, Some(_)) => return Err("no prompt; give --prompt TEXT or --prompt-ids 5,9,2".into()),
                };
                let encoding = tokenizer.encode(prompt, true);
                encoding.map_err(|cause| format!("the tokenizer cannot read {prompt:?}: {cause}"))?.get_ids().to_vec()
            }
            (None, Some(_), None) => {
                return Err(format!("{} has no tokenizer.json; give --prompt-ids 5,9,2", folder.display()).into());
            }
            (None, None, None) => return Err("no prompt; give --prompt-ids 5,9,2".into()),
        };
        match ids.is_empty() {
            true => Err("the prompt has no tokens; give at least one".into()),
            false => Ok(Prompt { ids, tokenizer }),
        }
    }
}
