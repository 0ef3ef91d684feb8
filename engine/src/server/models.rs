//! The models of this process: what each is called, and what it is doing.
//!
//! A model stays in the list from the moment it is configured. It keeps its names while it is
//! loading, ready, sleeping, unloaded or failed, so that a client learns its state instead of "no
//! such model". [`crate::server::endpoints::admin`] changes the state; here models are only looked
//! up. Deliberately absent: loading a model on request.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::config::ModelPlan;
use crate::errors::Code;
use crate::launch::LaunchError;
use crate::served_model::ServedModel;
use crate::server::error::ApiError;

/// In the order in which they were configured.
#[derive(Default)]
pub struct Models {
    entries: RwLock<Vec<Arc<ModelEntry>>>,
}

/// Loads a model, on a thread that may block.
pub type LoadModel = Box<dyn Fn() -> Result<ServedModel, LaunchError> + Send + Sync>;
/// How to load a model that is described at run time.
pub type Open = Box<dyn Fn(ModelPlan) -> LoadModel + Send + Sync>;

/// One model, in any state.
pub struct ModelEntry {
    /// Its configured names, which are unique. Until it is loaded it has no others.
    configured: Vec<String>,
    /// `None` for a model that was passed in ready and cannot be reloaded.
    load: Option<LoadModel>,
    now: RwLock<Now>,
}

#[derive(Clone)]
struct Now {
    state: ModelState,
    /// Present while its engine exists.
    model: Option<Arc<ServedModel>>,
    /// Why it failed.
    reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    Unloaded,
    Loading,
    Ready,
    FallingAsleep,
    Asleep,
    Waking,
    Unloading,
    /// Loading failed.
    Failed,
}

impl ModelState {
    pub const ALL: [Self; 8] = [
        Self::Unloaded,
        Self::Loading,
        Self::Ready,
        Self::FallingAsleep,
        Self::Asleep,
        Self::Waking,
        Self::Unloading,
        Self::Failed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Unloaded => "unloaded",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::FallingAsleep => "falling_asleep",
            Self::Asleep => "asleep",
            Self::Waking => "waking",
            Self::Unloading => "unloading",
            Self::Failed => "failed",
        }
    }

    /// The error code for requests to a model in this state.
    fn code(self) -> Code {
        match self {
            Self::Ready | Self::Loading => Code::ModelLoading,
            Self::FallingAsleep | Self::Asleep => Code::ModelAsleep,
            Self::Waking => Code::ModelWaking,
            Self::Unloading => Code::ModelUnloading,
            Self::Unloaded => Code::ModelUnloaded,
            Self::Failed => Code::ModelFailed,
        }
    }
}

impl Models {
    /// Refuses a name that another model was given.
    ///
    /// # Errors
    ///
    /// If another model has one of its names.
    pub fn add(&self, entry: ModelEntry) -> Result<Arc<ModelEntry>, String> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        for name in &entry.configured {
            if entries.iter().any(|known| known.configured.contains(name)) {
                return Err(format!(
                    "two models are called {name:?}; --served-model-name gives each its own name"
                ));
            }
        }
        let entry = Arc::new(entry);
        entries.push(Arc::clone(&entry));
        Ok(entry)
    }

    /// Removes a model from the list.
    pub fn remove(&self, entry: &Arc<ModelEntry>) {
        self.entries
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|known| !Arc::ptr_eq(known, entry));
    }

    pub fn list(&self) -> Vec<Arc<ModelEntry>> {
        self.read().clone()
    }

    /// The models whose engine exists, including sleeping ones.
    pub fn loaded(&self) -> Vec<Arc<ServedModel>> {
        self.read()
            .iter()
            .filter_map(|entry| entry.model())
            .collect()
    }

    /// The model of this name. The name is optional if there is only one model.
    ///
    /// # Errors
    ///
    /// If no model has this name, none is named and there are several, or the models are still
    /// being loaded.
    pub fn find(&self, asked: Option<&str>) -> Result<Arc<ModelEntry>, ApiError> {
        let entries = self.read();
        let only = match entries.as_slice() {
            [] => return Err(ApiError::loading()),
            [only] => Some(only),
            _ => None,
        };
        if let Some(entry) = asked.and_then(|name| called(&entries, name)) {
            return Ok(Arc::clone(entry));
        }
        let known = || {
            entries
                .iter()
                .flat_map(|entry| names_in(&entries, entry))
                .collect::<Vec<_>>()
        };
        match (asked, only) {
            (None | Some("default"), Some(only)) => Ok(Arc::clone(only)),
            (None | Some("default"), None) => {
                let message = format!("model is missing; this server has: {}", known().join(", "));
                Err(ApiError::invalid("model", message))
            }
            // The model may turn out to have that name.
            (Some(_), _)
                if entries
                    .iter()
                    .any(|entry| entry.state() == ModelState::Loading) =>
            {
                Err(ApiError::loading())
            }
            (Some(name), _) => Err(ApiError::unknown_model(name, &known())),
        }
    }

    /// Like [`Self::find`], but a server with one model accepts any name.
    pub(crate) fn find_leniently(&self, asked: Option<&str>) -> Result<Arc<ModelEntry>, ApiError> {
        let only = match self.read().as_slice() {
            [only] => Some(Arc::clone(only)),
            _ => None,
        };
        only.map_or_else(|| self.find(asked), Ok)
    }

    /// The names by which clients may call a model, except those that also belong to another one.
    pub fn names_of(&self, entry: &Arc<ModelEntry>) -> Vec<String> {
        names_in(&self.read(), entry)
    }

    fn read(&self) -> RwLockReadGuard<'_, Vec<Arc<ModelEntry>>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The model configured with this name; otherwise the only one that reports it.
