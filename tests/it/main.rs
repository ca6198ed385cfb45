//! The contract, held against the real binary over real sockets and real files, one module a behaviour.
//!
//! Every test starts a server of its own on a free port in a temporary folder and speaks to it in raw
//! bytes written here, so that the server's frame and message code is never its own judge.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop where it stands")]

#[path = "../support/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of faults")]
mod support;

mod access;
mod ack;
mod audit;
mod browser;
mod claims;
mod class;
mod cli;
mod cloudevents;
mod config;
mod conflate;
mod disk;
mod documents;
mod durable;
mod erasure;
mod event;
mod filter;
mod group;
mod h2;
mod house;
mod http;
mod idempotency;
mod imports;
mod interface;
mod keys;
mod lag;
mod metrics;
mod monitoring;
mod proxies;
mod publish;
mod query;
mod reference;
mod rest_cursor;
mod resume;
mod series;
mod shutdown;
mod sse;
mod subscribe;
mod supervisor;
mod tls;
mod tokens;
mod tutorial;
mod upgrade;
