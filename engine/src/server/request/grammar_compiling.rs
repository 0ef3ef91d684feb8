//! Compiles the required output format of a request, with bounded concurrency and time.
//!
//! Compiling a constraint takes at most a few seconds, since its size, nesting and automata are
//! bounded. It runs to completion even if the client has left. A client therefore waits for a slot
//! for a bounded time and then gets an error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::engine_loop::TimeLimits;
use crate::errors::Code;
use crate::guide::Guide;
use crate::served_model::ServedModel;
use crate::server::error::ApiError;
use crate::server::request::sampling_fields::Generation;
use crate::server::request::structured_fields::RequestedFormat;
use crate::server::transport::blocking::run_blocking_limited;
use crate::structured::{Grammar, Preamble, StructuredError};

/// Grammars compiled concurrently: a large one takes a core about a second.
const COMPILED_AT_ONCE: usize = 2;
static COMPILING: Semaphore = Semaphore::const_new(COMPILED_AT_ONCE);

/// Maximum time from the request to its compiled grammar, including other requests' grammars before
/// it.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// A compiled constraint, and the field that asked for it.
pub struct CompiledForm {
    grammar: Grammar,
    param: Arc<str>,
}

/// What one choice must follow, from its first token on.
pub struct Form {
    pub guide: Guide,
    /// The field that asked for it.
    pub param: Arc<str>,
}

impl CompiledForm {
    /// A guide for one more choice.
    pub fn form(&self) -> Form {
        Form {
            guide: self.grammar.guide(),
            param: Arc::clone(&self.param),
        }
    }
}

/// Compiles the format for `n` choices. This is CPU-bound, so it does not run on an async thread.
/// Waits no longer than `--max-queue-s`, the remainder of `--max-request-s`, and half a minute.
/// `generation` has the request's other constraints, which must leave at least one first token.
pub async fn compile(
    model: &ServedModel,
    asked: Option<RequestedFormat>,
    preamble: Preamble,
    generation: &Generation,
    n_choices: usize,
) -> Result<Option<CompiledForm>, ApiError> {
    let Some(RequestedFormat { constraint, param }) = asked else {
        return Ok(None);
    };
    let grammars = Arc::clone(&model.grammars);
    let work = move || grammars.compile(&constraint, preamble, n_choices);
    let limits = &model.engine.config().time_limits;
    let compiled = within(&COMPILING, limits, generation.received, work).await?;
    match compiled {
        Ok(grammar) => {
            check_begin(&grammar, &param, generation)?;
            let param = param.into();
            Ok(Some(CompiledForm { grammar, param }))
        }
        Err(error) => {
            let message = format!("{param}: {error}");
            Err(ApiError::of_field(code_of(&error), param, message))
        }
    }
}

/// Checks that `allowed_token_ids` contains a token with which the output may begin.
fn check_begin(grammar: &Grammar, param: &str, generation: &Generation) -> Result<(), ApiError> {
    let Some(allowed) = &generation.params.exclusions.allowed else {
        return Ok(());
    };
    let first = grammar.first_mask();
    if allowed.iter().any(|token| first.allows(*token)) {
        return Ok(());
    }
    let message = format!(
        "{param}: the output cannot begin, since allowed_token_ids has none of the tokens that \
         {param} allows first"
    );
    Err(ApiError::of_field(Code::GrammarFailed, param, message))
}

/// Runs `work` when a slot is free, if waiting and work together stay within the limits of a
/// request received at `received`.
async fn within<T: Send + 'static>(
    places: &'static Semaphore,
    limits: &TimeLimits,
    received: Instant,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let begun = Instant::now();
    let limit = Limit::shortest(limits, received.elapsed());
    let done = timeout(
        limit.left,
        run_blocking_limited(places, "compiling the grammar", work),
    )
    .await;
    done.unwrap_or_else(|_| {
        let (waited, of) = (begun.elapsed().as_secs_f64(), limit.of.as_secs_f64());
        let name = limit.name;
        let message = format!(
            "the grammar could not be compiled within {waited:.1} s, the limit is {of:.1} s ({name}); it \
             is large, or others are being compiled: try again later"
        );
        Err(ApiError::new(limit.code, message))
    })
}

