//! Rewrites a chat template so that its memory is bounded. Fuel alone does not do that: a variable that is appended to
//! itself doubles with every instruction.
//!
//! Every operand from which an operation makes something larger, and every value that goes into another, is wrapped in a
//! call that charges its size to a budget and refuses deep nesting ([`crate::template_env`]). What is left are operations
//! whose result is no larger than a few times their charged operands. The rewritten source is parsed again, and refused
//! if a place is not wrapped: that the bound holds does not rest on the rewriting.

use crate::template_env::{CHARGE, NUMBER, RESERVED, REVERSED};
use minijinja::{
    machinery::{
        Token,
        ast::{BinOpKind, Call, CallArg, CompareOpKind, Expr, Macro, Slice, Stmt, UnaryOpKind},
        parse, tokenize,
    },
    syntax::SyntaxConfig,
};

/// Tokens of one `{{ }}` or `{% %}`: bounds the depth of expressions, which the compiler walks recursively.
const BLOCK_TOKENS_MAX: usize = 1_000;
/// `elif` and `else` of a template: each nests the rest of its condition.
const BRANCHES_MAX: usize = 500;

/// A template that can be compiled.
pub(crate) struct Guarded {
    pub source: String,
    /// Longest literal text that one instruction may write into a capture, which no charge covers.
    pub captured_raw_len_max: u64,
}

/// Checks and rewrites `source`.
pub(crate) fn rewrite(source: &str, syntax: &SyntaxConfig) -> Result<Guarded, String> {
    if let Some(name) = RESERVED.iter().find(|name| source.contains(*name)) {
        return Err(format!("the name {name} is reserved"));
    }
    let tokens = Tokens::new(source, syntax)?;
    let first = walk(source, syntax, Some(&tokens))?;
    let mut insertions = first.insertions;
    insertions.sort_by_key(|&(at, _)| at);
    let mut guarded = String::with_capacity(source.len() * 2);
    let mut from = 0;
    for (at, insertion) in insertions {
        guarded.push_str(source.get(from..at).ok_or("it cannot be guarded")?);
        match insertion {
            Insertion::Open(function) => guarded.extend([function, "("]),
            Insertion::Close => guarded.push(')'),
            Insertion::Cut(end) => {
                from = end;
                continue;
            }
        }
        from = at;
    }
    guarded.push_str(&source[from..]);
    let second = walk(&guarded, syntax, None)?;
    if !second.insertions.is_empty() {
        return Err("it cannot be guarded".to_owned());
    }
    Ok(Guarded { source: guarded, captured_raw_len_max: first.captured_raw_len_max })
}

/// Where tokens start, to find the parentheses around an expression, which the syntax tree does not have.
struct Tokens {
    starts: Vec<usize>,
    /// For each token that is an opening parenthesis, where the closing one starts.
    closes: Vec<Option<usize>>,
    /// Where opening brackets start.
    brackets: Vec<usize>,
}

impl Tokens {
    /// Also bounds what the parser and compiler recurse over; the tokenizer does not recurse.
    fn new(source: &str, syntax: &SyntaxConfig) -> Result<Self, String> {
        let (mut in_block, mut branches) = (0, 0);
        let (mut starts, mut closes, mut open, mut brackets) = (vec![], vec![], vec![], vec![]);
        for token in tokenize(source, false, syntax.clone()) {
            let (token, span) = token.map_err(|error| error.to_string())?;
            match token {
                Token::VariableStart | Token::BlockStart | Token::TemplateData(_) => in_block = 0,
                Token::Ident("elif" | "else") => branches += 1,
                _ => in_block += 1,
            }
            if in_block > BLOCK_TOKENS_MAX {
                return Err(format!("more than {BLOCK_TOKENS_MAX} tokens in one block"));
            }
            if branches > BRANCHES_MAX {
                return Err(format!("more than {BRANCHES_MAX} branches"));
            }
            match token {
                Token::ParenOpen => open.push(starts.len()),
                Token::BracketOpen => brackets.push(span.start_offset as usize),
                Token::ParenClose => {
                    if let Some(at) = open.pop() {
                        closes[at] = Some(span.start_offset as usize);
                    }
                }
                _ => (),
            }
            starts.push(span.start_offset as usize);
            closes.push(None);
        }
        Ok(Self { starts, closes, brackets })
    }

