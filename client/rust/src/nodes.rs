//! Which node to ask: the known addresses, the channels to them, and who leads.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::connector::Connector;
use crate::error::Error;

/// A normalised address, `http://host:port`.
pub(crate) type Address = Arc<str>;

/// A connection that takes longer is given up; the next node may be nearer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection whose peer says nothing to a ping for this long is dead (a partition sends no reset).
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a node that failed is passed over while there are others.
const PENALTY: Duration = Duration::from_secs(1);
/// Room for answers on the way, so that a large page does not stop a stream of small answers.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Whom a call would like to reach. Every node answers every call; the leader just saves a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The leader, as far as it is known.
    Leader,
    /// The given nodes in turn.
    Spread,
    /// The first given node and no other: the call is about that very node.
    First,
}

/// The known nodes. Shared by all calls of a client; no lock is held over an await.
pub(crate) struct Nodes {
    given: Vec<Address>,
    connector: Arc<dyn Connector>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    leader: Option<Address>,
    /// The node that answered last: as good as any while no leader is known, and its channel is open.
    preferred: Option<Address>,
    turn: usize,
    channels: HashMap<Address, Channel>,
    down: HashMap<Address, Instant>,
    /// Nodes that did not even refuse a connection. Followers may name such a node as the leader until they elect anew;
    /// following them each time would cost a connection's time-out.
    silent: HashMap<Address, Instant>,
}

impl Nodes {
    /// Normalises the addresses. Connects nowhere yet.
    pub(crate) fn new(endpoints: Vec<String>, connector: Arc<dyn Connector>) -> Result<Self, Error> {
        let mut given = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let address = normalise(&endpoint)?;
            if !given.contains(&address) {
                given.push(address);
            }
        }
        if given.is_empty() {
            return Err(Error::InvalidEndpoint { endpoint: String::new(), why: "no address was given".into() });
        }
        // Clients that start together spread over the nodes.
        let turn = rand::random_range(0..given.len());
        Ok(Self { given, connector, state: Mutex::new(State { turn, ..State::default() }) })
    }

    /// The same nodes with channels of its own, for another runtime.
    pub(crate) fn fork(&self) -> Self {
        let turn = rand::random_range(0..self.given.len());
        Self {
            given: self.given.clone(),
            connector: Arc::clone(&self.connector),
            state: Mutex::new(State { turn, ..State::default() }),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.given.len()
    }

    /// Whether these are all of the nodes.
    pub(crate) fn are_all(&self, addresses: &HashSet<Address>) -> bool {
        self.given.iter().all(|address| addresses.contains(address))
    }

    /// The address to try next. `avoid` is passed over where there is another.
    pub(crate) fn pick(&self, route: Route, avoid: Option<&Address>) -> Address {
        let mut state = self.state.lock();
        if route == Route::First {
            return Arc::clone(&self.given[0]);
        }
        if route == Route::Leader {
            let known = [state.leader.clone(), state.preferred.clone()];
            if let Some(address) = known.into_iter().flatten().find(|address| Some(address) != avoid) {
                return address;
            }
        }
        let now = Instant::now();
        for _ in 0..self.given.len() {
            let address = &self.given[state.turn % self.given.len()];
            state.turn = state.turn.wrapping_add(1);
            let is_down = state.down.get(address).is_some_and(|until| *until > now);
            if !is_down && Some(address) != avoid {
                return Arc::clone(address);
            }
        }
        // All are down or avoided: whoever is next in turn.
        let address = Arc::clone(&self.given[state.turn % self.given.len()]);
        state.turn = state.turn.wrapping_add(1);
        address
    }

    /// A channel to the address: the one that is open, or a new one. The error says why there is none; then nothing was
    /// sent.
    pub(crate) async fn channel(&self, address: &Address) -> Result<Channel, String> {
        if let Some(channel) = self.state.lock().channels.get(address) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(address.to_string())
            .map_err(|error| error.to_string())?
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let connector = Arc::clone(&self.connector);
        let dial = tower::service_fn(move |uri: Uri| {
            let connecting = connector.connect(uri);
            async move { connecting.await.map(TokioIo::new) }
        });
        let channel = match timeout(CONNECT_TIMEOUT, endpoint.connect_with_connector(dial)).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(format!("{address}: {}", chain(&error))),
            Err(_) => {
                self.state.lock().silent.insert(Arc::clone(address), Instant::now() + PENALTY);
                return Err(format!("{address}: no connection within {CONNECT_TIMEOUT:?}"));
            }
        };
        let mut state = self.state.lock();
        state.silent.remove(address);
        state.channels.insert(Arc::clone(address), channel.clone());
        Ok(channel)
    }

    /// The node answered.
    pub(crate) fn answered(&self, address: &Address) {
        let mut state = self.state.lock();
        state.down.remove(address);
        if state.preferred.as_ref() != Some(address) {
            state.preferred = Some(Arc::clone(address));
        }
    }

    /// The node, or the way to it, is broken: close the channel, forget that it leads, pass it over for a while.
    pub(crate) fn failed(&self, address: &Address) {
        let mut state = self.state.lock();
        state.channels.remove(address);
        state.down.insert(Arc::clone(address), Instant::now() + PENALTY);
        if state.leader.as_ref() == Some(address) {
            state.leader = None;
        }
        if state.preferred.as_ref() == Some(address) {
            state.preferred = None;
        }
    }

    /// A node named the leader. An address that cannot be one, or was silent just now, is ignored.
    pub(crate) fn hint(&self, leader: &str) -> Option<Address> {
        let address = normalise(leader).ok()?;
        let mut state = self.state.lock();
        if state.silent.get(&address).is_some_and(|until| *until > Instant::now()) {
            return None;
        }
        state.leader = Some(Arc::clone(&address));
        Some(address)
    }

    /// The node said that it does not lead.
    pub(crate) fn does_not_lead(&self, address: &Address) {
        let mut state = self.state.lock();
        if state.leader.as_ref() == Some(address) {
            state.leader = None;
        }
    }

    /// The given addresses, for messages.
    pub(crate) fn names(&self) -> String {
        self.given.join(", ")
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nodes").field("given", &self.given).finish_non_exhaustive()
    }
}

