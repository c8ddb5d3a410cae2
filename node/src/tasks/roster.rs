//! What the leader knows of sessions that is not in the log: where their streams are, when they were last heard, and
//! which of their slots are free. It picks the grants.
//!
//! Invariants:
//! - A slot is *taken* by an attempt that the state knows, *reserved* by a grant that is proposed and not settled, or
//!   free. Nothing is granted to a session without a stream, or to one whose end is proposed.
//! - A task is in at most one grant that is not settled: the *overlay*. It is dropped whole when the leader resynchronises.
//! - Being wrong here is harmless: the state machine refuses a grant that has no slot or whose task is not ready.
//! - A session is ended by proposal only, never by this book. Its end is proposed in two cases only: its agent closes it on
//!   the stream that it has now, or nothing was heard of it for its whole time to live.
//!
//! Why the end of a stream ends no session, nor hastens its end. An agent trusts in its lease for almost a time to live
//! from when it *sent* the last heartbeat that was acknowledged. Every heartbeat that is acknowledged was *heard* here, or
//! by an earlier leader that a quorum still followed then, and a later leader counts from its own beginning; so a time to
//! live after `heard` the agent has stopped, whatever the network did. Nothing that is seen of a stream gives an earlier
//! moment. A reset, an end without a word or a keep-alive that is not answered come from a dead process, and just as well
//! from a proxy, a firewall or a cut in front of a living one, which may learn of it late or never. Only the agent itself
//! can say that its handlers have stopped, and it says so by closing the session. Whoever wants the tasks of a killed
//! agent back sooner gives it a shorter time to live.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use quorate_state::control::{Command, Control, Effect, SessionView};
use quorate_state::{Operation, SessionId, TaskId, Token};
use tokio::time::Instant;

/// After how long the expiry of a session is proposed again if it is still there.
const EXPIRY_RETRY: Duration = Duration::from_secs(2);
/// A leader that has not looked at its book for so long was stopped or starved, and the sessions are not to blame.
const STALL: Duration = Duration::from_millis(500);

/// One relay stream, as this leader numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LinkId(pub(super) u64);

/// Where a session's stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) link: LinkId,
    pub(super) attachment: u64,
}

/// A committed attempt to be sent to its session's agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    pub(super) link: LinkId,
    pub(super) session: SessionId,
    pub(super) task: TaskId,
    pub(super) token: Token,
}

/// What came of a session's attach.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Attachment {
    /// The stream is the session's now.
    Current {
        ttl: Duration,
        /// Held attempts that are not the session's any more.
        lost: Vec<Token>,
        /// Attempts of the session that its agent does not hold: it never got them.
        missing: Vec<Delivery>,
        /// Where the session was before, if that was another link.
        displaced: Option<Route>,
    },
    /// A later stream of the session is known.
    Superseded { attachment: u64 },
    /// The session's end is proposed, which cannot be taken back. There is no answer but the end: the agent must not believe
    /// that it may go on, nor that it is over before the log says so.
    Ending,
    /// There is no such session.
    Unknown,
}

#[derive(Debug)]
struct Running {
    token: Token,
    /// An entry under way ends it, so that its slot can be given away behind it.
    closing: bool,
}

#[derive(Debug)]
struct Seat {
    roles: Vec<Arc<str>>,
    slots: u32,
    ttl: Duration,
    running: HashMap<TaskId, Running>,
    closing: u32,
    reserved: u32,
    /// The highest attachment that is in the log, or on its way there.
    attachment: u64,
    route: Option<Route>,
    /// When the agent last gave a sign of life. What it was acknowledged it sent before that.
    heard: Instant,
    /// Its agent wants no further grants.
    draining: bool,
    /// When its end was last proposed.
    ending: Option<Instant>,
}

impl Seat {
    fn free(&self) -> u32 {
        if self.route.is_none() || self.draining || self.ending.is_some() {
            return 0;
        }
        let taken = u32::try_from(self.running.len()).unwrap_or(u32::MAX) - self.closing + self.reserved;
        self.slots.saturating_sub(taken)
    }

    fn is_due(&self, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at);
        since(self.heard) >= self.ttl && self.ending.is_none_or(|at| since(at) >= EXPIRY_RETRY)
    }

    fn release(&mut self, task: TaskId, token: Token) -> bool {
        if self.running.get(&task).is_none_or(|running| running.token != token) {
            return false;
        }
        if self.running.remove(&task).is_some_and(|running| running.closing) {
            self.closing -= 1;
        }
        true
    }
}

/// Sessions of one role that may have a free slot, in the order in which they are asked. May hold some that have none,
/// or are gone: they drop out when they are met.
#[derive(Debug, Default)]
struct Idle {
    queue: VecDeque<SessionId>,
    listed: HashSet<SessionId>,
}

