//! Partitions.
//!
//! The detail of each says whether it leaves a connected majority, which is what must go on writing: see
//! [`connected_majority`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use super::{Nemesis, NemesisContext, Strike, draw};
use crate::cluster::{Cut, Mark, Refusal};
use crate::event::{Injection, MAJORITY, Moment, NO_MAJORITY, WAS_WELL};

/// The six directed links of three nodes; bit i of a subset's number is link i.
const LINKS: [(usize, usize); 6] = [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)];
const SUBSETS: usize = 64;
const ITEMS: usize = SUBSETS * 3;
/// How often leadership is taken from the wrong node before an item is given up.
const TRIES: usize = 40;
/// How long another leader may take to appear.
const ELECTED: Duration = Duration::from_secs(10);
/// How long the cluster may take to be well between two items.
const WELL: Duration = Duration::from_secs(60);

/// A link can be quiet for as long as connections wait between two signs of life, or between two tries to connect. A cut
/// that no packet ran into is kept for so much longer at most, looking every [`LOOK`].
const QUIET: Duration = Duration::from_millis(2500);
const LOOK: Duration = Duration::from_millis(100);

/// The shapes of partitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Halves,
    Ring,
    Bridge,
    IsolateLeader,
    OneWay,
    Flapping,
    Reset,
}

const SHAPES: [(&str, Shape); 7] = [
    ("halves", Shape::Halves),
    ("ring", Shape::Ring),
    ("bridge", Shape::Bridge),
    ("isolate-leader", Shape::IsolateLeader),
    ("one-way", Shape::OneWay),
    ("flapping", Shape::Flapping),
    ("reset", Shape::Reset),
];

/// Partitions of one shape.
pub(super) struct Partition {
    name: &'static str,
    shape: Shape,
}

impl Partition {
    pub(super) fn named(name: &str) -> Option<Box<dyn Strike>> {
        let (name, shape) = *SHAPES.iter().find(|(known, _)| *known == name)?;
        Some(Box::new(Partition { name, shape }))
    }
}

#[async_trait]
impl Strike for Partition {
    fn name(&self) -> &'static str {
        self.name
    }

    async fn strike(&mut self, ctx: &NemesisContext, dice: &mut StdRng, length: Duration) -> Result<()> {
        let mut members = ctx.cluster.members();
        members.shuffle(dice);
        let Some(_hold) = ctx.hold(&[Mark::Links]).await else {
            ctx.skip(self.name, self.name, "another partition is there");
            return Ok(());
        };
        let one = match self.shape {
            Shape::IsolateLeader => match ctx.any_leader().await {
                Some(leader) => leader,
                None => {
                    ctx.skip(self.name, self.name, "nobody leads");
                    return Ok(());
                }
            },
            _ => members[0],
        };
        let links = match self.shape {
            Shape::Halves | Shape::Reset => halves(&members),
            Shape::Ring => ring(&members),
            Shape::Bridge => bridge(&members),
            Shape::IsolateLeader | Shape::Flapping => around(&members, one, true, true),
            Shape::OneWay => match dice.random_range(0..3) {
                0 => around(&members, one, true, false),
                1 => around(&members, one, false, true),
                _ => vec![(members[0], members[1])],
            },
        };
        if self.shape == Shape::Flapping {
            return flap(ctx, dice, length, &links).await;
        }
        let refusal = if self.shape == Shape::Reset { Refusal::Reset } else { Refusal::Drop };
        cut_for(ctx, self.name, self.name, &links, refusal, length, false).await
    }
}

/// Cuts links for a time, and reports it by what the counters saw. `well`: the cluster has just been seen to be healthy.
async fn cut_for(
    ctx: &NemesisContext,
    nemesis: &'static str,
    kind: &str,
    links: &[(usize, usize)],
    refusal: Refusal,
    length: Duration,
    well: bool,
) -> Result<()> {
    let silent = silent(ctx);
    let majority = words_of(links, &ctx.cluster.members(), well);
    let cut = ctx.cluster.cut(links, refusal).await?;
    // Only now: what is acknowledged while the rules are written one after the other says nothing about the cut.
    let open = ctx.begin(nemesis, kind);
    ctx.wait(length).await;
    let mut seen = bites(ctx, &cut, &silent).await?;
    let limit = tokio::time::Instant::now() + QUIET;
    while seen.0 != Injection::Installed && tokio::time::Instant::now() < limit && ctx.wait(LOOK).await {
        seen = bites(ctx, &cut, &silent).await?;
    }
    let (bit, detail) = seen;
    ctx.cluster.mend(&cut).await?;
    open.end(bit, format!("{detail}; {majority}"));
    Ok(())
}

