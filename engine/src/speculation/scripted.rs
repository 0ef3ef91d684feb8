//! Drafters for tests, which know the texts in advance: drafts that are always right, never, or
//! sometimes.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Drafter, Drafters, Shared};
use crate::request::{Request, RequestId};

/// Whether draft `i` of a call after `n_tokens` tokens is right, for a request.
pub type IsRight = Arc<dyn Fn(RequestId, usize, usize) -> bool + Send + Sync>;

/// Knows each request's output.
#[derive(Clone)]
pub struct Script {
    pub outputs: Arc<HashMap<RequestId, Vec<u32>>>,
    pub is_right: IsRight,
    /// Wrong drafts are other tokens below this.
    pub vocab: u32,
}

impl std::fmt::Debug for Script {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "script of {} outputs", self.outputs.len())
    }
}

#[derive(Debug)]
struct ScriptedDrafter {
    script: Script,
    request: RequestId,
    n_prompt: usize,
}

impl Drafters for Script {
    fn drafter_of(&self, request: &Request) -> Box<dyn Drafter> {
        Box::new(ScriptedDrafter {
            script: self.clone(),
            request: request.id,
            n_prompt: request.prompt.len(),
        })
    }
}

impl Drafter for ScriptedDrafter {
    fn draft(&mut self, _: &mut Shared, tokens: &[u32], max: usize, drafts: &mut Vec<u32>) {
        let output = self.script.outputs.get(&self.request);
        let n_output = tokens.len() - self.n_prompt;
        let rest = output.and_then(|output| output.get(n_output..));
        for i in 0..max {
            // After the end of the text nothing is right.
            let next = rest.and_then(|rest| rest.get(i)).copied();
            let is_right = (self.script.is_right)(self.request, tokens.len(), i);
            let next = next.unwrap_or_default();
            drafts.push(if is_right {
                next
            } else {
                (next + 1) % self.script.vocab
            });
        }
    }

    fn may_draft_next(&self, _: &[u32]) -> bool {
        true
    }
}
