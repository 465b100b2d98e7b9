//! Bytes to tokens (policy model 5.1).
//!
//! Only space and tab separate tokens. Word operators exist directly after a label and nowhere else, so `contains contains "x"` is a
//! label named `contains` and an operator. `has(`, `all(` and `global(` are keywords only with their parenthesis attached.

use super::{MAX_LABEL, SelectorError};

/// A piece of the text; slices borrow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    Label(&'a str),
    Literal(&'a str),
    Has(&'a str),
    All,
    Global,
    Open,
    Close,
    OpenSet,
    CloseSet,
    Comma,
    Not,
    And,
    Or,
    Equal,
    NotEqual,
    Contains,
    StartsWith,
    EndsWith,
    In,
    NotIn,
}

/// Returns whether `byte` may be part of a label name.
pub(super) fn is_label_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'/' | b'-')
}

/// Returns the tokens of `text`, each with the byte where it begins.
pub(super) fn tokenize(text: &str) -> Result<Vec<(usize, Token<'_>)>, SelectorError> {
    let mut scanner = Scanner { text, at: 0 };
    let mut tokens = Vec::new();
    loop {
        scanner.skip_blanks();
        if scanner.rest().is_empty() {
            return Ok(tokens);
        }
        let after_label = matches!(tokens.last(), Some((_, Token::Label(_))));
        let start = scanner.at;
        let token = if after_label { scanner.operator()? } else { scanner.token()? };
        tokens.push((start, token));
    }
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_blanks(&mut self) {
        let blanks = self.rest().bytes().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        self.at += blanks;
    }

    fn eat(&mut self, expected: &str) -> bool {
        let found = self.rest().starts_with(expected);
        if found {
            self.at += expected.len();
        }
        found
    }

    /// Takes `word` when what follows it is not a label byte.
    fn eat_word(&mut self, word: &str) -> bool {
        let follows = self.rest().as_bytes().get(word.len());
        !follows.is_some_and(|&byte| is_label_byte(byte)) && self.eat(word)
    }

    fn fail<T>(&self, reason: impl Into<String>) -> Result<T, SelectorError> {
        Err(SelectorError { position: self.at, reason: reason.into() })
    }

    fn token(&mut self) -> Result<Token<'a>, SelectorError> {
        const FIXED: [(&str, Token<'static>); 10] = [
            ("==", Token::Equal),
            ("!=", Token::NotEqual),
            ("!", Token::Not),
            ("&&", Token::And),
            ("||", Token::Or),
            ("(", Token::Open),
            (")", Token::Close),
            ("{", Token::OpenSet),
            ("}", Token::CloseSet),
            (",", Token::Comma),
        ];
        for (spelling, token) in FIXED {
            if self.eat(spelling) {
                return Ok(token);
            }
        }
        match self.rest().as_bytes()[0] {
            quote @ (b'"' | b'\'') => self.literal(char::from(quote)),
            b'=' => self.fail("single '='; write '=='"),
            b'&' => self.fail("single '&'; write '&&'"),
            b'|' => self.fail("single '|'; write '||'"),
            b'\n' | b'\r' => self.fail("line break; a selector is one line, only spaces and tabs separate"),
            byte if is_label_byte(byte) => self.word(),
            _ => {
                let found = self.rest().chars().next().unwrap_or_default();
                self.fail(format!("unexpected character {found:?}"))
            }
        }
    }

    fn literal(&mut self, quote: char) -> Result<Token<'a>, SelectorError> {
        let body = &self.rest()[1..];
        match body.find(quote) {
            Some(length) => {
                self.at += length + 2;
                Ok(Token::Literal(&body[..length]))
            }
            None => self.fail(format!("string literal is not closed; expected another {quote}")),
        }
    }

    fn word(&mut self) -> Result<Token<'a>, SelectorError> {
        if self.eat("has(") {
            self.skip_blanks();
            let label = self.label()?;
            self.close("has(")?;
            return Ok(Token::Has(label));
        }
        for (spelling, token) in [("all(", Token::All), ("global(", Token::Global)] {
            if self.eat(spelling) {
                self.close(spelling)?;
                return Ok(token);
            }
        }
        Ok(Token::Label(self.label()?))
    }

    fn close(&mut self, function: &str) -> Result<(), SelectorError> {
        self.skip_blanks();
        if self.eat(")") { Ok(()) } else { self.fail(format!("expected ')' to close '{function}'")) }
    }

    fn label(&mut self) -> Result<&'a str, SelectorError> {
        let length = self.rest().bytes().take_while(|&byte| is_label_byte(byte)).count();
        if length == 0 {
            return self.fail("expected a label name");
        }
        if length > MAX_LABEL {
            return self.fail(format!("label name of {length} characters; at most {MAX_LABEL} are allowed"));
        }
        let label = &self.rest()[..length];
        self.at += length;
        Ok(label)
    }

    fn operator(&mut self) -> Result<Token<'a>, SelectorError> {
        if self.eat("==") {
            return Ok(Token::Equal);
        }
        if self.eat("!=") {
            return Ok(Token::NotEqual);
        }
        if self.eat_word("contains") {
            return Ok(Token::Contains);
        }
        if self.eat_word("in") {
            return Ok(Token::In);
        }
        if self.rest().starts_with('=') {
            return self.fail("single '='; write '=='");
        }
        let pairs = [
            ("starts", "with", Token::StartsWith),
            ("ends", "with", Token::EndsWith),
            ("not", "in", Token::NotIn),
        ];
        for (first, second, token) in pairs {
            let start = self.at;
            if self.eat(first) {
                self.skip_blanks();
                if self.eat_word(second) {
                    return Ok(token);
                }
                self.at = start;
            }
        }
        self.fail(
            "expected an operator after the label: ==, !=, in, not in, contains, starts with or ends with",
        )
    }
}