/// One of the limits on a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    left: Duration,
    /// The configured value.
    of: Duration,
    code: Code,
    name: &'static str,
}

impl Limit {
    /// The limit that is reached first by a request that has already taken `taken`.
    fn shortest(limits: &TimeLimits, taken: Duration) -> Self {
        let total = limits.total.map(|of| Self {
            left: of.saturating_sub(taken),
            of,
            code: Code::RequestTimeout,
            name: "--max-request-s, of the whole request",
        });
        let queue = limits.queue.map(|of| Self {
            left: of,
            of,
            code: Code::QueueTimeout,
            name: "--max-queue-s",
        });
        let longest = Self {
            left: MAX_WAIT,
            of: MAX_WAIT,
            code: Code::QueueTimeout,
            name: "for compiling",
        };
        let limits = [Some(longest), queue, total];
        let shortest = limits.into_iter().flatten().min_by_key(|limit| limit.left);
        shortest.unwrap_or(longest)
    }
}

fn code_of(error: &StructuredError) -> Code {
    match error {
        StructuredError::TooLarge { .. } => Code::SchemaTooLarge,
        StructuredError::Invalid { .. }
        | StructuredError::Endless { .. }
        | StructuredError::TooDeep { .. }
        | StructuredError::TooWide { .. }
        | StructuredError::TooManySymbols { .. }
        | StructuredError::Multiple { .. }
        | StructuredError::Keyword { .. } => Code::InvalidValue,
        // This model cannot produce constrained output.
        StructuredError::NoEndToken | StructuredError::Vocabulary(_) => Code::UnsupportedParameter,
        StructuredError::NoThread(_) => Code::InternalError,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_request_waits_for_a_place_no_longer_than_its_limits() {
        static PLACES: Semaphore = Semaphore::const_new(1);
        let limits = |queue_ms: Option<u64>, total_ms: Option<u64>| TimeLimits {
            queue: queue_ms.map(Duration::from_millis),
            total: total_ms.map(Duration::from_millis),
        };
        let (end, may_end) = mpsc::channel::<()>();
        let first = tokio::spawn(async move {
            // An error means that the sender was dropped, which ends the work too.
            let work = move || may_end.recv().is_ok();
            within(&PLACES, &limits(None, Some(50)), Instant::now(), work).await
        });
        let error = first.await.expect("it ends").expect_err("too long");
        assert_eq!(error.code, Code::RequestTimeout, "{error}");
        // The first client has its response, but its work continues.
        for (limits, code, name) in [
            (limits(Some(50), None), Code::QueueTimeout, "--max-queue-s"),
            (
                limits(Some(50), Some(70)),
                Code::QueueTimeout,
                "--max-queue-s",
            ),
            (
                limits(Some(70), Some(50)),
                Code::RequestTimeout,
                "--max-request-s",
            ),
        ] {
            let error = within(&PLACES, &limits, Instant::now(), || ()).await;
            let error = error.expect_err("no place");
            assert_eq!(error.code, code);
            assert!(error.message.contains(name), "{error}");
        }
        // A request that has used up its time has none left.
        let begun = Instant::now();
        let received = begun
            .checked_sub(Duration::from_mins(1))
            .expect("a minute ago");
        let error = within(&PLACES, &limits(None, Some(60_000)), received, || ()).await;
        assert_eq!(error.expect_err("too late").code, Code::RequestTimeout);
        assert!(begun.elapsed() < Duration::from_secs(30));
        drop(end);
        let done = within(&PLACES, &limits(None, None), Instant::now(), || 7).await;
        assert_eq!(done, Ok(7));
    }

    #[test]
    fn without_limits_of_the_operator_there_is_one() {
        let limit = Limit::shortest(&TimeLimits::default(), Duration::ZERO);
        assert_eq!((limit.left, limit.code), (MAX_WAIT, Code::QueueTimeout));
        let hour = Some(Duration::from_hours(1));
        let limits = TimeLimits {
            queue: hour,
            total: hour,
        };
        assert_eq!(Limit::shortest(&limits, Duration::ZERO).left, MAX_WAIT);
    }
}
