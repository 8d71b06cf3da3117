//! Text from a decoder: prompts, a model with its cache, the choice of the next token, and a check against other programs.

mod chat;
pub mod check;
mod continuation;
mod greedy;
mod model;
mod prompt;
mod sampling;
mod session;
mod stream;

pub use chat::{ChatTemplate, Message};
pub use continuation::continuation;
pub use greedy::greedy;
pub use model::{Model, Options, TextModel, open};
pub use prompt::{Prompt, Source, list};
pub use sampling::{Sampler, likeliest};
pub use session::{Batch, Session, TextSession};
pub use stream::TextStream;
