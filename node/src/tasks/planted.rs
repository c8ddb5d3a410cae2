//! The planted bugs of the leader loop that are longer than a line.

use quorate_api::v1;
use quorate_state::control::{Command, Effect};
use quorate_state::{Operation, SessionId, Token};

use super::frames::SessionGrant;
use super::leader::{Leader, Posts, session_over};
use super::roster::Delivery;
use super::wire;

impl Leader {
    /// `silent-expiry`: sessions are ended in the leader's memory. Returns those that are still to be proposed.
    pub(super) fn end_silently(&self, expired: Vec<SessionId>) -> Vec<SessionId> {
        if !crate::planted::is("silent-expiry") {
            return expired;
        }
        self.with_book(|book, posts| {
            for session in expired {
                if let Some(route) = book.roster.route(session) {
                    posts.entry(route.link).or_default().gone.push(session_over(session));
                }
                book.roster.observe(&Effect::SessionEnded { session });
            }
        });
        Vec::new()
    }

    /// `early-grant`: grants go to their agents when they are proposed, under the token that they will probably get.
    pub(super) fn grant_early(&self, proposed: &[Operation<Command>]) {
        if !crate::planted::is("early-grant") {
            return;
        }
        let position = self.context.control.group().map_or(0, |group| group.status().last_position + 1);
        let granted = |operation: &Operation<Command>| match operation.command {
            Command::Grant { task, session } => Some((task, session)),
            _ => None,
        };
        let deliveries: Vec<Delivery> = self.with_book(|book, _| {
            let grants = proposed.iter().filter_map(granted).zip(0..);
            let delivery = |((task, session), ordinal)| {
                let route = book.roster.route(session)?;
                Some(Delivery { link: route.link, session, task, token: Token { position, ordinal } })
            };
            grants.filter_map(delivery).collect()
        });
        let Ok(payloads) = self.payloads(&deliveries) else { return };
        let mut posts = Posts::new();
        for (delivery, payload) in deliveries.iter().zip(payloads) {
            let view = self.context.control.read(|state| state.task(delivery.task));
            let (Some(view), Some(payload)) = (view, payload) else { continue };
            let grant = v1::Grant {
                task_id: delivery.task.0,
                token: Some(wire::token_to_wire(delivery.token)),
                queue: view.queue.to_string(),
                role: view.role.to_string(),
                payload,
                attempt: view.attempts + 1,
                enqueued_at_us: wire::time_to_wire(view.created),
            };
            let item = SessionGrant { session: delivery.session.0, grant: Some(grant) };
            posts.entry(delivery.link).or_default().grants.push(item);
        }
        self.send(posts);
    }
}
