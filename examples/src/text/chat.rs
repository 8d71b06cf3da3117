//! The chat template of a checkpoint: how it writes the turns of a conversation.

use std::collections::BTreeMap;
use std::path::Path;

use burn_deepspeed::ConfigError;
use burn_deepspeed::config::read_json;
use burn_deepspeed::fields::Fields;
use burn_deepspeed::load::Metadata;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{
    AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior, context, escape_formatter,
};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::{Failure, ModelFiles, tokenizer};

/// A turn of a conversation.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Message<'a> {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: &'a str,
    /// What is said.
    pub content: &'a str,
}

/// The chat template of a checkpoint.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Special tokens of the tokenizer under the names that a template knows, such as `bos_token`.
    tokens: BTreeMap<&'static str, String>,
    /// The file that it comes from.
    file: String,
}

impl ChatTemplate {
    /// The template of a GGUF file, `tokenizer.chat_template`, or of a folder: `chat_template.jinja`, or `chat_template` in
    /// `chat_template.json` or `tokenizer_config.json`. Of several named templates it is `default`.
    ///
    /// # Errors
    /// If there is none, or a file is damaged.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        Self::of(&ModelFiles::open(path)?)
    }

    /// The same for files that were opened.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn of(files: &ModelFiles) -> Result<Self, Failure> {
        let Some((file, source)) = source(files)? else {
            return Err(format!(
                "{} has no chat template, neither chat_template.jinja nor `chat_template` in tokenizer_config.json; \
                 give the prompt without --chat",
                files.path().display()
            )
            .into());
        };
        let tokens = tokenizer::named_tokens(files)?;
        let environment =
            environment(source).map_err(|cause| format!("cannot read the chat template of {file}: {cause}"))?;
        Ok(Self { environment, tokens, file })
    }

    /// The conversation as text, with the beginning of the model's next turn. Special tokens are in it.
    ///
    /// # Errors
    /// If the template refuses the conversation, as one that knows no `system` does, or has a mistake.
    pub fn render(&self, messages: &[Message<'_>]) -> Result<String, Failure> {
        // `transformers` gives every template the last two, as none.
        let given = context! {
            messages => Serde(messages),
            add_generation_prompt => true,
            tools => (),
            documents => (),
            ..Serde(&self.tokens)
        };
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(given));
        rendered.map_err(|cause| format!("the chat template of {} fails: {cause}", self.file).into())
    }
}

/// The template in its environment.
const NAME: &str = "chat_template";

/// The file of the template, and its text.
fn source(files: &ModelFiles) -> Result<Option<(String, String)>, Failure> {
    let name = |file: &Path| file.display().to_string();
    let folder = match files {
        ModelFiles::Folder(folder) => folder,
        ModelFiles::Gguf(gguf) => {
            return match gguf.value("tokenizer.chat_template") {
                None => Ok(None),
                Some(Metadata::Text(text)) => Ok(Some((name(gguf.path()), text.clone()))),
                Some(other) => Err(format!("`tokenizer.chat_template` is {other}, and a text is expected").into()),
            };
        }
    };
    let file = folder.join("chat_template.jinja");
    if file.exists() {
        let text = std::fs::read_to_string(&file).map_err(|cause| format!("cannot read {}: {cause}", name(&file)))?;
        return Ok(Some((name(&file), text)));
    }
    for file in ["chat_template.json", "tokenizer_config.json"].map(|file| folder.join(file)) {
        if !file.exists() {
            continue;
        }
        let record = read_json(&file)?;
        let template = Fields::new(&record).and_then(|fields| of_record(&fields));
        if let Some(text) = template.map_err(|error| error.in_file(&file))? {
            return Ok(Some((name(&file), text.into())));
        }
    }
    Ok(None)
}

/// `chat_template` of a record: a text, or a list of named ones.
fn of_record<'a>(fields: &Fields<'a>) -> Result<Option<&'a str>, ConfigError> {
    const KEY: &str = "chat_template";
    if !fields.value(KEY).is_some_and(serde_json::Value::is_array) {
        return fields.text(&[KEY]);
    }
    for entry in fields.list(KEY)?.unwrap_or_default() {
        let entry = Fields::nested(KEY, entry)?;
        if entry.text(&["name"])? == Some("default") {
            return entry.text(&["template"]);
        }
    }
    Err(fields.unsupported(KEY, "a list with a template of the name \"default\""))
}

/// What `transformers` gives its templates: blocks without the white space around them, methods of Python's values, and its functions.
fn environment(source: String) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.set_formatter(as_python_prints);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: String| {
        jiff::fmt::strtime::format(&format, &jiff::ZonedDateTime::now())
            .map_err(|cause| Error::new(ErrorKind::InvalidOperation, cause.to_string()))
    });
    environment.add_filter("tojson", json);
    environment.add_template_owned(NAME, without_generation_blocks(&source))?;
    Ok(environment)
}

/// Writes a value as Python prints it: minijinja writes `true` and `none`.
fn as_python_prints(output: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let text = match value.kind() {
        ValueKind::Bool => {
            if value.is_true() {
                "True"
            } else {
                "False"
            }
        }
        ValueKind::None => "None",
        _ => return escape_formatter(output, state, value),
    };
    output.write_str(text).map_err(Error::from)
}

/// The template without the blocks that mark what the model wrote, `{% generation %}` and `{% endgeneration %}`. They are for training.
fn without_generation_blocks(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (before, block) = (&rest[..start], &rest[start..start + length]);
        text += before;
        // The signs next to the brackets trim white space, so they stay.
        match block.trim_matches(|sign: char| "{%-+".contains(sign) || sign.is_whitespace()) {
            "generation" => text += &block.replace("generation", "if true"),
            "endgeneration" => text += &block.replace("endgeneration", "endif"),
            _ => text += block,
        }
        rest = &rest[start + length..];
    }
    text + rest
}

/// A value as Python's `json.dumps` writes it.
fn json(value: Value, arguments: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    let _: Option<bool> = arguments.get("ensure_ascii")?;
    arguments.assert_all_used()?;
    let mut written = Vec::new();
    let result = match indent {
        Some(indent) => {
            let spaces = vec![b' '; indent.min(64)];
            value.serialize(&mut Serializer::with_formatter(&mut written, PrettyFormatter::with_indent(&spaces)))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut written, Spaced)),
    };
    let failed = |cause: String| Error::new(ErrorKind::InvalidOperation, cause);
    result.map_err(|cause| failed(cause.to_string()))?;
    String::from_utf8(written).map_err(|cause| failed(cause.to_string()))
}

/// A space after each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
