//! Who asks for a stream over CRI gets an address with a token, which opens that stream once and within a minute.

use std::{
    collections::HashMap,
    io,
    sync::Mutex,
    time::{Duration, Instant},
};

use super::Request;
use crate::{id, work::lock};

/// How long a token is good.
const LIFE: Duration = Duration::from_secs(60);
/// Most tokens at a time.
const MAX: usize = 1000;

/// Streams that were asked for and not opened yet.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<HashMap<String, (Request, Instant)>>);

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Clients ask and do not come.
    #[error("{MAX} streams were asked for within a minute and not opened")]
    TooMany,
    /// No random numbers.
    #[error("make a token")]
    Random(#[source] io::Error),
}

impl Tokens {
    /// Keeps a request; answers its token.
    pub(super) fn insert(&self, request: Request, now: Instant) -> Result<String, TokenError> {
        let mut token = id::random().map_err(TokenError::Random)?;
        // 128 bits are enough, and addresses are logged.
        token.truncate(32);
        let mut requests = lock(&self.0);
        requests.retain(|_, (_, until)| *until > now);
        if requests.len() >= MAX {
            return Err(TokenError::TooMany);
        }
        requests.insert(token.clone(), (request, now + LIFE));
        Ok(token)
    }

    /// The request of a token, once.
    pub(super) fn take(&self, token: &str, now: Instant) -> Option<Request> {
        let (request, until) = lock(&self.0).remove(token)?;
        (until > now).then_some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request::PortForward { sandbox: "a".to_owned(), ports: Vec::new() }
    }

    #[test]
    fn a_token_opens_once_and_for_a_minute() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = tokens.insert(request(), now).unwrap();
        assert_eq!(token.len(), 32);
        assert!(tokens.take("", now).is_none());
        assert!(tokens.take(&token, now).is_some());
        assert!(tokens.take(&token, now).is_none());
        let token = tokens.insert(request(), now).unwrap();
        assert!(tokens.take(&token, now + LIFE).is_none());
    }

    #[test]
    fn their_number_is_bounded_and_old_ones_make_room() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let all: std::collections::HashSet<_> = (0..MAX).map(|_| tokens.insert(request(), now).unwrap()).collect();
        assert_eq!(all.len(), MAX);
        assert!(matches!(tokens.insert(request(), now), Err(TokenError::TooMany)));
        assert!(tokens.insert(request(), now + LIFE).is_ok());
        assert_eq!(lock(&tokens.0).len(), 1);
    }
}
