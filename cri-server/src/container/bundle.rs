//! Interim.
use super::{Container, User};
use crate::{
    app::App,
    error::{Classify, Kind},
};
/// Why.
#[derive(Debug, thiserror::Error)]
#[error("bundle")]
pub struct BundleError;
impl Classify for BundleError {
    fn kind(&self) -> Kind {
        Kind::Internal
    }
}
pub(super) async fn write(_: &App, _: &Container) -> Result<User, BundleError> {
    Err(BundleError)
}
