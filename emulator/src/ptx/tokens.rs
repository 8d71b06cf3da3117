//! The tokens of a text, read one after the other.

use super::lexer::Token;

/// The tokens that are left.
pub(super) struct Tokens<'a> {
    pub text: &'a str,
    pub tokens: &'a [(usize, Token<'a>)],
    pub at: usize,
}

impl<'a> Tokens<'a> {
    pub fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|(_, token)| *token)
    }

    pub fn peek_second(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at + 1).map(|(_, token)| *token)
    }

    pub fn next(&mut self) -> Result<Token<'a>, String> {
        let token = self.peek().ok_or("the text ends early")?;
        self.at += 1;
        Ok(token)
    }

    pub fn back(&mut self) {
        self.at -= 1;
    }

    pub fn skip(&mut self, count: usize) {
        self.at += count;
    }

    /// Where the next token begins.
    pub fn offset(&self) -> usize {
        self.tokens.get(self.at).map_or(self.text.len(), |(offset, _)| *offset)
    }

    /// Where the token before began.
    pub fn last_offset(&self) -> usize {
        self.tokens[self.at - 1].0
    }

    /// Skips the mark if it comes next.
    pub fn accept(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(found);
        found
    }

    pub fn expect(&mut self, mark: char) -> Result<(), String> {
        match self.next()? {
            Token::Mark(found) if found == mark => Ok(()),
            other => Err(format!("{other:?}, expected `{mark}`")),
        }
    }

    pub fn word(&mut self) -> Result<&'a str, String> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            other => Err(format!("{other:?}, expected a name")),
        }
    }

    pub fn number(&mut self) -> Result<u64, String> {
        match self.next()? {
            Token::Number(value) => Ok(value),
            other => Err(format!("{other:?}, expected a number")),
        }
    }

    pub fn size(&mut self) -> Result<usize, String> {
        usize::try_from(self.number()?).map_err(|error| error.to_string())
    }

    pub fn skip_section(&mut self) -> Result<(), String> {
        while self.next()? != Token::Mark('{') {}
        let mut depth = 1;
        while depth > 0 {
            match self.next()? {
                Token::Mark('{') => depth += 1,
                Token::Mark('}') => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }

    /// A piece of the text around the place that was read last.
    pub fn nearby(&self) -> String {
        let end = self.offset();
        let start = self.tokens[self.at.saturating_sub(8).min(self.tokens.len() - 1)].0;
        self.text[start.min(end)..end].split_whitespace().collect::<Vec<_>>().join(" ")
    }
}