impl Idle {
    /// Reserves a slot of the next session in turn that has one.
    fn reserve(&mut self, seats: &mut HashMap<SessionId, Seat>) -> Option<SessionId> {
        while let Some(session) = self.queue.pop_front() {
            if let Some(seat) = seats.get_mut(&session).filter(|seat| seat.free() > 0) {
                seat.reserved += 1;
                if seat.free() > 0 {
                    self.queue.push_back(session);
                } else {
                    self.listed.remove(&session);
                }
                return Some(session);
            }
            self.listed.remove(&session);
        }
        None
    }
}

/// The book.
#[derive(Debug)]
pub(super) struct Roster {
    seats: HashMap<SessionId, Seat>,
    /// Which session runs a task.
    holders: HashMap<TaskId, SessionId>,
    overlay: HashMap<TaskId, SessionId>,
    /// What `fill` appended to entries that are not settled, oldest first.
    unsettled: VecDeque<Vec<TaskId>>,
    idle: BTreeMap<Arc<str>, Idle>,
    looked: Instant,
}

impl Roster {
    /// The book of a new leader: every session gets one fresh time to live, and is nowhere yet.
    pub(super) fn new(control: &Control, now: Instant) -> Roster {
        let mut roster = Roster {
            seats: HashMap::new(),
            holders: HashMap::new(),
            overlay: HashMap::new(),
            unsettled: VecDeque::new(),
            idle: BTreeMap::new(),
            looked: now,
        };
        roster.resynchronise(control, now);
        roster
    }

    /// Takes sessions and attempts anew from the state, after effects were missed. Streams stay where they are. Returns
    /// the attempts that became known just now.
    pub(super) fn resynchronise(&mut self, control: &Control, now: Instant) -> Vec<Delivery> {
        self.overlay.clear();
        self.holders.clear();
        // Settlements of the entries under way are still to come, and find nothing.
        self.unsettled.iter_mut().for_each(Vec::clear);
        let mut present = HashSet::new();
        let mut missing = Vec::new();
        for view in control.sessions() {
            present.insert(view.id);
            self.admit(&view, now);
            let Some(seat) = self.seats.get_mut(&view.id) else { continue };
            let before = std::mem::take(&mut seat.running);
            (seat.closing, seat.reserved) = (0, 0);
            for &(task, token) in &view.running {
                self.holders.insert(task, view.id);
                seat.running.insert(task, Running { token, closing: false });
                let known = before.get(&task).is_some_and(|running| running.token == token);
                if let (false, Some(route)) = (known, seat.route) {
                    missing.push(Delivery { link: route.link, session: view.id, task, token });
                }
            }
            self.list(view.id);
        }
        self.seats.retain(|session, _| present.contains(session));
        missing
    }

    /// Makes a seat for a session if it has none.
    pub(super) fn admit(&mut self, view: &SessionView, now: Instant) {
        self.seats.entry(view.id).or_insert_with(|| Seat {
            roles: view.roles.clone(),
            slots: view.slots,
            ttl: Duration::from_millis(view.ttl_ms),
            running: HashMap::new(),
            closing: 0,
            reserved: 0,
            attachment: view.attachment,
            route: None,
            heard: now,
            draining: false,
            ending: None,
        });
    }

    /// Whether the session has a seat.
    pub(super) fn knows(&self, session: SessionId) -> bool {
        self.seats.contains_key(&session)
    }

    /// How many sessions there are.
    pub(super) fn len(&self) -> usize {
        self.seats.len()
    }

    /// The session goes on by this stream once the log says so. From now on a close by an earlier one counts no more.
    pub(super) fn goes_on(&mut self, session: SessionId, attachment: u64) {
        if let Some(seat) = self.seats.get_mut(&session) {
            seat.attachment = seat.attachment.max(attachment);
        }
    }

    /// A node says that it holds a stream of the session, whose agent has the attempts `holding`. A later leader knows which
    /// streams were left before only if the log has the number of this one.
    pub(super) fn attach(
        &mut self,
        link: LinkId,
        session: SessionId,
        attachment: u64,
        holding: &[Token],
        now: Instant,
    ) -> Attachment {
        let Some(seat) = self.seats.get_mut(&session) else { return Attachment::Unknown };
        if attachment < seat.attachment {
            return Attachment::Superseded { attachment: seat.attachment };
        }
        let displaced = seat.route.filter(|route| route.link != link);
        seat.route = Some(Route { link, attachment });
        if seat.ending.is_some() {
            return Attachment::Ending;
        }
        seat.heard = now;
        let held: HashSet<Token> = holding.iter().copied().collect();
        let running: HashSet<Token> = seat.running.values().map(|running| running.token).collect();
        let lost = holding.iter().copied().filter(|token| !running.contains(token)).collect();
        let mut missing: Vec<Delivery> = seat
            .running
            .iter()
            .filter(|(_, running)| !held.contains(&running.token) && !running.closing)
            .map(|(&task, running)| Delivery { link, session, task, token: running.token })
            .collect();
        missing.sort_by_key(|delivery| delivery.token);
        let ttl = seat.ttl;
        self.list(session);
        Attachment::Current { ttl, lost, missing, displaced }
    }

