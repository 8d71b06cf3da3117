//! PTX text to tokens. PTX ISA, "Syntax".

/// A part of the text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Token<'a> {
    /// A directive, an opcode with its modifiers, or a name: `.reg`, `ld.global.f32`, `%r1`.
    Word(&'a str),
    /// The bits of a constant; negative ones in two's complement.
    Number(u64),
    /// A string without its quotes.
    Text(&'a str),
    /// Anything else: one character.
    Mark(char),
}

/// The tokens of a text, each with its offset. Comments and white space are left out.
///
/// # Errors
/// What could not be read.
pub(super) fn tokens(text: &str) -> Result<Vec<(usize, Token<'_>)>, String> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let rest = &text[at..];
        let (token, length) = match byte {
            _ if byte.is_ascii_whitespace() => (None, 1),
            b'/' if rest.starts_with("//") => (None, rest.find('\n').unwrap_or(rest.len())),
            b'/' if rest.starts_with("/*") => (None, rest.find("*/").map_or(rest.len(), |end| end + 2)),
            b'"' => {
                let end = rest[1..].find('"').ok_or("a string does not end")?;
                (Some(Token::Text(&rest[1..1 + end])), end + 2)
            }
            b'0'..=b'9' => {
                let length = word_length(rest);
                let text = &rest[..length];
                // The version of the language has a dot; floats have their bits.
                (Some(if text.contains('.') { Token::Word(text) } else { Token::Number(number(text)?) }), length)
            }
            b'-' if bytes.get(at + 1).is_some_and(u8::is_ascii_digit) => {
                let length = word_length(&rest[1..]);
                (Some(Token::Number(number(&rest[1..1 + length])?.wrapping_neg())), 1 + length)
            }
            b'.' | b'%' | b'$' | b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                let length = word_length(rest);
                (Some(Token::Word(&rest[..length])), length)
            }
            _ if byte.is_ascii() => (Some(Token::Mark(byte as char)), 1),
            _ => return Err(format!("byte {byte:#x} is not ASCII")),
        };
        tokens.extend(token.map(|token| (at, token)));
        at += length;
    }
    Ok(tokens)
}

/// Bytes of the word at the start of `text`. Two colons belong to it (`shared::cta`), a single one ends a label.
fn word_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let mut length = 0;
    while let Some(byte) = bytes.get(length) {
        length += match byte {
            b'.' | b'%' | b'$' | b'_' => 1,
            _ if byte.is_ascii_alphanumeric() => 1,
            b':' if bytes.get(length + 1) == Some(&b':') => 2,
            _ => break,
        };
    }
    length
}

/// The bits of a constant: decimal, hexadecimal, octal, or the bits of a float (`0f3F800000`, `0d3FF0000000000000`).
fn number(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches('U');
    let parsed = match digits.as_bytes() {
        [b'0', b'x' | b'X' | b'f' | b'F' | b'd' | b'D', ..] => u64::from_str_radix(&digits[2..], 16),
        [b'0', b'b' | b'B', ..] => u64::from_str_radix(&digits[2..], 2),
        [b'0', _, ..] => u64::from_str_radix(&digits[1..], 8),
        _ => digits.parse(),
    };
    parsed.map_err(|error| format!("the constant `{text}` cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_and_marks_are_told_apart() {
        let text = "@!%p1 ld.shared::cta.b32 %r1, [%rd2+-8]; // done\n$L1: mov.f32 %f1, 0f3F800000; /* no */ \"a b\" 0x1FU 017";
        let found: Vec<_> = tokens(text).unwrap().into_iter().map(|(_, token)| token).collect();
        use Token::*;
        let expected = [
            Mark('@'),
            Mark('!'),
            Word("%p1"),
            Word("ld.shared::cta.b32"),
            Word("%r1"),
            Mark(','),
            Mark('['),
            Word("%rd2"),
            Mark('+'),
            Number(8u64.wrapping_neg()),
            Mark(']'),
            Mark(';'),
            Word("$L1"),
            Mark(':'),
            Word("mov.f32"),
            Word("%f1"),
            Mark(','),
            Number(0x3f80_0000),
            Mark(';'),
            Text("a b"),
            Number(31),
            Number(15),
        ]; // in the order of the text
        assert_eq!(found, expected);
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        assert_eq!(tokens("\"open").unwrap_err(), "a string does not end");
        assert!(tokens("0xZZ").unwrap_err().contains("`0xZZ`"));
        assert!(tokens("é").unwrap_err().contains("not ASCII"));
    }
}