fn normalise(endpoint: &str) -> Result<Address, Error> {
    let invalid = |why: &str| Error::InvalidEndpoint { endpoint: endpoint.to_owned(), why: why.to_owned() };
    let trimmed = endpoint.trim().trim_end_matches('/');
    let full = if trimmed.contains("://") { trimmed.to_owned() } else { format!("http://{trimmed}") };
    let uri: Uri = full.parse().map_err(|error| invalid(&format!("{error}")))?;
    if uri.scheme_str() != Some("http") {
        return Err(invalid("only http is served"));
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(invalid("it has no host"));
    }
    if uri.port_u16().is_none() {
        return Err(invalid("it has no port"));
    }
    Ok(Arc::from(full))
}

/// The error and its causes in one line; tonic's own text is only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connector::TcpConnector;

    fn nodes(endpoints: &[&str]) -> Nodes {
        let endpoints = endpoints.iter().map(|e| (*e).to_owned()).collect();
        Nodes::new(endpoints, Arc::new(TcpConnector)).expect("valid addresses")
    }

    #[test]
    fn addresses_are_normalised_and_checked() {
        assert_eq!(&*normalise("a:1").expect("short"), "http://a:1");
        assert_eq!(&*normalise(" http://a:1/ ").expect("long"), "http://a:1");
        assert_eq!(&*normalise("[::1]:7").expect("v6"), "http://[::1]:7");
        for bad in ["", "a", "http://a", "https://a:1", "a b:1", "http://:1"] {
            let error = normalise(bad).expect_err(bad);
            assert!(matches!(error, Error::InvalidEndpoint { .. }), "{bad}: {error}");
        }
        assert!(Nodes::new(Vec::new(), Arc::new(TcpConnector)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_leader_is_remembered_until_it_fails() {
        let nodes = nodes(&["a:1", "b:1"]);
        let leader = nodes.hint("c:1").expect("an address");
        assert_eq!(nodes.pick(Route::Leader, None), leader);
        assert_ne!(nodes.pick(Route::Spread, None), leader);
        assert_ne!(nodes.pick(Route::Leader, Some(&leader)), leader);
        nodes.failed(&leader);
        assert_ne!(nodes.pick(Route::Leader, None), leader);
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_failed_is_passed_over_for_a_while() {
        let nodes = nodes(&["a:1", "b:1"]);
        let bad = nodes.pick(Route::Spread, None);
        nodes.failed(&bad);
        for _ in 0..4 {
            assert_ne!(nodes.pick(Route::Spread, None), bad);
        }
        tokio::time::advance(PENALTY).await;
        let picked: Vec<_> = (0..2).map(|_| nodes.pick(Route::Spread, None)).collect();
        assert!(picked.contains(&bad), "{picked:?}");
    }

    /// A network that swallows everything.
    struct Void;

    impl Connector for Void {
        fn connect(&self, _: Uri) -> futures::future::BoxFuture<'static, std::io::Result<Box<dyn crate::Io>>> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_to_a_silent_node_is_not_followed_for_a_while() {
        let nodes = Nodes::new(vec!["a:1".into(), "b:1".into()], Arc::new(Void)).expect("valid addresses");
        let leader = nodes.hint("b:1").expect("an address");
        let why = nodes.channel(&leader).await.expect_err("nobody answers");
        assert!(why.contains("no connection within 1s"), "{why}");
        nodes.failed(&leader);
        assert_eq!(nodes.hint("b:1"), None);
        tokio::time::advance(PENALTY).await;
        assert_eq!(nodes.hint("b:1"), Some(leader));
    }

    #[test]
    fn a_call_about_one_node_goes_nowhere_else() {
        let nodes = nodes(&["a:1", "b:1"]);
        nodes.hint("b:1").expect("an address");
        for _ in 0..3 {
            assert_eq!(&*nodes.pick(Route::First, None), "http://a:1");
        }
    }
}
