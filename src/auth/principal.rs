//! What a client may see and do.

use std::future::pending;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::counted::Counted;
use crate::event::{Columns, Filter, Timestamp};
use crate::wire::Refusal;

/// What a client hears that shows no key, or one that is unknown.
pub(super) const MISSING: &str = "Missing or wrong API key";

/// What a client hears whose key ends while it waits for an answer.
pub const KEY_OVER: &str = "The API key was revoked or has expired";

/// What a client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// To publish events.
    Publish,
    /// To get events over a WebSocket or an event stream: live, and what is stored before that.
    Subscribe,
    /// To read what is stored.
    Query,
    /// To delete.
    Admin,
    /// To read figures about the server itself.
    Metrics,
}

impl Scope {
    pub const ALL: [Self; 5] = [Self::Publish, Self::Subscribe, Self::Query, Self::Admin, Self::Metrics];

    pub fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Query => "query",
            Self::Admin => "admin",
            Self::Metrics => "metrics",
        }
    }
}

/// What the key of a request gives a right to. `Keys::authorize` alone decides it, and whatever acts for a client gets it
/// from there.
#[derive(Debug, Clone)]
pub enum Principal {
    /// No key was asked for, because the request sees no event.
    Anonymous,
    /// Every event, and every request: the `API_KEY` was shown, or the server asks for no key.
    Everything,
    /// What a named key or a token grants.
    Granted(Arc<Grant>),
}

/// Whose rights they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A named key.
    Key { id: Arc<str>, name: Box<str> },
    /// The `sub` of a token, and its `iss` if it has one.
    Subject { subject: Arc<str>, issuer: Option<Box<str>> },
}

impl Holder {
    /// Whom limits count.
    pub fn counted(&self) -> Counted {
        match self {
            Self::Key { id, .. } => Counted::Key(id.clone()),
            Self::Subject { subject, .. } => Counted::Subject(subject.clone()),
        }
    }
}

/// The rights of one key, or of one token.
#[derive(Debug)]
pub struct Grant {
    pub holder: Holder,
    pub scopes: Vec<Scope>,
    /// Which events there are for this client; `None`: all.
    pub pins: Option<Filter>,
    /// Where the names of its subscriptions and its idempotency keys belong.
    pub space: Box<str>,
    is_revoked: AtomicBool,
    /// In microseconds; [`NEVER`] if it does not expire.
    expires: AtomicI64,
    /// It was revoked or renewed.
    changed: Notify,
}

const NEVER: i64 = i64::MAX;

/// What the client of a socket hears of the end of its rights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// They end at this time, unless they are renewed.
    Expires(Timestamp),
    /// They have ended.
    Over,
}

impl Grant {
    pub fn new(
        holder: Holder,
        scopes: Vec<Scope>,
        pins: Option<Filter>,
        space: &str,
        expires: Option<Timestamp>,
    ) -> Self {
        let expires = AtomicI64::new(expires.map_or(NEVER, |expires| expires.0));
        let (is_revoked, changed) = (AtomicBool::new(false), Notify::new());
        Self { holder, scopes, pins, space: space.into(), is_revoked, expires, changed }
    }

    /// Ends what clients do with it. Its open connections end within moments.
    pub fn revoke(&self) {
        self.is_revoked.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Takes over when another grant ends, if that is the only thing in which it differs.
    ///
    /// # Errors
    /// A sentence for the client.
    pub(super) fn renew(&self, with: &Self) -> Result<(), &'static str> {
        let is_same = self.holder == with.holder
            && self.scopes == with.scopes
            && self.pins == with.pins
            && self.space == with.space;
        if !is_same {
            return Err("The token is not the same as before: only its end may be another");
        }
        if self.is_over() {
            return Err("The token has expired");
        }
        self.expires.store(with.expires.load(Ordering::Acquire), Ordering::Release);
        self.changed.notify_waiters();
        Ok(())
    }

    pub fn expires(&self) -> Option<Timestamp> {
        Some(Timestamp(self.expires.load(Ordering::Acquire))).filter(|expires| expires.0 != NEVER)
    }

    pub fn has_expired(&self) -> bool {
        self.expires().is_some_and(|expires| expires <= Timestamp::now())
    }

    fn is_over(&self) -> bool {
        self.is_revoked.load(Ordering::Acquire) || self.has_expired()
    }

    /// How long to wait before the clock is looked at again: it may be set, or the machine may sleep.
    const LOOK_AGAIN: Duration = Duration::from_secs(30);

    /// How long before its end a client hears of it.
    const NOTICE: Duration = Duration::from_secs(30);