    /// The first bracket that opens at `from` or later, and before `to`.
    fn bracket_between(&self, from: usize, to: usize) -> Option<usize> {
        let at = self.brackets.partition_point(|&bracket| bracket < from);
        self.brackets.get(at).copied().filter(|&bracket| bracket < to)
    }

    /// First byte of `expr`. The parser's spans of operators that follow their operand start at the operator or at the
    /// token before the expression.
    fn start(&self, expr: &Expr<'_>) -> usize {
        let own = expr.span().start_offset as usize;
        let (first, limit) = match expr {
            Expr::Slice(e) => (&e.expr, own),
            Expr::GetAttr(e) => (&e.expr, own),
            Expr::GetItem(e) => (&e.expr, own),
            Expr::Call(e) => (&e.expr, own),
            Expr::Test(e) => (&e.expr, own),
            Expr::Filter(e) => match &e.expr {
                Some(input) => (input, own),
                None => return own,
            },
            Expr::BinOp(e) => (&e.left, self.start(&e.right)),
            Expr::Compare(e) => (&e.expr, e.ops.first().map_or(own, |o| self.start(&o.expr))),
            Expr::IfExpr(e) => (&e.true_expr, self.start(&e.test_expr)),
            Expr::UnaryOp(e) => return own.min(self.start(&e.expr)),
            Expr::Var(_) | Expr::Const(_) | Expr::List(_) | Expr::Tuple(_) | Expr::Map(_) => return own,
        };
        self.outside_parens(self.start(first), limit)
    }

    /// Moves `start` before the parentheses that open there and close before `limit`.
    fn outside_parens(&self, mut start: usize, limit: usize) -> usize {
        while let Ok(at) = self.starts.binary_search(&start) {
            let Some(before) = at.checked_sub(1) else { break };
            if self.closes[before].is_none_or(|close| close >= limit) {
                break;
            }
            start = self.starts[before];
        }
        start
    }
}

/// One pass over `source`; without `tokens`, places to insert at are counted, not located.
fn walk<'a>(source: &str, syntax: &SyntaxConfig, tokens: Option<&'a Tokens>) -> Result<Walk<'a>, String> {
    let ast = parse(source, "chat_template", syntax.clone()).map_err(|error| error.to_string())?;
    let mut walk = Walk { tokens, insertions: vec![], captured_raw_len_max: 0, capturing: false };
    walk.stmt(&ast)?;
    Ok(walk)
}

/// What a pass over a template finds.
struct Walk<'t> {
    tokens: Option<&'t Tokens>,
    /// What to insert at byte offsets.
    insertions: Vec<(usize, Insertion)>,
    /// Longest literal text inside something that captures output.
    captured_raw_len_max: u64,
    capturing: bool,
}

