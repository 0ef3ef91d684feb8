//! A chat's output as blocks in the order in which they begin: reasoning, texts, tool calls. This is
//! the form of Anthropic's messages and of OpenAI's responses.

use crate::server::response::message_reader::MessagePart;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockKind {
    Thought,
    Text,
    /// A call of the tool of this name.
    Call(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    pub kind: BlockKind,
    /// The text, or the call's arguments.
    pub text: String,
}

/// What happens to the block of this index. One block is open at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockEvent {
    Begin(usize),
    Delta(usize, String),
    End(usize),
}

#[derive(Debug, Default)]
pub struct Blocks {
    blocks: Vec<Block>,
    is_open: bool,
}

impl Blocks {
    /// Adds the next part of the output.
    pub fn push(&mut self, part: MessagePart) -> Vec<BlockEvent> {
        let mut events = Vec::new();
        for (kind, text) in [
            (BlockKind::Thought, part.thought),
            (BlockKind::Text, part.content),
        ] {
            if !text.is_empty() {
                if self.open_kind() != Some(&kind) {
                    self.begin(kind, &mut events);
                }
                self.extend(text, &mut events);
            }
        }
        for call in part.calls {
            if let Some(name) = call.name {
                self.begin(BlockKind::Call(name), &mut events);
            }
            self.extend(call.arguments, &mut events);
        }
        events
    }

    /// Ends the last block.
    pub fn close(&mut self) -> Option<BlockEvent> {
        let is_open = std::mem::take(&mut self.is_open);
        is_open.then(|| BlockEvent::End(self.blocks.len() - 1))
    }

    pub fn all(&self) -> &[Block] {
        &self.blocks
    }

    fn open_kind(&self) -> Option<&BlockKind> {
        let last = self.blocks.last().filter(|_| self.is_open);
        last.map(|block| &block.kind)
    }

    fn begin(&mut self, kind: BlockKind, events: &mut Vec<BlockEvent>) {
        events.extend(self.close());
        self.is_open = true;
        events.push(BlockEvent::Begin(self.blocks.len()));
        self.blocks.push(Block {
            kind,
            text: String::new(),
        });
    }

    fn extend(&mut self, text: String, events: &mut Vec<BlockEvent>) {
        let index = self.blocks.len().saturating_sub(1);
        if let Some(block) = self.blocks.last_mut()
            && !text.is_empty()
        {
            block.text.push_str(&text);
            events.push(BlockEvent::Delta(index, text));
        }
    }
}