    /// Resolves once the key is revoked or has expired, and once before that: [`Self::NOTICE`] before it expires, unless
    /// the client was told of that time.
    async fn notice(&self, told: Option<Timestamp>) -> Notice {
        loop {
            // Enabled before the look at what it tells of, so that no change is missed.
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.is_over() {
                return Notice::Over;
            }
            let Some(expires) = self.expires() else {
                changed.await;
                continue;
            };
            let left = expires.from_now();
            let wait = match told == Some(expires) {
                true => left,
                false if left <= Self::NOTICE => return Notice::Expires(expires),
                false => left - Self::NOTICE,
            };
            tokio::select! {
                () = changed => {}
                () = sleep(wait.min(Self::LOOK_AGAIN)) => {}
            }
        }
    }
}

impl Principal {
    /// Whether the client may make such a request.
    ///
    /// # Errors
    /// `ScopeMissing`.
    pub fn may(&self, scope: Scope) -> Result<(), Refusal> {
        match self {
            Self::Granted(grant) if !grant.scopes.contains(&scope) => Err(Refusal::ScopeMissing(scope.name())),
            _ => Ok(()),
        }
    }

    /// What remains of a filter for this principal. Every filter of a client goes through here before it selects events.
    ///
    /// # Errors
    /// `Unauthorized` for a principal without any right.
    pub fn narrow(&self, filter: Filter) -> Result<Filter, Refusal> {
        match self {
            Self::Anonymous => Err(Refusal::Unauthorized(MISSING)),
            Self::Everything => Ok(filter),
            Self::Granted(grant) => Ok(grant.pins.as_ref().map_or(filter.clone(), |pins| filter.within(pins))),
        }
    }

    /// Which events there are for this client; `None`: all.
    pub fn pins(&self) -> Option<&Filter> {
        match self {
            Self::Granted(grant) => grant.pins.as_ref(),
            Self::Anonymous | Self::Everything => None,
        }
    }

    /// Whether there is such an event for this client.
    pub fn sees(&self, event: &Columns<'_>) -> bool {
        self.pins().is_none_or(|pins| pins.matches(event))
    }

    /// Checks that figures of all events may be shown.
    ///
    /// # Errors
    /// `Pinned`.
    pub fn sees_all(&self) -> Result<(), Refusal> {
        match self.pins() {
            Some(_) => Err(Refusal::Pinned("The key is for some events only, and these figures count all".into())),
            None => Ok(()),
        }
    }

    /// Where the names of its subscriptions and its idempotency keys belong. The rows of the time before there were named
    /// keys are in the empty one.
    pub fn space(&self) -> &str {
        match self {
            Self::Granted(grant) => &grant.space,
            Self::Anonymous | Self::Everything => "",
        }
    }

    /// Whether it sees the subscriptions of every space.
    pub fn sees_every_space(&self) -> bool {
        match self {
            Self::Anonymous => false,
            Self::Everything => true,
            Self::Granted(grant) => grant.pins.is_none() && grant.scopes.contains(&Scope::Admin),
        }
    }

    /// Whether the key has been revoked or has expired since it was shown.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Granted(grant) if grant.is_over())
    }

    /// Resolves once the key is revoked or has expired. Cancel-safe.
    pub async fn over(&self) {
        let mut told = None;
        while let Notice::Expires(at) = self.notice(told).await {
            told = Some(at);
        }
    }

    /// Resolves when there is something to be heard of the end of these rights, 30 s before it and at it. `told`: the time
    /// of the last notice. Cancel-safe.
    pub async fn notice(&self, told: Option<Timestamp>) -> Notice {
        match self {
            Self::Granted(grant) => grant.notice(told).await,
            Self::Anonymous | Self::Everything => pending().await,
        }
    }
}

/// The client of one request or one WebSocket.
#[derive(Debug, Clone)]
pub struct Caller {
    pub counted: Counted,
    /// Its address, as far as trusted proxies say it.
    pub from: IpAddr,
    pub principal: Principal,
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn granted(expires: Option<Timestamp>) -> Principal {
        Principal::Granted(Arc::new(Grant::new(
            Holder::Subject { subject: "s".into(), issuer: None },
            vec![Scope::Query],
            None,
            "space",
            expires,
        )))
    }

    #[test]
    fn a_grant_ends_when_it_is_revoked_or_expires() {
        let mut cx = Context::from_waker(Waker::noop());
        let principal = granted(None);
        let Principal::Granted(grant) = &principal else { unreachable!() };
        let mut over = pin!(principal.over());
        assert!(over.as_mut().poll(&mut cx).is_pending() && !principal.is_over());
        grant.revoke();
        assert!(over.as_mut().poll(&mut cx).is_ready() && principal.is_over());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let expired = granted(Some(Timestamp(1)));
        runtime.block_on(expired.over());
        assert!(expired.is_over() && !granted(Some(Timestamp(i64::MAX))).is_over());
    }
}
