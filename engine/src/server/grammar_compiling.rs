//! Compiles what a request's output has to be: so many at a time, and for so long.
//!
//! A compiled constraint is at most some seconds' work (its size, its nesting and its automata are
//! bounded), which is done to its end also where the client has left. So a client waits for a place
//! for a bounded time, and gets an error then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::error::ApiError;
use super::state::ServedModel;
use super::structured_fields::Asked;
use super::turn::in_turn;
use crate::engine_loop::TimeLimits;
use crate::errors::Code;
use crate::structured::{Grammar, Preamble, StructuredError};

/// Grammars compiled at a time: large ones are a second's work of a core.
const COMPILED_AT_ONCE: usize = 2;
static COMPILING: Semaphore = Semaphore::const_new(COMPILED_AT_ONCE);

/// From the moment that a request asks until its grammar is there, others' before it included.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Compiles for so many choices. That is work of the processor, so it is not done on an async
/// thread. Waits no longer than `--max-queue-s`, `--max-request-s` and half a minute.
pub async fn compile(
    model: &ServedModel,
    asked: Option<Asked>,
    preamble: Preamble,
    n_choices: usize,
) -> Result<Option<Grammar>, ApiError> {
    let Some(Asked { constraint, param }) = asked else {
        return Ok(None);
    };
    let grammars = Arc::clone(&model.grammars);
    let work = move || grammars.compile(&constraint, preamble, n_choices);
    let compiled = within(&COMPILING, &model.engine.config().time_limits, work).await?;
    match compiled {
        Ok(grammar) => Ok(Some(grammar)),
        Err(error) => {
            let message = format!("{param}: {error}");
            Err(ApiError::of_field(code_of(&error), param, message))
        }
    }
}

/// Does `work` when there is a place, if both take no longer than the limits.
async fn within<T: Send + 'static>(
    places: &'static Semaphore,
    limits: &TimeLimits,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let begun = Instant::now();
    let (limit, code, name) = shortest(limits);
    let done = timeout(limit, in_turn(places, "compiling the grammar", work)).await;
    done.unwrap_or_else(|_| {
        let (waited, limit) = (begun.elapsed().as_secs_f64(), limit.as_secs_f64());
        let message = format!(
            "the grammar was not compiled within {waited:.1} s, the limit is {limit:.1} s \
             ({name}); others are being compiled, try again later"
        );
        Err(ApiError::new(code, message))
    })
}

fn shortest(limits: &TimeLimits) -> (Duration, Code, &'static str) {
    [
        (limits.total, Code::RequestTimeout, "--max-request-s"),
        (limits.queue, Code::QueueTimeout, "--max-queue-s"),
    ]
    .into_iter()
    .filter_map(|(limit, code, name)| Some((limit?, code, name)))
    .filter(|(limit, _, _)| *limit < MAX_WAIT)
    .min_by_key(|(limit, _, _)| *limit)
    .unwrap_or((MAX_WAIT, Code::QueueTimeout, "for compiling"))
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
        // This model's output can have no form.
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
            // An error is the sender's end, which is an end, too.
            let work = move || may_end.recv().is_ok();
            within(&PLACES, &limits(None, Some(50)), work).await
        });
        let error = first.await.expect("it ends").expect_err("too long");
        assert_eq!(error.code, Code::RequestTimeout, "{error}");
        // The first one's client has its answer, but its work goes on.
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
            let error = within(&PLACES, &limits, || ()).await.expect_err("no place");
            assert_eq!(error.code, code);
            assert!(error.message.contains(name), "{error}");
        }
        drop(end);
        let done = within(&PLACES, &limits(None, None), || 7).await;
        assert_eq!(done, Ok(7));
    }

    #[test]
    fn without_limits_of_the_operator_there_is_one() {
        let (limit, code, _) = shortest(&TimeLimits::default());
        assert_eq!((limit, code), (MAX_WAIT, Code::QueueTimeout));
        let hour = Some(Duration::from_hours(1));
        let limits = TimeLimits {
            queue: hour,
            total: hour,
        };
        assert_eq!(shortest(&limits).0, MAX_WAIT);
    }
}
