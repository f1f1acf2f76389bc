//! A document: the unit that is split into train, valid and test, and that packing keeps in one piece.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Which part of a dataset a document belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Learnt from.
    Train,
    /// Looked at while learning: early stopping, choices of settings.
    Valid,
    /// Measured on at the end, never learnt from.
    Test,
}

impl Split {
    /// `train`, `valid` or `test`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }
}

/// How many documents of a thousand go to each part; what is left is for training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Documents of a thousand for [`Split::Valid`].
    pub valid_per_mille: u32,
    /// Documents of a thousand for [`Split::Test`].
    pub test_per_mille: u32,
}

impl Shares {
    /// Everything is for training.
    pub const ALL_TRAIN: Self = Self { valid_per_mille: 0, test_per_mille: 0 };

    /// The part that a document without a part of its own goes to. Depends on the document's id alone, so a
    /// document stays where it is when others come or go.
    pub fn assign(self, id: &str) -> Split {
        let digest = Sha256::digest(id.as_bytes());
        let head: [u8; 8] = std::array::from_fn(|i| digest[i]);
        let draw = (u64::from_be_bytes(head) % 1000) as u32;
        if draw < self.test_per_mille {
            Split::Test
        } else if draw < self.test_per_mille.saturating_add(self.valid_per_mille) {
            Split::Valid
        } else {
            Split::Train
        }
    }
}

/// One turn of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// What a document says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Plain text: every token is learnt from.
    Text(String),
    /// A chat: only what the assistant says is learnt from.
    Chat(Vec<Message>),
    /// A question and its answer without a chat's frame: only the completion is learnt from.
    Completion {
        /// What is given.
        prompt: String,
        /// What should follow.
        completion: String,
    },
}

/// A document and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// File name, and the line in a JSONL file: `books/emma.txt`, `chats.jsonl:12`. The same wherever the data lies.
    pub id: String,
    /// The part that a manifest put it in.
    pub split: Option<Split>,
    /// What it says.
    pub content: Content,
}

impl Document {
    /// The part it belongs to: the manifest's word, else by its id.
    pub fn split(&self, shares: Shares) -> Split {
        self.split.unwrap_or_else(|| shares.assign(&self.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_kept_and_do_not_depend_on_order() {
        let shares = Shares { valid_per_mille: 100, test_per_mille: 50 };
        let ids: Vec<String> = (0..10_000).map(|i| format!("file.jsonl:{i}")).collect();
        let count = |split| ids.iter().filter(|id| shares.assign(id) == split).count();
        // Binomial with n = 10000: four standard deviations are 120 and 87.
        assert!(count(Split::Valid).abs_diff(1000) < 120, "{}", count(Split::Valid));
        assert!(count(Split::Test).abs_diff(500) < 87, "{}", count(Split::Test));
        assert_eq!(Shares::ALL_TRAIN.assign("anything"), Split::Train);
    }

    #[test]
    fn a_manifest_has_the_last_word() {
        let content = Content::Text(String::new());
        let document = Document { id: "a".into(), split: Some(Split::Test), content };
        assert_eq!(document.split(Shares::ALL_TRAIN), Split::Test);
    }
}
