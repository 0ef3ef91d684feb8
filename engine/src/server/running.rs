//! The running requests by id, for `/abort_request`.
//!
//! The id is the response's own, or the client's choice (`rid`, as in SGLang; `request_id`, as in
//! vLLM). A request is listed from its start until its response is complete or dropped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::engine_loop::EngineHandle;
use crate::request::RequestId;
use crate::server::error::ApiError;
use crate::server::request::fields::Fields;
use crate::server::response::choice::Choice;
use crate::server::state::AppState;

const MAX_ID_BYTES: usize = 128;

#[derive(Debug, Default)]
pub struct Running(Mutex<HashMap<String, Vec<(EngineHandle, RequestId)>>>);

/// Removes its requests from the list on drop.
#[derive(Debug)]
pub struct Registered {
    running: Arc<Running>,
    ids: Vec<String>,
}

impl Running {
    /// Lists choices, each under an id; several may share one. Refuses an id that another response
    /// has.
    pub(crate) fn enter<'a>(
        self: &Arc<Self>,
        choices: impl Iterator<Item = (String, &'a Choice)>,
    ) -> Result<Registered, ApiError> {
        let mut new: HashMap<String, Vec<_>> = HashMap::new();
        for (id, choice) in choices {
            new.entry(id).or_default().push(choice.handle());
        }
        let mut running = self.lock();
        if let Some(id) = new.keys().find(|id| running.contains_key(*id)) {
            let message = format!("rid is {id:?}, which belongs to another running request");
            return Err(ApiError::invalid("rid", message));
        }
        let ids = new.keys().cloned().collect();
        running.extend(new);
        Ok(Registered {
            running: Arc::clone(self),
            ids,
        })
    }

    /// Aborts the requests with one id, or all; their responses end with the reason `abort`.
    /// Returns the number of requests that were aborted.
    fn abort(&self, id: Option<&str>) -> usize {
        let running = self.lock();
        let chosen: Vec<&(EngineHandle, RequestId)> = match id {
            Some(id) => running.get(id).into_iter().flatten().collect(),
            None => running.values().flatten().collect(),
        };
        for (engine, request) in &chosen {
            engine.cancel(*request);
        }
        chosen.len()
    }

    /// The ids of an engine's requests.
    pub(crate) fn names(&self, engine: &EngineHandle) -> HashMap<RequestId, String> {
        let running = self.lock();
        let all = running.iter().flat_map(|(id, requests)| {
            let own = requests.iter().filter(|(of, _)| of.is_same(engine));
            own.map(move |(_, request)| (*request, id.clone()))
        });
        all.collect()
    }

    /// No method panics between two related changes.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<(EngineHandle, RequestId)>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut running = self.running.lock();
        for id in &self.ids {
            running.remove(id);
        }
    }
}

/// The response id that a client chose: `rid` unchanged, `request_id` with `prefix`.
pub(crate) fn take_id(fields: &mut Fields, prefix: &str) -> Result<Option<String>, ApiError> {
    fields.shape("rid", id_schema);
    fields.shape("request_id", id_schema);
    let rid = fields.string("rid")?;
    let request_id = fields.string("request_id")?;
    for (name, id) in [("rid", &rid), ("request_id", &request_id)] {
        if let Some(id) = id {
            check_id(name, id)?;
        }
    }
    if rid.is_some() && request_id.is_some() {
        let message = "rid and request_id are both there; the answer has one id";
        return Err(ApiError::invalid("request_id", message));
    }
    Ok(rid.or(request_id.map(|id| format!("{prefix}-{id}"))))
}

/// The schema of what [`check_id`] accepts.
pub(crate) fn id_schema() -> Value {
    json!({"type": "string", "pattern": "^[!-~]+$", "minLength": 1, "maxLength": MAX_ID_BYTES})
}

pub(crate) fn check_id(path: &str, id: &str) -> Result<(), ApiError> {
    if !id.is_empty() && id.len() <= MAX_ID_BYTES && id.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    let message = format!(
        "{path} has {} bytes, but must have from 1 to {MAX_ID_BYTES} letters, digits and signs of \
         ASCII",
        id.len()
    );
    Err(ApiError::invalid(path, message))
}

/// `POST /abort_request`: `{"rid": ID}`, or `{"abort_all": true}`. An unknown id is not an error,
/// since the response may have ended meanwhile.
pub(crate) async fn abort_request(
    State(state): State<Arc<AppState>>,
    mut fields: Fields,
) -> Result<Json<Value>, ApiError> {
    let rid = take_aborted(&mut fields)?;
    Ok(Json(
        json!({"n_aborted": state.running.abort(rid.as_deref())}),
    ))
}

/// The id of what is to be aborted; `None`: all.
pub(crate) fn take_aborted(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let rid = fields.string("rid")?.filter(|rid| !rid.is_empty());
    match (rid, fields.bool("abort_all")?.unwrap_or(false)) {
        (_, true) => Ok(None),
        (Some(rid), false) => Ok(Some(rid)),
        (None, false) => {
            let message = "rid is missing; it is a request's id, or abort_all is true";
            Err(ApiError::invalid("rid", message))
        }
    }
}
