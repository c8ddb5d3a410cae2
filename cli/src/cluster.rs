//! `quorate cluster`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Subcommand;
use quorate_client::{Client, v1 as api};
use serde_json::{Value, json};

use crate::output::Format;

/// Verbs on the cluster.
#[derive(Subcommand)]
pub enum Cluster {
    /// Makes a new cluster of the node at the endpoint.
    Init {
        /// Shards of the cluster's memory, for good; 8 if absent.
        #[arg(long, default_value_t = 0)]
        shards: u32,
    },
    /// Lets the new, empty node at the endpoint join a cluster. Doing it twice changes nothing.
    Join {
        /// Client address of any member.
        seed: String,
    },
    /// Moves everything off a node and removes it. Ask any member.
    Leave {
        /// The node's id, as `cluster status` shows it.
        node_id: String,
        /// Accept that shards have fewer replicas than before.
        #[arg(long)]
        allow_fewer_replicas: bool,
    },
    /// Says how the cluster is and what to do about it.
    Status,
}

/// Runs a verb on the cluster.
pub async fn run(verb: Cluster, endpoints: &[String], output: Format) -> Result<ExitCode> {
    let client = Client::connect(endpoints)?;
    match verb {
        Cluster::Init { shards } => {
            let made = client.cluster_init(shards).await?;
            output.record(&json!({ "cluster_id": made.cluster_id, "node_id": made.node_id }));
        }
        Cluster::Join { seed } => {
            let joined = client.cluster_join(&seed).await?;
            output.record(&json!({ "cluster_id": joined.cluster_id, "node_id": joined.node_id }));
        }
        Cluster::Leave { node_id, allow_fewer_replicas } => {
            let left = client.cluster_leave(&node_id, allow_fewer_replicas).await;
            if matches!(&left, Err(error) if error.reason() == Some(api::ErrorReason::FewerReplicas)) {
                eprintln!("if fewer are enough: quorate cluster leave {node_id} --allow-fewer-replicas");
            }
            left?;
            output.record(&json!({ "left": node_id }));
        }
        Cluster::Status => return Ok(status(&client.cluster_status().await?, output)),
    }
    Ok(ExitCode::SUCCESS)
}

fn status(status: &api::StatusResponse, output: Format) -> ExitCode {
    let health = status.health().as_str_name().trim_start_matches("HEALTH_").to_lowercase();
    if output == Format::Json {
        output.record(&json!({
            "cluster_id": status.cluster_id, "health": health, "problems": status.problems,
            "next_steps": status.next_steps, "nodes": status.nodes.iter().map(node).collect::<Vec<_>>(),
            "control": status.control.as_ref().map(group),
            "shards": status.shards.iter().map(group).collect::<Vec<_>>(),
        }));
    } else {
        println!("cluster {} is {health}", if status.cluster_id.is_empty() { "(none)" } else { &status.cluster_id });
        for problem in &status.problems {
            println!("  problem: {problem}");
        }
        for step in &status.next_steps {
            println!("  do: {step}");
        }
        let nodes: Vec<Value> = status.nodes.iter().map(node).collect();
        output.list(
            &nodes,
            &[
                "node_id",
                "label",
                "client_address",
                "reachable",
                "leaving",
                "control",
                "shard_replicas",
                "shard_leaders",
                "version",
            ],
        );
        let groups: Vec<Value> =
            status.control.iter().chain(&status.shards).map(|group| summary(group, status)).collect();
        output.list(&groups, &["group", "term", "leader", "applied_position", "voters", "learners", "quarantined"]);
    }
    ExitCode::from(u8::from(status.health() != api::Health::Healthy))
}

/// A group in one row, with the labels that people know the nodes by.
fn summary(group: &api::GroupStatus, status: &api::StatusResponse) -> Value {
    let label = |id: &str| {
        let known = status.nodes.iter().find(|node| node.node_id == id);
        known.map_or_else(|| id.to_owned(), |node| node.label.clone())
    };
    let names = |which: &dyn Fn(&api::ReplicaStatus) -> bool| -> Vec<String> {
        group.replicas.iter().filter(|replica| which(replica)).map(|replica| label(&replica.node_id)).collect()
    };
    let serves = |replica: &api::ReplicaStatus| replica.quarantined.is_empty();
    json!({
        "group": name(group.group), "term": group.term, "leader": label(&group.leader_node_id),
        "applied_position": group.applied_position,
        "voters": names(&|replica| replica.voter && serves(replica)),
        "learners": names(&|replica| !replica.voter && serves(replica)),
        "quarantined": names(&|replica| !serves(replica)),
    })
}

fn name(group: u32) -> String {
    if group == 0 { "control".to_owned() } else { format!("shard-{group}") }
}

fn node(node: &api::NodeStatus) -> Value {
    json!({
        "node_id": node.node_id, "label": node.label, "client_address": node.client_address,
        "peer_address": node.peer_address, "reachable": node.reachable, "leaving": node.leaving,
        "control": if node.control_leader { "leader" } else if node.control_voter { "voter" } else { "learner" },
        "shard_replicas": node.shard_replicas, "shard_leaders": node.shard_leaders, "version": node.version,
    })
}

fn group(group: &api::GroupStatus) -> Value {
    let replicas: Vec<Value> = group
        .replicas
        .iter()
        .map(|replica| {
            json!({
                "replica": replica.replica_id, "node": replica.node_id,
                "role": if replica.voter { "voter" } else { "learner" },
                "matched": (replica.matched_position > 0).then_some(replica.matched_position),
                "quarantined": (!replica.quarantined.is_empty()).then_some(&replica.quarantined),
                "hash_position": (replica.hash_position > 0).then_some(replica.hash_position),
                "state_hash": (replica.hash_position > 0).then(|| format!("{:016x}", replica.state_hash)),
            })
        })
        .collect();
    json!({
        "group": name(group.group),
        "term": group.term, "leader": group.leader_node_id, "last_position": group.last_position,
        "applied_position": group.applied_position, "replicas": replicas,
    })
}
