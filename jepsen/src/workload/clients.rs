//! The clients of a run.

use std::time::Duration;

use anyhow::Result;
use quorate_client::Client;

use crate::cluster::Cluster;

/// How long a call may take. Short, so that a client of a node that is cut off tries again soon.
pub(super) const DEADLINE: Duration = Duration::from_secs(3);

/// One client for each node that knows no other, and one that knows all.
///
/// A client that knows one node may still be told by it who leads.
#[derive(Debug)]
pub struct Clients {
    endpoints: Vec<String>,
    /// With the numbers of their nodes.
    bound: Vec<(usize, Client)>,
    all: Client,
}

impl Clients {
    /// Clients of the cluster's members, as they are now.
    ///
    /// # Errors
    /// If an address cannot be one.
    pub fn of_members(cluster: &Cluster) -> Result<Clients> {
        let members = cluster.members();
        let all = cluster.endpoints();
        Clients::new(&members, &members.iter().map(|node| all[*node].clone()).collect::<Vec<_>>())
    }

    fn new(nodes: &[usize], endpoints: &[String]) -> Result<Clients> {
        let full =
            |endpoint: &String| if endpoint.contains("://") { endpoint.clone() } else { format!("http://{endpoint}") };
        let endpoints: Vec<String> = endpoints.iter().map(full).collect();
        let connect =
            |endpoints: Vec<String>| Ok::<_, anyhow::Error>(Client::connect(endpoints)?.with_deadline(DEADLINE));
        let bound = nodes.iter().zip(&endpoints).map(|(node, endpoint)| Ok((*node, connect(vec![endpoint.clone()])?)));
        let bound = bound.collect::<Result<_>>()?;
        let all = connect(endpoints.clone())?;
        Ok(Clients { endpoints, bound, all })
    }

    /// The client of a process, by its ordinal, and the node that it is bound to: every second one knows all nodes.
    #[must_use]
    pub fn of(&self, ordinal: usize) -> (Option<usize>, Client) {
        if ordinal % 2 == 1 {
            return (None, self.all.clone());
        }
        let (node, client) = &self.bound[(ordinal / 2) % self.bound.len()];
        (Some(*node), client.clone())
    }

    /// The client that knows all nodes.
    #[must_use]
    pub fn all(&self) -> &Client {
        &self.all
    }

    /// The addresses of the nodes, as URLs.
    #[must_use]
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// How many processes there must be for each client to have one.
    #[must_use]
    pub fn processes(&self) -> usize {
        2 * self.bound.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_second_process_knows_all_nodes_and_the_others_take_turns() {
        let clients = Clients::new(&[0, 2], &["a:1".into(), "http://b:1".into()]).expect("addresses");
        let nodes: Vec<_> = (0..clients.processes()).map(|ordinal| clients.of(ordinal).0).collect();
        assert_eq!(nodes, [Some(0), None, Some(2), None]);
        assert_eq!(clients.endpoints(), ["http://a:1", "http://b:1"]);
    }
}
