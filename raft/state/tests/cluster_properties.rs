//! Random words about members, replicas and collections: whatever comes in whatever order, the invariants hold, two machines
//! agree, and the rows make the same machine.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;
use quorate_state::control::{Command, Control, NodeRecord, OutboxAction, ReplicaState};
use quorate_state::{CollectionId, Entry, LogTime, Metric, NodeId, Operation, Position, ShardId};

fn node(number: u64, port: u16) -> NodeRecord {
    NodeRecord {
        node: NodeId(number),
        name: String::new(),
        peer_address: format!("n{number}:{port}"),
        client_address: format!("n{number}:1"),
        http_address: String::new(),
    }
}

fn command() -> impl Strategy<Value = Command> {
    let shard = (1..4u32).prop_map(ShardId);
    let replica = 1..16u64;
    let name = "[a-c]";
    prop_oneof![
        1 => (0..4u32).prop_map(|shards| {
            Command::InitCluster { cluster: 1, shards, node: node(1, 1), control_replica: 1 }
        }),
        3 => (1..6u64, 1..3u16).prop_map(|(number, port)| Command::AddMember { node: node(number, port) }),
        2 => (1..6u64, any::<bool>())
            .prop_map(|(number, allow_fewer)| Command::StartLeave { node: NodeId(number), allow_fewer }),
        2 => (1..6u64).prop_map(|number| Command::RemoveMember { node: NodeId(number) }),
        6 => (shard.clone(), 1..6u64).prop_map(|(shard, node)| Command::PlaceReplica { shard, node: NodeId(node) }),
        6 => (shard.clone(), replica.clone())
            .prop_map(|(shard, replica)| Command::ReplicaJoined { shard, replica }),
        4 => (shard.clone(), replica.clone())
            .prop_map(|(shard, replica)| Command::RetireReplica { shard, replica }),
        4 => (shard.clone(), replica.clone()).prop_map(|(shard, replica)| Command::ForgetReplica { shard, replica }),
        4 => (shard.clone(), 1..6u64, replica.clone()).prop_map(|(shard, node, replica)| {
            Command::ReplaceReplica { shard, node: NodeId(node), replica }
        }),
        2 => (1..6u64, replica).prop_map(|(node, replica)| {
            Command::ReplaceControlReplica { node: NodeId(node), replica }
        }),
        1 => shard.clone().prop_map(|shard| Command::ShardInitialized { shard }),
        4 => (name, 0..4u32).prop_map(|(name, shards)| {
            Command::CreateCollection { name, dimension: 4, metric: Metric::L2, shards }
        }),
        3 => name.prop_map(|name| Command::DeleteCollection { name }),
        6 => (1..8u32, shard, 0..40u64).prop_map(|(id, shard, generation)| {
            Command::ConfirmCollection { id: CollectionId(id), shard, generation }
        }),
    ]
}

/// Puts a replica that the shard has in the place of a number, so that most words about replicas make sense.
fn aim(command: &mut Command, control: &Control) {
    if let Command::ReplicaJoined { shard, replica }
    | Command::RetireReplica { shard, replica }
    | Command::ForgetReplica { shard, replica } = command
        && let Some(record) = control.shard(*shard)
        && !record.replicas.is_empty()
    {
        *replica = record.replicas[*replica as usize % record.replicas.len()].replica;
    }
    if let Command::ReplaceReplica { shard, node, replica } = command
        && let Some(record) = control.shard(*shard)
        && !record.replicas.is_empty()
    {
        let held = &record.replicas[*replica as usize % record.replicas.len()];
        (*node, *replica) = (held.node, held.replica);
    }
    if let Command::ReplaceControlReplica { node, replica } = command
        && let Some(member) = control.member(*node)
        && *replica % 2 == 0
    {
        *replica = member.control_replica;
    }
}

/// Every entry may also confirm what is at the head of the outbox, so that collections come and go.
fn entry() -> impl Strategy<Value = (Vec<Command>, bool)> {
    (prop::collection::vec(command(), 0..4), any::<bool>())
}

/// All replica ids in use. One that appears must be larger than any before: none is given twice.
fn replicas(control: &Control) -> BTreeSet<u64> {
    let members = control.members().map(|member| member.control_replica);
    let placed = control.shards().flat_map(|shard| &shard.replicas).map(|held| held.replica);
    members.chain(placed).collect()
}

/// A shard that once had a voter has one for as long as it lives.
fn voters(control: &Control) -> BTreeMap<ShardId, usize> {
    let count = |replicas: &[quorate_state::control::ReplicaRecord]| {
        replicas.iter().filter(|held| held.state == ReplicaState::Voter).count()
    };
    control.shards().map(|shard| (shard.shard, count(&shard.replicas))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn words_about_the_cluster_keep_it_whole(entries in prop::collection::vec(entry(), 1..60)) {
        let (mut first, mut second) = (Control::new(), Control::new());
        let mut rows: BTreeMap<(u8, Bytes), Bytes> = BTreeMap::new();
        let (mut known, mut minted) = (BTreeSet::new(), 0);
        for (position, (commands, deliver)) in (1..).zip(entries) {
            let mut commands = commands;
            commands.iter_mut().for_each(|command| aim(command, &first));
            if deliver && let Some(head) = first.outbox().next() {
                commands.push(Command::ConfirmCollection {
                    id: head.collection,
                    shard: head.shard,
                    generation: head.generation,
                });
            }
            let before = voters(&first);
            minted = minted.max(known.last().copied().unwrap_or(0));
            let operations = commands.into_iter().map(Operation::new).collect();
            let entry = Entry { time: LogTime(position), operations };
            let outcome = first.apply(Position(position), entry.clone()).expect("in order");
            let other = second.apply(Position(position), entry).expect("in order");
            prop_assert_eq!(&outcome, &other);
            for row in outcome.rows {
                match row.value {
                    Some(value) => rows.insert((row.table, row.key), value),
                    None => rows.remove(&(row.table, row.key)),
                };
            }
            prop_assert_eq!(first.check(), Ok(()));
            let now = replicas(&first);
            for replica in now.difference(&known) {
                prop_assert!(*replica > minted, "replica {} was given before", replica);
            }
            known = now;
            for (shard, voters) in voters(&first) {
                prop_assert!(voters > 0 || before.get(&shard).is_none_or(|before| *before == 0));
            }
            for told in first.outbox() {
                let collection = first.collection_by_id(told.collection).expect("an entry is about a collection");
                let named = first.collection(&collection.name).is_some_and(|named| named.id == told.collection);
                prop_assert_eq!(named, told.action != OutboxAction::Drop);
            }
            let loaded = Control::load(rows.iter().map(|((table, key), value)| (*table, key, value)));
            second = loaded.expect("own rows");
            prop_assert_eq!(&first, &second);
        }
    }
}