    /// A node says that the stream broke: nothing can be sent to the agent until it has another. Ignored unless it is the
    /// session's newest. It is no sign that the agent is dead, so the session's time runs on as before.
    pub(super) fn detach(&mut self, link: LinkId, session: SessionId, attachment: u64) {
        if let Some(seat) = self.seats.get_mut(&session)
            && seat.route == Some(Route { link, attachment })
        {
            seat.route = None;
        }
    }

    /// A node's relay stream broke. Its agents find another node, or the node comes back, within their time to live.
    pub(super) fn unlink(&mut self, link: LinkId) {
        for seat in self.seats.values_mut() {
            if seat.route.is_some_and(|route| route.link == link) {
                seat.route = None;
            }
        }
    }

    /// A sign of life on a stream, which also says whether the agent is draining. Returns whether it renews the session: it
    /// came on the current stream, and the session's end is not proposed. That proposal cannot be taken back, so a heartbeat
    /// that comes after it must not be acknowledged: the agent would trust in a lease that it has no longer.
    pub(super) fn beat(
        &mut self,
        link: LinkId,
        session: SessionId,
        attachment: u64,
        draining: bool,
        now: Instant,
    ) -> bool {
        match self.seats.get_mut(&session) {
            Some(seat) if seat.route == Some(Route { link, attachment }) && seat.ending.is_none() => {
                seat.heard = now;
                let wants_again = seat.draining && !draining;
                seat.draining = draining;
                if wants_again {
                    self.list(session);
                }
                true
            }
            _ => false,
        }
    }

    /// A session's agent said something else than a heartbeat.
    pub(super) fn heard(&mut self, link: LinkId, session: SessionId, now: Instant) {
        if let Some(seat) = self.seats.get_mut(&session)
            && seat.route.is_some_and(|route| route.link == link)
        {
            seat.heard = now;
        }
    }

    /// The agent closes its session. Returns the stream by which it ends, if that is the one that the session has on this link
    /// now and has not begun to leave; then no more is granted to it.
    pub(super) fn close(&mut self, link: LinkId, session: SessionId, attachment: u64, now: Instant) -> Option<u64> {
        #[cfg(feature = "planted")]
        let (link, attachment) = match self.route(session).filter(|_| crate::planted::is("late-close")) {
            Some(route) => (route.link, route.attachment),
            None => (link, attachment),
        };
        match self.seats.get_mut(&session) {
            Some(seat) if seat.route == Some(Route { link, attachment }) && seat.attachment <= attachment => {
                seat.ending = Some(now);
                Some(attachment)
            }
            _ => None,
        }
    }

