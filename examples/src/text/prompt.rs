//! A model and a prompt on the command line.

use std::path::{Path, PathBuf};

use clap::Args;
use tokenizers::Tokenizer;

use super::{ChatTemplate, Message, TextStream};
use crate::{Failure, ModelFiles, tokenizer};

/// A model and a prompt on the command line.
#[derive(Debug, Args)]
pub struct Source {
    /// Folder with config.json, model.safetensors and, for text, tokenizer.json; or a GGUF file. Default: the tiny adder.
    #[arg(long)]
    model: Option<PathBuf>,
    /// Text to continue.
    #[arg(long, conflicts_with = "prompt_ids")]
    prompt: Option<String>,
    /// Token ids to continue, as in 5,9,2.
    #[arg(long, value_delimiter = ',')]
    prompt_ids: Option<Vec<u32>>,
    /// Write the prompt as a user's turn in the checkpoint's chat template.
    #[arg(long, requires = "prompt")]
    chat: bool,
    /// Text of a system turn before it.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,
    /// Print the prompt before what is generated. Without a model and a prompt this is always so.
    #[arg(long)]
    echo: bool,
}

/// The tokens to continue, and the tokenizer of the model.
pub struct Prompt {
    /// Token ids; at least one.
    pub ids: Vec<u32>,
    /// `None` if the model has none.
    pub tokenizer: Option<Tokenizer>,
}

impl Prompt {
    /// The continuation as text, with the prompt before it under `echo`; ids without a tokenizer.
    pub fn text(&self, generated: &[u32], echo: bool) -> Result<String, Failure> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(self.list(generated, echo)) };
        let mut stream = TextStream::new(tokenizer);
        let before = stream.push(&self.ids)?;
        if !echo {
            stream.skip()?;
        }
        let pieces = [if echo { before } else { String::new() }, stream.push(generated)?, stream.finish()?];
        Ok(pieces.concat())
    }

    /// The continuation as ids, with those of the prompt before it under `echo`.
    pub fn list(&self, generated: &[u32], echo: bool) -> String {
        list(&[if echo { &self.ids[..] } else { &[] }, generated].concat())
    }
}

/// Ids separated by commas.
pub fn list(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

impl Source {
    /// This text, for the model in this folder.
    pub fn text(model: PathBuf, prompt: impl Into<String>) -> Self {
        Self {
            model: Some(model),
            prompt: Some(prompt.into()),
            prompt_ids: None,
            chat: false,
            system: None,
            echo: true,
        }
    }

    /// Whether the prompt is printed before what is generated: if it was asked for, and if neither a model nor a prompt was given.
    pub fn echo(&self) -> bool {
        self.echo || self.model.is_none() && self.prompt.is_none() && self.prompt_ids.is_none()
    }

    /// Opens the files of the model. Default: those of the adder, which `train-adder` wrote.
    pub fn files(&self) -> Result<ModelFiles, Failure> {
        let adder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/adder"));
        Ok(ModelFiles::open(self.model.as_deref().unwrap_or(adder))?)
    }

    /// Reads the prompt with the tokenizer of the model; the adder has its own.
    pub fn read(&self, files: &ModelFiles) -> Result<Prompt, Failure> {
        let tokenizer = tokenizer::of(files)?;
        let ids = match (&self.prompt_ids, &self.prompt, &tokenizer) {
            (Some(ids), _, _) => ids.clone(),
            (None, prompt, Some(tokenizer)) => {
                let prompt = match (prompt, &self.model) {
                    (Some(prompt), _) => prompt.as_str(),
                    (None, None) => "17+25=",
                    (None, Some(_)) => return Err("no prompt; give --prompt TEXT or --prompt-ids 5,9,2".into()),
                };
                let chat = self.chat.then(|| self.conversation(files, prompt)).transpose()?;
                // A chat template writes the special tokens itself.
                let encoding = tokenizer.encode(chat.as_deref().unwrap_or(prompt), chat.is_none());
                encoding.map_err(|cause| format!("the tokenizer cannot read {prompt:?}: {cause}"))?.get_ids().to_vec()
            }
            (None, Some(_), None) => {
                return Err(format!("{} has no tokenizer; give --prompt-ids 5,9,2", files.path().display()).into());
            }
            (None, None, None) => return Err("no prompt; give --prompt-ids 5,9,2".into()),
        };
        match ids.is_empty() {
            true => Err("the prompt has no tokens; give at least one".into()),
            false => Ok(Prompt { ids, tokenizer }),
        }
    }

    /// The prompt as a turn of the user in the chat template of the model.
    fn conversation(&self, files: &ModelFiles, prompt: &str) -> Result<String, Failure> {
        let system = self.system.as_deref().map(|content| Message { role: "system", content });
        let messages: Vec<_> = system.into_iter().chain([Message { role: "user", content: prompt }]).collect();
        ChatTemplate::of(files)?.render(&messages)
    }
}