/// What is to be expected of a cluster whose links are cut, in the words that the checker of availability reads.
fn words_of(links: &[(usize, usize)], members: &[usize], well: bool) -> String {
    let majority = if connected_majority(links, members) { MAJORITY } else { NO_MAJORITY };
    if well { format!("{majority} {WAS_WELL}") } else { majority.to_owned() }
}

/// Whether every group has a majority whose members all reach each other in both directions, wherever its replicas are: on all
/// of the members where there are three or five, and on any three or five of them where there are more.
fn connected_majority(links: &[(usize, usize)], members: &[usize]) -> bool {
    let reach = |a: usize, b: usize| !links.contains(&(a, b)) && !links.contains(&(b, a));
    let connected =
        |nodes: &[usize]| nodes.iter().enumerate().all(|(at, a)| nodes[at + 1..].iter().all(|b| reach(*a, *b)));
    let sizes = [1, 3, 5].into_iter().filter(|size| *size <= members.len() && (*size > 1 || members.len() < 3));
    sizes.into_iter().all(|size| {
        let groups = chosen(members, size);
        groups.iter().all(|group| chosen(group, size / 2 + 1).iter().any(|majority| connected(majority)))
    })
}

/// Every choice of so many out of some.
fn chosen(from: &[usize], count: usize) -> Vec<Vec<usize>> {
    let Some((first, rest)) = from.split_first() else { return if count == 0 { vec![Vec::new()] } else { Vec::new() } };
    let mut with = if count == 0 { Vec::new() } else { chosen(rest, count - 1) };
    with.iter_mut().for_each(|choice| choice.insert(0, *first));
    with.extend(chosen(rest, count));
    with
}

/// The nodes of which another fault has hold, or that are down: they may have sent nothing.
fn silent(ctx: &NemesisContext) -> BTreeSet<usize> {
    let held = |node: &usize| !ctx.cluster.is_running(*node) || ctx.cluster.marks().is_held(Mark::Node(*node));
    (0..ctx.cluster.size()).filter(held).collect()
}

/// Whether a cut bit: every link lost packets, but for those from nodes that were silent before or are now.
async fn bites(ctx: &NemesisContext, cut: &Cut, before: &BTreeSet<usize>) -> Result<(Injection, String)> {
    let taken = ctx.cluster.packets_taken(cut).await?;
    let detail = words(&taken);
    let now = silent(ctx);
    let excused = |node: &usize| before.contains(node) || now.contains(node);
    let all = taken.iter().all(|((from, _), packets)| *packets > 0 || excused(from));
    let bit =
        if all && taken.values().any(|packets| *packets > 0) { Injection::Installed } else { Injection::Indeterminate };
    Ok((bit, detail))
}

fn words(taken: &BTreeMap<(usize, usize), u64>) -> String {
    let links: Vec<_> = taken.iter().map(|((from, to), packets)| format!("{from}→{to} {packets}")).collect();
    format!("packets taken: {}", links.join(", "))
}

async fn flap(ctx: &NemesisContext, dice: &mut StdRng, length: Duration, links: &[(usize, usize)]) -> Result<()> {
    let mut open = ctx.begin("flapping", "flapping");
    let end = tokio::time::Instant::now() + length;
    let mut total: BTreeMap<(usize, usize), u64> = BTreeMap::new();
    let mut cuts = 0;
    loop {
        let cut = ctx.cluster.cut(links, Refusal::Drop).await?;
        // From each of these moments on others may lead: how soon writes succeed again is asked from the last one.
        if cuts == 0 {
            open.bites_now();
        }
        open.note(Moment::Cut);
        cuts += 1;
        let mut on = ctx.wait(draw(&(Duration::from_millis(50)..=Duration::from_millis(800)), dice)).await;
        for (link, packets) in ctx.cluster.packets_taken(&cut).await? {
            *total.entry(link).or_default() += packets;
        }
        ctx.cluster.mend(&cut).await?;
        open.note(Moment::Mended);
        on = on && ctx.wait(draw(&(Duration::from_millis(50)..=Duration::from_millis(500)), dice)).await;
        if !on || tokio::time::Instant::now() >= end {
            break;
        }
    }
    open.end_seen(total.values().any(|packets| *packets > 0), format!("cut {cuts} times; {}", words(&total)));
    Ok(())
}

/// All links between two sides, in both directions.
fn between(left: &[usize], right: &[usize]) -> Vec<(usize, usize)> {
    left.iter().flat_map(|a| right.iter().flat_map(move |b| [(*a, *b), (*b, *a)])).collect()
}

fn halves(members: &[usize]) -> Vec<(usize, usize)> {
    let (minority, majority) = members.split_at((members.len() - 1) / 2);
    between(minority, majority)
}

fn bridge(members: &[usize]) -> Vec<(usize, usize)> {
    let middle = members.len() / 2;
    between(&members[..middle], &members[middle + 1..])
}

