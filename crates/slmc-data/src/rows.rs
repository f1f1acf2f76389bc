//! Whole documents in rows: several to a row, none across a border, and nothing of one seen from another.
//!
//! Rows are filled by best fit, longest document first, so little is padding. What is longer than a row is cut at its
//! end, and counted. Beside the tokens each position says where its document begins: attention looks no further back.

use std::collections::BTreeMap;

use slmc_ir::TokenId;

use crate::{ChatTemplate, Content, Document, Message, PackError, PackedTokens, Tokenizer};

/// A document as tokens, and what of it is learnt from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// File name and line.
    pub id: String,
    /// Its tokens.
    pub tokens: Vec<TokenId>,
    /// Whether each of them is a target.
    pub scored: Vec<bool>,
}

/// What was done to the documents other than put them into rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct RowCounts {
    /// Documents in the rows.
    pub documents: u64,
    /// Of these, documents that were cut at the end of a row.
    pub truncated: u64,
    /// Tokens that were cut off.
    pub tokens_cut: u64,
    /// Documents left out because nothing of them is learnt from, or all of that was cut off.
    pub left_out: u64,
    /// Tokens that are learnt from.
    pub targets: u64,
    /// Rows.
    pub rows: u64,
    /// Positions that hold no document.
    pub padding: u64,
}

/// Rows of whole documents.
#[derive(Clone, Debug)]
pub struct PackedRows {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) scored: Vec<bool>,
    /// Where in its row each position's document begins.
    pub(crate) starts: Vec<u32>,
    pub(crate) seq_len: usize,
    counts: RowCounts,
}

impl Example {
    /// Writes a document out. Prompts with completions (and questions with answers, instructions with outputs) become
    /// a chat of two turns where there is a template; of chats the assistant's turns are learnt from.
    ///
    /// # Errors
    /// When it cannot be written out or tokenized.
    pub fn new(
        document: &Document,
        tokenizer: &Tokenizer,
        template: Option<&ChatTemplate>,
    ) -> Result<Self, PackError> {
        let mut packed = PackedTokens::from_tokens(Vec::new());
        match (&document.content, template) {
            (Content::Completion { prompt, completion }, Some(_)) => {
                let turn = |role: &str, content: &String| Message {
                    role: role.to_owned(),
                    content: content.clone(),
                };
                let content = Content::Chat(vec![turn("user", prompt), turn("assistant", completion)]);
                packed.push_alone(&Document { content, ..document.clone() }, tokenizer, template)?;
            }
            _ => packed.push_alone(document, tokenizer, template)?,
        }
        let scored = match packed.scored() {
            Some(scored) => scored.to_vec(),
            None => vec![true; packed.tokens().len()],
        };
        Ok(Self { id: document.id.clone(), tokens: packed.tokens().to_vec(), scored })
    }

    /// The text with what is learnt from between ⟦ and ⟧; special tokens written out.
    pub fn marked(&self, tokenizer: &Tokenizer) -> String {
        let mut text = String::new();
        let mut first = 0;
        while first < self.tokens.len() {
            let learnt = self.scored[first];
            let n = self.scored[first..].iter().take_while(|&&scored| scored == learnt).count();
            let run = tokenizer.decode(&self.tokens[first..first + n]).unwrap_or_default();
            if learnt {
                text.extend(["⟦", &run, "⟧"]);
            } else {
                text.push_str(&run);
            }
            first += n;
        }
        text
    }
}

impl PackedRows {
    /// Puts examples into rows of `seq_len` tokens and the target after the last; `padding` fills what is left.
    pub fn pack(examples: &[Example], seq_len: usize, padding: TokenId) -> Self {
        let width = seq_len + 1;
        let mut counts = RowCounts::default();
        let mut kept: Vec<(usize, usize)> = Vec::new();
        for (index, example) in examples.iter().enumerate() {
            let n = example.tokens.len().min(width);
            let targets = example.scored[..n].iter().skip(1).filter(|&&scored| scored).count();
            if targets == 0 {
                counts.left_out += 1;
                continue;
            }
            counts.documents += 1;
            counts.targets += targets as u64;
            counts.truncated += u64::from(n < example.tokens.len());
            counts.tokens_cut += (example.tokens.len() - n) as u64;
            kept.push((index, n));
        }
        // Longest first; equal ones in their own order.
        kept.sort_by_key(|&(index, n)| (std::cmp::Reverse(n), index));
        let rows = best_fit(&kept, width);
        let mut packed = Self {
            tokens: Vec::with_capacity(rows.len() * width),
            scored: Vec::with_capacity(rows.len() * width),
            starts: Vec::with_capacity(rows.len() * width),
            seq_len,
            counts,
        };
        for row in &rows {
            packed.push_row(row, examples, padding);
        }
        packed.counts.rows = rows.len() as u64;
        packed
    }

