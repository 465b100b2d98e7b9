//! Tokens to an expression (policy model 5.2): `||` over `&&` over `!` over primaries.

use std::collections::BTreeSet;

use super::ast::Node;
use super::tokenizer::{Token, tokenize};
use super::{MAX_NESTING, SelectorError};

/// Parses `text`; blank means `all()`.
pub(super) fn parse(text: &str) -> Result<Node, SelectorError> {
    let tokens = tokenize(text)?;
    if tokens.is_empty() {
        return Ok(Node::All);
    }
    let mut parser = Parser { tokens, next: 0, end: text.len(), depth: 0 };
    let node = parser.expression()?;
    match parser.peek() {
        None => Ok(node),
        Some(_) => parser.fail("expected '&&', '||' or the end"),
    }
}

struct Parser<'a> {
    tokens: Vec<(usize, Token<'a>)>,
    next: usize,
    end: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.next).map(|&(_, token)| token)
    }

    fn take(&mut self) -> Option<Token<'a>> {
        let token = self.peek();
        self.next += usize::from(token.is_some());
        token
    }

    fn eat(&mut self, expected: Token<'_>) -> bool {
        let found = self.peek() == Some(expected);
        self.next += usize::from(found);
        found
    }

    fn fail<T>(&self, reason: impl Into<String>) -> Result<T, SelectorError> {
        let position = self.tokens.get(self.next).map_or(self.end, |&(position, _)| position);
        Err(SelectorError { position, reason: reason.into() })
    }

    fn expression(&mut self) -> Result<Node, SelectorError> {
        let mut parts = vec![self.conjunct()?];
        while self.eat(Token::Or) {
            parts.push(self.conjunct()?);
        }
        Ok(one_or(parts, Node::Or))
    }

    fn conjunct(&mut self) -> Result<Node, SelectorError> {
        let mut parts = vec![self.operation()?];
        while self.eat(Token::And) {
            parts.push(self.operation()?);
        }
        Ok(one_or(parts, Node::And))
    }

    fn operation(&mut self) -> Result<Node, SelectorError> {
        let mut negative = false;
        while self.eat(Token::Not) {
            negative = !negative;
        }
        let primary = self.primary()?;
        Ok(if negative { primary.negated() } else { primary })
    }

    fn primary(&mut self) -> Result<Node, SelectorError> {
        match self.peek() {
            Some(Token::Open) => self.parenthesis(),
            Some(Token::Has(label)) => {
                self.next += 1;
                Ok(Node::Has(label.to_owned()))
            }
            Some(Token::All) => {
                self.next += 1;
                Ok(Node::All)
            }
            Some(Token::Global) => {
                self.next += 1;
                Ok(Node::Global)
            }
            Some(Token::Label(label)) => {
                self.next += 1;
                self.comparison(label.to_owned())
            }
            Some(Token::Literal(_)) => {
                self.fail("a comparison begins with a label, not with a string literal")
            }
            _ => self.fail("expected a label, has(…), all(), global(), '!' or '('"),
        }
    }

    fn parenthesis(&mut self) -> Result<Node, SelectorError> {
        if self.depth == MAX_NESTING {
            return self.fail(format!("parentheses nest deeper than {MAX_NESTING}"));
        }
        self.next += 1;
        self.depth += 1;
        let node = self.expression()?;
        self.depth -= 1;
        if self.eat(Token::Close) { Ok(node) } else { self.fail("expected ')'") }
    }

    fn comparison(&mut self, key: String) -> Result<Node, SelectorError> {
        let build = match self.take() {
            Some(Token::In) => return Ok(Node::In(key, self.set()?)),
            Some(Token::NotIn) => return Ok(Node::NotIn(key, self.set()?)),
            Some(Token::Equal) => Node::Equal,
            Some(Token::NotEqual) => Node::NotEqual,
            Some(Token::Contains) => Node::Contains,
            Some(Token::StartsWith) => Node::StartsWith,
            Some(Token::EndsWith) => Node::EndsWith,
            _ => return self.fail(format!("expected an operator after label {key:?}")),
        };
        Ok(build(key, self.literal()?))
    }

    fn literal(&mut self) -> Result<String, SelectorError> {
        match self.peek() {
            Some(Token::Literal(value)) => {
                self.next += 1;
                Ok(value.to_owned())
            }
            _ => self.fail("expected a string literal in quotes"),
        }
    }

    fn set(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        if !self.eat(Token::OpenSet) {
            return self.fail("expected a set such as {\"a\", \"b\"}");
        }
        let mut values = BTreeSet::new();
        while !self.eat(Token::CloseSet) {
            values.insert(self.literal()?);
            if !self.eat(Token::Comma) && self.peek() != Some(Token::CloseSet) {
                return self.fail("expected ',' or '}' in the set");
            }
        }
        Ok(values)
    }
}

fn one_or(mut parts: Vec<Node>, join: fn(Vec<Node>) -> Node) -> Node {
    if parts.len() == 1 { parts.remove(0) } else { join(parts) }
}