/// Each node hears itself and the next ones in the ring, a majority together, and nobody else.
fn ring(members: &[usize]) -> Vec<(usize, usize)> {
    let count = members.len();
    let majority = count / 2 + 1;
    let deaf = |at: usize| (majority..count).map(move |step| (members[(at + step) % count], members[at]));
    (0..count).flat_map(deaf).collect()
}

/// The links of one node: those out of it, those into it.
fn around(members: &[usize], one: usize, out: bool, into: bool) -> Vec<(usize, usize)> {
    let others = members.iter().filter(move |other| **other != one);
    others
        .flat_map(|other| [(out, (one, *other)), (into, (*other, one))])
        .filter(|(on, _)| *on)
        .map(|(_, link)| link)
        .collect()
}

fn subset(number: usize, members: &[usize]) -> Vec<(usize, usize)> {
    let chosen = LINKS.iter().enumerate().filter(|(bit, _)| number >> bit & 1 == 1);
    chosen.map(|(_, (from, to))| (members[*from], members[*to])).collect()
}

/// One subset of the links of the first three members.
pub(super) struct Subset {
    number: usize,
    leader: Option<usize>,
}

impl Subset {
    pub(super) fn new(argument: &str) -> Option<Subset> {
        let (number, leader) = match argument.split_once('@') {
            Some((number, leader)) => (number, Some(leader.parse().ok().filter(|leader| *leader < 3)?)),
            None => (argument, None),
        };
        // Subset 0 is the enumeration's control. Asked for by itself it would be a fault that breaks nothing.
        Some(Subset { number: number.parse().ok().filter(|number| (1..SUBSETS).contains(number))?, leader })
    }
}

#[async_trait]
impl Strike for Subset {
    fn name(&self) -> &'static str {
        "links"
    }

    async fn strike(&mut self, ctx: &NemesisContext, _dice: &mut StdRng, length: Duration) -> Result<()> {
        strike_subset(ctx, "links", self.number, self.leader, length).await.map(|_| ())
    }
}

/// Cuts a subset, under a given leader if one is wanted. False if it was skipped.
async fn strike_subset(
    ctx: &NemesisContext,
    nemesis: &'static str,
    number: usize,
    leader: Option<usize>,
    length: Duration,
) -> Result<bool> {
    let members = ctx.cluster.members();
    let kind = match leader {
        Some(leader) => format!("links {number} leader {leader}"),
        None => format!("links {number}"),
    };
    if members.len() < 3 {
        ctx.skip(nemesis, kind, "fewer than three members");
        return Ok(false);
    }
    let Some(_hold) = ctx.hold(&[Mark::Links]).await else {
        ctx.skip(nemesis, kind, "another partition is there");
        return Ok(false);
    };
    if let Some(leader) = leader
        && !make_lead(ctx, nemesis, members[leader]).await?
    {
        ctx.skip(nemesis, kind, "that node did not come to lead");
        return Ok(false);
    }
    let links = subset(number, &members);
    let well = ctx.cluster.healthy().await.is_ok();
    if links.is_empty() {
        // The control of the enumeration: it must look like any other item, and nothing may be amiss.
        let open = ctx.begin(nemesis, kind);
        ctx.wait(length).await;
        open.end(
            Injection::Installed,
            format!("the empty subset: nothing is cut; {}", words_of(&links, &members, well)),
        );
        return Ok(true);
    }
    cut_for(ctx, nemesis, &kind, &links, Refusal::Drop, length, well).await?;
    Ok(true)
}

/// Takes leadership from whoever has it until `wanted` has it: whoever leads is killed, and comes back when another leads.
/// (A kill is seen at once; of a node that is stopped every status waits a while.) True: it leads a cluster that is well.
///
/// Each kill is told as a fault that may have bitten or not: it is no attack, but what it disturbs must not be held against
/// other faults.
async fn make_lead(ctx: &NemesisContext, nemesis: &'static str, wanted: usize) -> Result<bool> {
    for _ in 0..TRIES {
        let Some(leader) = ctx.any_leader().await else { return Ok(false) };
        if leader == wanted {
            return Ok(true);
        }
        let Some(hold) = ctx.hold(&[Mark::Node(leader)]).await else { return Ok(false) };
        let open = ctx.begin(nemesis, "another leader is wanted");
        ctx.cluster.kill(leader).await?;
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        let another = async {
            while ctx.cluster.leader().await.is_none() {
                tick.tick().await;
            }
        };
        let _ = tokio::time::timeout(ELECTED, another).await;
        ctx.back(leader, "a kill").await;
        open.end(
            Injection::Indeterminate,
            format!("node {leader} was killed so that node {wanted} leads; {NO_MAJORITY}"),
        );
        drop(hold);
        tokio::select! {
            // If it is not well, that is found before the next item.
            _ = ctx.cluster.wait_healthy(WELL) => {}
            () = ctx.stop.cancelled() => return Ok(false),
        }
    }
    Ok(false)
}