fn called<'a>(entries: &'a [Arc<ModelEntry>], name: &str) -> Option<&'a Arc<ModelEntry>> {
    let is_given = |entry: &&Arc<ModelEntry>| entry.configured.iter().any(|known| known == name);
    let calls_itself = |entry: &&Arc<ModelEntry>| entry.names().iter().any(|known| known == name);
    entries.iter().find(is_given).or_else(|| {
        let mut found = entries.iter().filter(calls_itself);
        found.next().filter(|_| found.next().is_none())
    })
}

fn names_in(entries: &[Arc<ModelEntry>], entry: &Arc<ModelEntry>) -> Vec<String> {
    let is_its = |name: &String| called(entries, name).is_some_and(|it| Arc::ptr_eq(it, entry));
    entry.names().into_iter().filter(is_its).collect()
}

impl ModelEntry {
    /// A model that is not loaded yet.
    pub fn new(configured: Vec<String>, load: LoadModel) -> Self {
        Self {
            configured,
            load: Some(load),
            now: RwLock::new(Now {
                state: ModelState::Unloaded,
                model: None,
                reason: None,
            }),
        }
    }

    /// A model that is already loaded.
    pub fn ready(model: Arc<ServedModel>) -> Self {
        Self {
            configured: model.names.clone(),
            load: None,
            now: RwLock::new(Now {
                state: ModelState::Ready,
                model: Some(model),
                reason: None,
            }),
        }
    }

    pub fn state(&self) -> ModelState {
        self.now().state
    }

    /// Why it failed, if it did.
    pub fn reason(&self) -> Option<String> {
        self.now().reason
    }

    /// Present while its engine exists, even if it cannot take requests.
    pub fn model(&self) -> Option<Arc<ServedModel>> {
        self.now().model
    }

    /// The names it reports; if others report them too, see [`Models::names_of`].
    pub fn names(&self) -> Vec<String> {
        self.model()
            .map_or_else(|| self.configured.clone(), |model| model.names.clone())
    }

    /// The name that responses carry.
    pub fn name(&self) -> String {
        self.names().first().cloned().unwrap_or_default()
    }

    /// The model, if it can take requests now.
    ///
    /// # Errors
    ///
    /// If the model is being loaded, is suspended, failed or was unloaded.
    pub fn serving(&self) -> Result<Arc<ServedModel>, ApiError> {
        let now = self.now();
        match (now.state, now.model) {
            (ModelState::Ready, Some(model)) => Ok(model),
            _ => Err(self.unavailable()),
        }
    }

    /// Why it does not take requests.
    pub fn unavailable(&self) -> ApiError {
        let Now { state, reason, .. } = self.now();
        let name = self.name();
        let message = match state {
            ModelState::Loading | ModelState::Ready => {
                format!("the model {name:?} is still being loaded")
            }
            ModelState::FallingAsleep | ModelState::Asleep => {
                format!("the model {name:?} is sleeping; POST /admin/models/wake wakes it")
            }
            ModelState::Waking => format!("the model {name:?} is waking up"),
            ModelState::Unloading => format!("the model {name:?} is being unloaded"),
            ModelState::Unloaded => {
                format!("the model {name:?} is not loaded; POST /admin/models/load loads it")
            }
            ModelState::Failed => {
                let reason = reason.as_deref().unwrap_or("see the server's log");
                format!("the model {name:?} could not be loaded: {reason}")
            }
        };
        ApiError::new(state.code(), message)
    }

    /// Leaves its engine unchanged.
    pub fn set_state(&self, state: ModelState) {
        self.write(|now| {
            now.state = state;
            now.reason = None;
        });
    }

    pub fn set_ready(&self, model: Arc<ServedModel>) {
        self.write(|now| {
            *now = Now {
                state: ModelState::Ready,
                model: Some(model),
                reason: None,
            };
        });
    }

    /// Loads the model; blocks. The entry records the outcome.
    ///
    /// # Errors
    ///
    /// Why the model cannot be launched; `None` if it was given without a way to load it.
    pub fn load(&self) -> Result<(), Option<LaunchError>> {
        let Some(load) = &self.load else {
            self.set_gone(Some("it cannot be loaded again".to_owned()));
            return Err(None);
        };
        self.set_state(ModelState::Loading);
        match load() {
            Ok(model) => {
                self.set_ready(Arc::new(model));
                Ok(())
            }
            Err(error) => {
                self.set_gone(Some(error.to_string()));
                Err(Some(error))
            }
        }
    }

    /// Its engine has ended or was never started.
    pub fn set_gone(&self, reason: Option<String>) {
        self.write(|now| {
            *now = Now {
                state: if reason.is_some() {
                    ModelState::Failed
                } else {
                    ModelState::Unloaded
                },
                model: None,
                reason,
            };
        });
    }

    fn now(&self) -> Now {
        self.now
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn write(&self, change: impl FnOnce(&mut Now)) {
        change(&mut self.now.write().unwrap_or_else(PoisonError::into_inner));
    }
}