    /// The sessions whose expiry is to be proposed now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<SessionId> {
        let stalled = now.saturating_duration_since(self.looked);
        self.looked = now;
        if stalled > STALL {
            // Their heartbeats wait behind this very moment.
            for seat in self.seats.values_mut() {
                seat.heard += stalled;
            }
        }
        let mut due = Vec::new();
        for (&session, seat) in &mut self.seats {
            if seat.is_due(now) {
                seat.ending = Some(now);
                due.push(session);
            }
        }
        due.sort_unstable();
        due
    }

    /// Where the session's stream is.
    pub(super) fn route(&self, session: SessionId) -> Option<Route> {
        self.seats.get(&session).and_then(|seat| seat.route)
    }

    /// Whether some session may have a free slot.
    pub(super) fn has_idle(&self) -> bool {
        self.idle.values().any(|idle| !idle.queue.is_empty())
    }

    /// Whether some session of the role may have a free slot.
    pub(super) fn has_idle_for(&self, role: &str) -> bool {
        self.idle.get(role).is_some_and(|idle| !idle.queue.is_empty())
    }

    /// An effect of the log. Returns the attempt to deliver if it is a grant to a session whose stream is known.
    pub(super) fn observe(&mut self, effect: &Effect) -> Option<Delivery> {
        match *effect {
            Effect::Granted { task, session, token, .. } => {
                self.unreserve(task);
                let seat = self.seats.get_mut(&session)?;
                self.holders.insert(task, session);
                // An effect that was in the state already when the book was made may come again.
                if seat.running.insert(task, Running { token, closing: false }).is_some_and(|before| before.closing) {
                    seat.closing -= 1;
                }
                seat.route.map(|route| Delivery { link: route.link, session, task, token })
            }
            Effect::AttemptEnded { session, task, token } | Effect::AttemptLost { session, task, token } => {
                if self.seats.get_mut(&session).is_some_and(|seat| seat.release(task, token)) {
                    self.holders.remove(&task);
                    self.list(session);
                }
                None
            }
            Effect::SessionEnded { session } => {
                self.seats.remove(&session);
                None
            }
            _ => None,
        }
    }

    /// The end of this attempt was refused or is not known: its slot is not free after all.
    pub(super) fn reopen(&mut self, task: TaskId, token: Token) {
        let Some(&session) = self.holders.get(&task) else { return };
        if let Some(seat) = self.seats.get_mut(&session)
            && let Some(running) = seat.running.get_mut(&task)
            && running.token == token
            && running.closing
        {
            running.closing = false;
            seat.closing -= 1;
        }
    }

    /// Appends grants to an entry that is being formed: oldest ready task first, for slots that are free or that the
    /// entry itself frees.
    pub(super) fn fill(&mut self, entry: &mut Vec<Operation<Command>>, room: usize, control: &Control) {
        for operation in entry.iter() {
            if let Command::Complete { task, token, .. } | Command::Fail { task, token, .. } = operation.command {
                self.foresee_end(task, token);
            }
        }
        let overlay = &self.overlay;
        let seats = &mut self.seats;
        let mut roles: Vec<_> = self
            .idle
            .iter_mut()
            .filter(|(_, idle)| !idle.queue.is_empty())
            .map(|(role, idle)| (idle, control.ready(role, None).filter(|task| !overlay.contains_key(task))))
            .collect();
        let mut oldest: BinaryHeap<Reverse<(TaskId, usize)>> = BinaryHeap::new();
        for (number, (_, ready)) in roles.iter_mut().enumerate() {
            oldest.extend(ready.next().map(|task| Reverse((task, number))));
        }
        let mut picked = Vec::new();
        while let Some(Reverse((task, number))) = oldest.pop().filter(|_| picked.len() < room) {
            let (idle, ready) = &mut roles[number];
            // A role without a free session is not asked again.
            let Some(session) = idle.reserve(seats) else { continue };
            picked.push((task, session));
            oldest.extend(ready.next().map(|task| Reverse((task, number))));
        }
        drop(roles);
        if picked.is_empty() {
            return;
        }
        entry.extend(picked.iter().map(|&(task, session)| Operation::new(Command::Grant { task, session })));
        self.overlay.extend(picked.iter().copied());
        self.unsettled.push_back(picked.into_iter().map(|(task, _)| task).collect());
    }

    /// The outcome of the oldest `fill` that appended anything: for each grant whether it was made. `None`: not known.
    /// Grants that were made are still to come as effects. Returns whether a slot became free.
    pub(super) fn settle(&mut self, granted: Option<&[bool]>) -> bool {
        let Some(tasks) = self.unsettled.pop_front() else { return false };
        let mut freed = false;
        for (ordinal, task) in tasks.into_iter().enumerate() {
            if granted.is_none_or(|granted| granted.get(ordinal) != Some(&true)) {
                freed |= self.unreserve(task);
            }
        }
        freed
    }

    fn unreserve(&mut self, task: TaskId) -> bool {
        let Some(session) = self.overlay.remove(&task) else { return false };
        if let Some(seat) = self.seats.get_mut(&session) {
            seat.reserved = seat.reserved.saturating_sub(1);
        }
        self.list(session);
        true
    }

    fn foresee_end(&mut self, task: TaskId, token: Token) {
        let Some(&session) = self.holders.get(&task) else { return };
        if let Some(seat) = self.seats.get_mut(&session)
            && let Some(running) = seat.running.get_mut(&task)
            && running.token == token
            && !running.closing
        {
            running.closing = true;
            seat.closing += 1;
            self.list(session);
        }
    }

    /// Puts the session where `fill` looks, under each of its roles, if it has a free slot.
    fn list(&mut self, session: SessionId) {
        let Some(seat) = self.seats.get(&session).filter(|seat| seat.free() > 0) else { return };
        for role in &seat.roles {
            if !self.idle.contains_key(role) {
                self.idle.insert(role.clone(), Idle::default());
            }
            if let Some(idle) = self.idle.get_mut(role)
                && idle.listed.insert(session)
            {
                idle.queue.push_back(session);
            }
        }
    }
}

#[cfg(test)]
mod tests;
