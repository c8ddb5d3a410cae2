//! temporary measurement
#![allow(clippy::unwrap_used)]
use std::sync::Arc;
use std::time::{Duration, Instant};
use bytes::Bytes;
use quorate_raft::*;
use tokio_util::sync::CancellationToken;

struct Null;
impl Machine for Null {
    fn apply(&mut self, at: LogPosition, _p: &[u8], rows: &mut RowBatch) -> Result<Reply, Fault> {
        rows.changes.push((1, Bytes::from_static(b"k"), Some(Bytes::copy_from_slice(&at.position.to_le_bytes()))));
        Ok(Reply::none())
    }
    fn applied(&mut self, _: LogPosition) {}
    fn load(&mut self, _: Arc<dyn StateStore>, _: Option<LogPosition>) -> Result<(), Fault> { Ok(()) }
}
fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}
fn switches() -> u64 {
    let mut n = 0;
    for t in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let s = std::fs::read_to_string(t.path().join("status")).unwrap_or_default();
        for l in s.lines() { if l.contains("ctxt_switches") { n += l.rsplit('\t').next().unwrap().parse::<u64>().unwrap_or(0); } }
    }
    n
}
#[tokio::main]
async fn main() {
    let bytes: usize = std::env::args().nth(1).map_or(20_000, |a| a.parse().unwrap());
    let flight: usize = std::env::args().nth(2).map_or(2, |a| a.parse().unwrap());
    let dir = std::env::args().nth(3).unwrap_or("/tmp/raft-load".into());
    let _ = std::fs::remove_dir_all(&dir);
    let mut nodes = vec![];
    let mut members = std::collections::BTreeMap::new();
    for i in 1..=3u64 {
        let d = std::path::PathBuf::from(format!("{dir}/{i}"));
        let mut id = Identity::open(&d).unwrap();
        id.adopt_cluster(ClusterId(1)).unwrap();
        let l = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = l.local_addr().unwrap().to_string();
        members.insert(i, Member { node: id.node, address: addr.clone() });
        let mut config = GroupsConfig::new(id, d.clone(), addr);
        config.threads = Some(2);
        let g = Groups::open(config, Seams::durable(&d).unwrap()).await.unwrap();
        let s = g.clone();
        tokio::spawn(async move { s.serve(l, CancellationToken::new()).await });
        nodes.push(g);
    }
    let mut control = vec![];
    for gid in 0..9 {
        for (i, g) in nodes.iter().enumerate() {
            let timers = if gid == 0 { Timers::default() } else { Timers::default().slower(4) };
            let grp = g.start_group_with(GroupId(gid), i as u64 + 1, Box::new(Null), GroupConfig { timers: Some(timers) }).await.unwrap();
            if gid == 0 { control.push(grp.clone()); }
            if i == (gid as usize) % 3 && i == 0 { grp.initialize(members.clone()).await.unwrap(); }
            if i == 0 && gid % 3 != 0 { grp.initialize(members.clone()).await.unwrap(); }
        }
    }
    let leader = loop {
        if let Some(g) = control.iter().find(|g| g.leadership().borrow().mine) { break g.clone(); }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    tokio::time::sleep(Duration::from_secs(3)).await;
    let leaders: Vec<_> = (0..9).map(|gid| nodes[0].group(GroupId(gid)).unwrap().leadership().borrow().leader.as_ref().map(|l| l.0)).collect();
    println!("leaders {leaders:?}");
    let (c, t, w) = (cpu(), Instant::now(), switches());
    tokio::time::sleep(Duration::from_secs(8)).await;
    println!("idle: {:.2}% of a core per node, {:.0} switches/s", (cpu() - c) / t.elapsed().as_secs_f64() * 100.0 / 3.0, (switches() - w) as f64 / t.elapsed().as_secs_f64());
    let payload = Bytes::from(vec![7u8; bytes]);
    for flight in [1, flight, 8, 64] {
        let (c, t) = (cpu(), Instant::now());
        let mut n = 0;
        let mut lat = vec![];
        let mut q = std::collections::VecDeque::new();
        while t.elapsed() < Duration::from_secs(4) {
            while q.len() < flight { q.push_back((Instant::now(), leader.submit(payload.clone()).await.unwrap())); }
            let (s, p) = q.pop_front().unwrap();
            p.await.unwrap();
            lat.push(s.elapsed());
            n += 1;
        }
        for (_, p) in q { p.await.unwrap(); }
        lat.sort();
        println!("flight {flight}: {:.0}/s {:.1} MB/s p50 {:?} p99 {:?} max {:?}, cpu {:.0}% (all 3 nodes)", n as f64 / t.elapsed().as_secs_f64(), (n * bytes) as f64 / 1e6 / t.elapsed().as_secs_f64(), lat[lat.len()/2], lat[lat.len()*99/100], lat.last().unwrap(), (cpu() - c) / t.elapsed().as_secs_f64() * 100.0);
    }
    let follower = control.iter().find(|g| g.replica() != leader.replica()).unwrap();
    for (name, g) in [("leader", &leader), ("follower", follower)] {
        let mut lat = vec![];
        for _ in 0..300 { let s = Instant::now(); g.read_position(Duration::from_secs(5)).await.unwrap(); lat.push(s.elapsed()); }
        lat.sort();
        println!("read {name}: p50 {:?} p99 {:?}", lat[150], lat[297]);
    }
    let (c, t) = (cpu(), Instant::now());
    let mut tasks = vec![];
    for _ in 0..64 { let g = follower.clone(); tasks.push(tokio::spawn(async move { let mut n = 0; let t = Instant::now(); while t.elapsed() < Duration::from_secs(3) { g.read_position(Duration::from_secs(5)).await.unwrap(); n += 1; } n })); }
    let mut n = 0; for t in tasks { n += t.await.unwrap(); }
    println!("64 readers at follower: {:.0}/s cpu {:.0}%", n as f64 / t.elapsed().as_secs_f64(), (cpu() - c) / t.elapsed().as_secs_f64() * 100.0);
    for g in &nodes { g.shutdown().await; }
    let _ = std::fs::remove_dir_all(&dir);
}