/// All subsets under each leader, each once, in order.
pub(super) struct Enumeration {
    next: usize,
    dice: StdRng,
}

impl Enumeration {
    pub(super) fn new(argument: Option<&str>) -> Option<Enumeration> {
        let next = argument.map_or(Some(0), |first| first.parse().ok()).filter(|next| *next < ITEMS)?;
        Some(Enumeration { next, dice: rand::SeedableRng::seed_from_u64(0) })
    }
}

#[async_trait]
impl Nemesis for Enumeration {
    fn name(&self) -> &'static str {
        "link-enumeration"
    }

    async fn run(&mut self, ctx: &NemesisContext) -> Result<()> {
        while self.next < ITEMS && ctx.wait(draw(&ctx.pace.calm, &mut self.dice)).await {
            // The next item begins from a cluster that is well.
            tokio::select! {
                well = ctx.cluster.wait_healthy(WELL) => {
                    if let Err(error) = well {
                        ctx.report.violation(format!("before item {} of the links: {error:#}", self.next));
                    }
                }
                () = ctx.stop.cancelled() => return Ok(()),
            }
            let length = draw(&ctx.pace.fault, &mut self.dice);
            let (number, leader) = (self.next / 3, self.next % 3);
            strike_subset(ctx, "link-enumeration", number, Some(leader), length).await?;
            self.next += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hears(links: &[(usize, usize)], node: usize, count: usize) -> BTreeSet<usize> {
        (0..count).filter(|from| !links.contains(&(*from, node))).collect()
    }

    #[test]
    fn in_a_ring_each_hears_another_majority() {
        for count in [3, 5] {
            let members: Vec<_> = (0..count).collect();
            let links = ring(&members);
            let heard: BTreeSet<_> = (0..count).map(|node| hears(&links, node, count)).collect();
            assert_eq!(heard.len(), count, "all different");
            assert!(heard.iter().all(|heard| heard.len() == count / 2 + 1));
        }
    }

    #[test]
    fn halves_and_bridges_part_what_they_should() {
        assert_eq!(halves(&[2, 0, 1]), [(2, 0), (0, 2), (2, 1), (1, 2)]);
        assert_eq!(bridge(&[2, 0, 1]), [(2, 1), (1, 2)]);
        assert_eq!(bridge(&[0, 1, 2, 3, 4]).len(), 8);
        assert_eq!(around(&[0, 1, 2], 1, true, false), [(1, 0), (1, 2)]);
    }

    #[test]
    fn a_majority_is_connected_where_all_its_members_reach_each_other_both_ways() {
        let three = [0, 1, 2];
        let majority = |number: usize| connected_majority(&subset(number, &three), &three);
        // By hand: the pairs are the bits 0 and 1, 2 and 3, 4 and 5, and one of them must be whole.
        for number in 0..SUBSETS {
            let whole = [0b11, 0b1100, 0b11_0000].iter().any(|pair| number & pair == 0);
            assert_eq!(majority(number), whole, "subset {number}");
        }
        for count in [3, 5] {
            let members: Vec<_> = (0..count).collect();
            assert!(connected_majority(&[], &members));
            assert!(connected_majority(&halves(&members), &members));
            assert!(connected_majority(&bridge(&members), &members));
            assert!(!connected_majority(&ring(&members), &members), "each link is cut in one direction");
            for (out, into) in [(true, false), (false, true), (true, true)] {
                assert!(connected_majority(&around(&members, 1, out, into), &members));
            }
        }
        // Of five nodes three are a majority; a shard on the other three is none.
        assert!(!connected_majority(&subset(SUBSETS - 1, &three), &[0, 1, 2, 3, 4]));
        assert!(connected_majority(&halves(&[0, 1, 2, 3]), &[0, 1, 2, 3]));
    }

    #[test]
    fn the_detail_says_what_is_to_be_expected() {
        assert_eq!(words_of(&[(0, 1)], &[0, 1, 2], true), "majority=true well=true");
        assert_eq!(words_of(&ring(&[0, 1, 2]), &[0, 1, 2], false), "majority=false");
    }

    #[test]
    fn so_many_of_some_are_chosen_in_every_way() {
        assert_eq!(chosen(&[7, 8, 9], 2), [[7, 8], [7, 9], [8, 9]]);
        assert_eq!((chosen(&[1, 2, 3, 4, 5], 3).len(), chosen(&[1], 2).len(), chosen(&[], 0).len()), (10, 0, 1));
    }

    #[test]
    fn the_subsets_are_64_different_ones() {
        let all: BTreeSet<_> = (0..SUBSETS).map(|number| subset(number, &[0, 1, 2])).collect();
        assert_eq!(all.len(), SUBSETS);
        assert!(subset(0, &[0, 1, 2]).is_empty());
    }
}