impl Walk<'_> {
    fn stmts(&mut self, stmts: &[Stmt<'_>]) -> Result<(), String> {
        stmts.iter().try_for_each(|stmt| self.stmt(stmt))
    }

    fn captured(&mut self, stmts: &[Stmt<'_>]) -> Result<(), String> {
        let outer = std::mem::replace(&mut self.capturing, true);
        self.stmts(stmts)?;
        self.capturing = outer;
        Ok(())
    }

    fn stmt(&mut self, stmt: &Stmt<'_>) -> Result<(), String> {
        match stmt {
            Stmt::Template(s) => self.stmts(&s.children),
            Stmt::EmitExpr(s) => self.expr(&s.expr),
            Stmt::EmitRaw(s) => {
                if self.capturing {
                    self.captured_raw_len_max = self.captured_raw_len_max.max(s.raw.len() as u64);
                }
                Ok(())
            }
            Stmt::ForLoop(s) => {
                self.expr(&s.iter)?;
                self.maybe(s.filter_expr.as_ref())?;
                self.stmts(&s.body)?;
                self.stmts(&s.else_body)
            }
            Stmt::IfCond(s) => {
                self.expr(&s.expr)?;
                self.stmts(&s.true_body)?;
                self.stmts(&s.false_body)
            }
            Stmt::WithBlock(s) => {
                s.assignments.iter().try_for_each(|(_, value)| self.expr(value))?;
                self.stmts(&s.body)
            }
            Stmt::Set(s) => {
                match s.target {
                    Expr::Var(_) => self.expr(&s.expr),
                    // Into a namespace: nests.
                    _ => self.charged(&s.expr),
                }
            }
            Stmt::SetBlock(s) => {
                self.maybe(s.filter.as_ref())?;
                self.captured(&s.body)
            }
            Stmt::AutoEscape(_) => Err("autoescape is not allowed".to_owned()),
            Stmt::FilterBlock(s) => {
                self.expr(&s.filter)?;
                self.captured(&s.body)
            }
            Stmt::Macro(s) => self.macro_decl(s),
            Stmt::CallBlock(s) => {
                self.call(&s.call)?;
                self.macro_decl(&s.macro_decl)
            }
            Stmt::Continue(_) | Stmt::Break(_) => Ok(()),
            Stmt::Do(s) => self.call(&s.call),
            Stmt::Block(_) | Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {
                Err("block, import, extends and include are not allowed".to_owned())
            }
        }
    }

    fn macro_decl(&mut self, decl: &Macro<'_>) -> Result<(), String> {
        self.exprs(&decl.defaults)?;
        self.captured(&decl.body)
    }

    fn exprs(&mut self, exprs: &[Expr<'_>]) -> Result<(), String> {
        exprs.iter().try_for_each(|expr| self.expr(expr))
    }

    fn maybe(&mut self, expr: Option<&Expr<'_>>) -> Result<(), String> {
        expr.map_or(Ok(()), |expr| self.expr(expr))
    }

    fn expr(&mut self, expr: &Expr<'_>) -> Result<(), String> {
        match expr {
            Expr::Var(_) | Expr::Const(_) => Ok(()),
            Expr::Slice(e) => match e.step.as_ref().map(|step| integer(step)) {
                None => self.slice(e),
                Some(Some(1..)) => self.slice(e),
                Some(Some(-1)) if e.start.is_none() && e.stop.is_none() => {
                    self.reversed(&e.expr, e.span().end_offset as usize)
                }
                // The library's slices with other steps count wrongly, and panic where nothing is left.
                Some(_) => Err("a slice has a positive number as its step, or is [::-1]".to_owned()),
            },
            Expr::UnaryOp(e) => self.expr(&e.expr),
            Expr::BinOp(e) => match e.op {
                // Strings and lists times a number: the one result that the operands' sum does not bound.
                BinOpKind::Mul => {
                    self.wrapped(&e.left, NUMBER)?;
                    self.wrapped(&e.right, NUMBER)
                }
                BinOpKind::Add | BinOpKind::Concat | BinOpKind::In => {
                    self.charged(&e.left)?;
                    self.charged(&e.right)
                }
                _ => {
                    self.expr(&e.left)?;
                    self.expr(&e.right)
                }
            },
            Expr::Compare(e) => {
                // `in` may print its operands to look inside; all of a chain are charged if one does.
                if e.ops.iter().any(|o| matches!(o.op, CompareOpKind::In | CompareOpKind::NotIn)) {
                    self.charged(&e.expr)?;
                    return e.ops.iter().try_for_each(|o| self.charged(&o.expr));
                }
                self.expr(&e.expr)?;
                e.ops.iter().try_for_each(|o| self.expr(&o.expr))
            }
            Expr::IfExpr(e) => {
                self.expr(&e.test_expr)?;
                self.expr(&e.true_expr)?;
                self.maybe(e.false_expr.as_ref())
            }
            Expr::Filter(e) => {
                if let Some(input) = &e.expr {
                    self.charged(input)?;
                }
                self.args(&e.args)
            }
            Expr::Test(e) => {
                self.expr(&e.expr)?;
                self.args(&e.args)
            }
            Expr::GetAttr(e) => self.expr(&e.expr),
            Expr::GetItem(e) => {
                self.expr(&e.expr)?;
                self.expr(&e.subscript_expr)
            }
            Expr::Call(e) => self.call(e),
            Expr::List(e) => e.items.iter().try_for_each(|item| self.charged(item)),
            Expr::Tuple(e) => e.items.iter().try_for_each(|item| self.charged(item)),
            Expr::Map(e) => {
                self.exprs(&e.keys)?;
                e.values.iter().try_for_each(|value| self.charged(value))
            }
        }
    }

    fn slice(&mut self, slice: &Slice<'_>) -> Result<(), String> {
        self.charged(&slice.expr)?;
        [&slice.start, &slice.stop].into_iter().try_for_each(|bound| self.maybe(bound.as_ref()))
    }

    /// `expr[::-1]`, which ends at `end`, becomes a call.
    fn reversed(&mut self, expr: &Expr<'_>, end: usize) -> Result<(), String> {
        let start = self.tokens.map_or(0, |tokens| tokens.start(expr));
        let bracket =
            self.tokens.map_or(Some(0), |tokens| tokens.bracket_between(expr.span().end_offset as usize, end));
        let bracket = bracket.ok_or("it cannot be guarded")?;
        self.insertions.push((start, Insertion::Open(REVERSED)));
        self.charged(expr)?;
        self.insertions.push((bracket, Insertion::Close));
        self.insertions.push((bracket, Insertion::Cut(end)));
        Ok(())
    }

    fn call(&mut self, call: &Call<'_>) -> Result<(), String> {
        self.expr(&call.expr)?;
        self.args(&call.args)
    }

    fn args(&mut self, args: &[CallArg<'_>]) -> Result<(), String> {
        args.iter().try_for_each(|arg| match arg {
            CallArg::Pos(expr) | CallArg::Kwarg(_, expr) => self.charged(expr),
            CallArg::PosSplat(_) | CallArg::KwargSplat(_) => Err("splatted arguments are not allowed".to_owned()),
        })
    }

    /// An operand that must be charged.
    fn charged(&mut self, expr: &Expr<'_>) -> Result<(), String> {
        match expr {
            // No larger than the source.
            Expr::Const(_) => Ok(()),
            _ => self.wrapped(expr, CHARGE),
        }
    }

    /// An operand that must be an argument of `function`: noted if it is not.
    fn wrapped(&mut self, expr: &Expr<'_>, function: &'static str) -> Result<(), String> {
        match expr {
            Expr::Call(call) if matches!(&call.expr, Expr::Var(v) if v.id == function) => match &call.args[..] {
                [CallArg::Pos(inner)] => self.expr(inner),
                _ => Err("it cannot be guarded".to_owned()),
            },
            _ => {
                let start = self.tokens.map_or(0, |tokens| tokens.start(expr));
                self.insertions.push((start, Insertion::Open(function)));
                self.insertions.push((expr.span().end_offset as usize, Insertion::Close));
                self.expr(expr)
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Insertion {
    Open(&'static str),
    Close,
    /// Leaves out everything up to this byte.
    Cut(usize),
}

/// A whole number that is written as such.
fn integer(expr: &Expr<'_>) -> Option<i64> {
    match expr {
        Expr::Const(number) => i64::try_from(number.value.clone()).ok(),
        Expr::UnaryOp(e) if matches!(e.op, UnaryOpKind::Neg) => integer(&e.expr)?.checked_neg(),
        _ => None,
    }
}