    fn push_row(&mut self, row: &[(usize, usize)], examples: &[Example], padding: TokenId) {
        let (begin, width) = (self.tokens.len(), self.seq_len + 1);
        for &(index, n) in row {
            let start = (self.tokens.len() - begin) as u32;
            let example = &examples[index];
            self.tokens.extend_from_slice(&example.tokens[..n]);
            self.scored.push(false);
            self.scored.extend_from_slice(&example.scored[1..n]);
            self.starts.resize(self.tokens.len(), start);
        }
        let n_padding = begin + width - self.tokens.len();
        self.counts.padding += n_padding as u64;
        let start = (width - n_padding) as u32;
        self.tokens.resize(begin + width, padding);
        self.scored.resize(begin + width, false);
        self.starts.resize(begin + width, start);
    }

    /// What became of the documents.
    pub fn counts(&self) -> RowCounts {
        self.counts
    }
}

/// Puts each of the lengths, longest first, into the row with the least room that has enough.
fn best_fit(lengths: &[(usize, usize)], width: usize) -> Vec<Vec<(usize, usize)>> {
    let mut rows: Vec<Vec<(usize, usize)>> = Vec::new();
    // Rows by the room that they have.
    let mut by_room: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for &(index, n) in lengths {
        let room = by_room.range(n..).next().map(|(&room, _)| room);
        let (row, room) = match room.and_then(|room| Some((by_room.get_mut(&room)?.pop()?, room))) {
            Some(found) => found,
            None => {
                rows.push(Vec::new());
                (rows.len() - 1, width)
            }
        };
        if by_room.get(&room).is_some_and(Vec::is_empty) {
            by_room.remove(&room);
        }
        rows[row].push((index, n));
        if room > n {
            by_room.entry(room - n).or_default().push(row);
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Batches;

    /// Documents of these lengths, each of one token; the first half of each is given.
    fn examples(lengths: &[usize]) -> Vec<Example> {
        let example = |(i, &n): (usize, &usize)| Example {
            id: i.to_string(),
            tokens: vec![i as TokenId + 1; n],
            scored: (0..n).map(|at| at >= n / 2).collect(),
        };
        lengths.iter().enumerate().map(example).collect()
    }

    #[test]
    fn documents_stay_whole_and_know_where_they_begin() {
        let rows = PackedRows::pack(&examples(&[3, 7, 5, 2, 30]), 9, 0);
        let counts = rows.counts();
        assert_eq!((counts.documents, counts.truncated, counts.tokens_cut, counts.rows), (5, 1, 20, 3));
        assert_eq!(counts.padding, 30 - (3 + 7 + 5 + 2 + 10));
        assert_eq!(rows.tokens[..10], [5; 10]);
        assert_eq!(rows.tokens[10..20], [2, 2, 2, 2, 2, 2, 2, 1, 1, 1]);
        assert_eq!(rows.starts[10..20], [0, 0, 0, 0, 0, 0, 0, 7, 7, 7]);
        assert_eq!(rows.tokens[20..], [3, 3, 3, 3, 3, 4, 4, 0, 0, 0]);
        assert_eq!(rows.starts[20..], [0, 0, 0, 0, 0, 5, 5, 7, 7, 7]);
        let learnt: Vec<usize> = (20..30).filter(|&i| rows.scored[i]).collect();
        assert_eq!(learnt, [22, 23, 24, 26]);
    }

    #[test]
    fn what_teaches_nothing_is_left_out_and_counted() {
        let mut examples = examples(&[4, 6]);
        examples[0].scored.fill(false);
        examples[1].scored = vec![true, false, false, false, false, true];
        let rows = PackedRows::pack(&examples, 4, 0);
        assert_eq!(rows.counts().left_out, 2, "a target that was cut off, or that follows nothing, is none");
        assert!(Batches::of_rows(rows, 1, 0).is_err());
    }

    #[test]
    fn batches_carry_the_borders() {
        let rows = PackedRows::pack(&examples(&[3, 7, 5, 2]), 9, 0);
        let batches = Batches::of_rows(rows.clone(), 2, 3).unwrap();
        assert_eq!(batches.n_windows(), 2);
        let batch = batches.batch(5);
        assert_eq!(batch, Batches::of_rows(rows, 2, 3).unwrap().batch(5));
        let (mask, starts) = (batch.loss_mask.unwrap(), batch.starts.unwrap());
        assert_eq!((batch.inputs.len(), mask.len(), starts.len()), (18, 18, 18));
        for i in 0..18 {
            let last = i % 9 == 8;
            // A target that counts is of its input's own document.
            assert!(!mask[i] || batch.targets[i] == batch.inputs[i]);
            assert!(last || mask[i] <= (starts[i] == starts[i + 1]));
        }
    }

    #[test]
    fn little_is_padding() {
        let lengths: Vec<usize> = (0..2000).map(|i| 60 + i * 7919 % 190).collect();
        let counts = PackedRows::pack(&examples(&lengths), 255, 0).counts();
        assert!(counts.padding * 20 < counts.rows * 256, "{counts:?}");
    }
}
