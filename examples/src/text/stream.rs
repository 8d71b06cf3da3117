//! Text that comes while it is generated.

use tokenizers::Tokenizer;

use crate::Failure;

/// Stands for bytes that are no character, or not yet one.
const INCOMPLETE: char = char::REPLACEMENT_CHARACTER;

/// Turns tokens into text, one after the other. Special tokens are left out. Text that a later token can change waits: the start of a
/// character, and tokens of single bytes (`<0xE2>`), which a tokenizer reads together.
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The last tokens. Those before them changed the text of these as they change it with the tokens that follow.
    ids: Vec<u32>,
    /// How many of them are there only because the text of a token depends on the one before.
    before: usize,
    /// The text of `ids` that was returned.
    shown: String,
}

impl<'a> TextStream<'a> {
    /// A text without tokens.
    pub fn new(tokenizer: &'a Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), before: 0, shown: String::new() }
    }

    /// The text that these tokens add to what was returned before.
    ///
    /// # Errors
    /// If the tokenizer cannot decode them.
    pub fn push(&mut self, ids: &[u32]) -> Result<String, Failure> {
        let mut added = String::new();
        for &id in ids {
            self.ids.push(id);
            if !self.waits(id) {
                added += &self.settled()?;
            }
        }
        Ok(added)
    }

    /// Leaves out what waits: the text begins after these tokens. Only the start of a character still waits for its end.
    ///
    /// # Errors
    /// If the tokenizer cannot decode the tokens.
    pub fn skip(&mut self) -> Result<(), Failure> {
        self.settled().map(|_| ())
    }

    /// The text that still waits. With the pieces before it, it is what the tokenizer makes of all tokens.
    ///
    /// # Errors
    /// If the tokenizer cannot decode the tokens.
    pub fn finish(self) -> Result<String, Failure> {
        let text = self.tokenizer.decode(&self.ids, true)?;
        // Both are equal up to the text that waits, unless tokens after `skip` changed what it left out.
        let same = text.char_indices().zip(self.shown.chars()).take_while(|((_, a), b)| a == b);
        let shown = same.last().map_or(0, |((at, a), _)| at + a.len_utf8());
        Ok(text[shown..].into())
    }

    /// The text of all tokens without an incomplete character at its end, as far as it was not returned.
    fn settled(&mut self) -> Result<String, Failure> {
        let text = self.tokenizer.decode(&self.ids, true)?;
        let settled = text.trim_end_matches(INCOMPLETE);
        let Some(added) = settled.strip_prefix(&self.shown).filter(|added| !added.is_empty()) else {
            return Ok(String::new());
        };
        let added = added.to_owned();
        if settled.len() < text.len() {
            self.shown = settled.into();
        } else {
            self.ids.drain(..self.before);
            self.before = self.ids.len();
            self.shown = self.tokenizer.decode(&self.ids, true)?;
        }
        Ok(added)
    }

    /// Whether a token does not end what waits: a special token, which has no text, and one byte of a character, `<0x00>` to `<0xFF>`.
    fn waits(&self, id: u32) -> bool {
        let Some(token) = self.tokenizer.id_to_token(id) else { return false };
        let digits = token.strip_prefix("<0x").and_then(|token| token.strip_suffix('>'));
        let is_byte = digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok());
        is_byte || self.tokenizer.get_added_vocabulary().is_special_token(&token)
    }
}
