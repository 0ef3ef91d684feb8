//! Queries and names in paths; what cannot be read is refused as other fields are.

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use crate::server::error::ApiError;

/// The query of a request.
pub struct Asked<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        match query {
            Ok(Query(asked)) => Ok(Self(asked)),
            Err(error) => Err(ApiError::invalid("query", error.body_text())),
        }
    }
}

/// The name or id in a path.
pub struct InPath(pub String);

impl<S: Send + Sync> FromRequestParts<S> for InPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        match path {
            Ok(Path(name)) => Ok(Self(name)),
            Err(error) => Err(ApiError::invalid("path", error.body_text())),
        }
    }
}
