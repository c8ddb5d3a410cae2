//! Links between nodes: cut by packet filter rules in the namespace of the node that receives.
//!
//! A link is directed, `(from, to)`. Its rule sits at the receiver and matches the sender's address, so that the counter of
//! the rule says how many packets it took. Clients are not touched: they reach both sides of every partition.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use futures::future::try_join_all;

use super::{Cluster, tool};

/// Our chain, which INPUT (table filter) and OUTPUT (table mangle) of every node go through.
pub(super) const CHAIN: &str = "QJ";

static CUTS: AtomicU64 = AtomicU64::new(0);

/// What becomes of the packets of a cut link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// They vanish.
    Drop,
    /// The sender is told that the connection is gone.
    Reset,
}

/// Links that were cut together.
#[derive(Debug)]
pub struct Cut {
    comment: String,
    refusal: Refusal,
    /// Which.
    pub links: Vec<(usize, usize)>,
}

impl Cluster {
    /// Cuts links, those into one node in one step.
    pub async fn cut(&self, links: &[(usize, usize)], refusal: Refusal) -> Result<Cut> {
        let comment = format!("cut{}", CUTS.fetch_add(1, Ordering::Relaxed));
        let cut = Cut { comment, refusal, links: links.to_vec() };
        self.change(&cut, "-I").await?;
        Ok(cut)
    }

    /// Takes the rules of a cut away.
    pub async fn mend(&self, cut: &Cut) -> Result<()> {
        self.change(cut, "-D").await
    }

    async fn change(&self, cut: &Cut, verb: &str) -> Result<()> {
        let mut rules: BTreeMap<usize, String> = BTreeMap::new();
        for (from, to) in &cut.links {
            let what = match cut.refusal {
                Refusal::Drop => "-j DROP",
                Refusal::Reset => "-p tcp -j REJECT --reject-with tcp-reset",
            };
            let source = self.run.node_address(*from);
            let comment = &cut.comment;
            let rule = format!("{verb} {CHAIN} -s {source} -m comment --comment {comment} {what}\n");
            rules.entry(*to).or_default().push_str(&rule);
        }
        try_join_all(rules.iter().map(|(to, rules)| self.filter(*to, "filter", rules))).await?;
        Ok(())
    }

    /// Changes a table of a node's packet filter: all of the rules or none.
    pub(super) async fn filter(&self, node: usize, table: &str, rules: &str) -> Result<()> {
        let enter = self.enter(node);
        let words = [enter[0].as_str(), &enter[1], "iptables-restore", "--noflush", "-w", "5"];
        tool::run_with_input(&words, &format!("*{table}\n{rules}COMMIT\n")).await?;
        Ok(())
    }

    /// How many packets each link of a cut took so far.
    pub async fn packets_taken(&self, cut: &Cut) -> Result<BTreeMap<(usize, usize), u64>> {
        let mut taken = BTreeMap::new();
        for (from, to) in &cut.links {
            let source = self.run.node_address(*from).to_string();
            taken.insert((*from, *to), self.counted(*to, "filter", &[&cut.comment, &source]).await?);
        }
        Ok(taken)
    }

    /// The packets counted by the rules of a table that mention all of `words`.
    pub(super) async fn counted(&self, node: usize, table: &str, words: &[&str]) -> Result<u64> {
        let enter = self.enter(node);
        let saved = tool::run_async(&[enter[0].as_str(), &enter[1], "iptables-save", "-c", "-t", table]).await?;
        let mut sum = 0;
        for line in saved.lines().filter(|line| line.starts_with('[')) {
            // An address is written with its mask.
            let has = |word: &&str| line.split(' ').any(|part| part == *word || part.split('/').next() == Some(*word));
            if words.iter().all(has) {
                let count =
                    line.trim_start_matches('[').split(':').next().context("a counted rule begins [packets:bytes]")?;
                sum += count.parse::<u64>().with_context(|| format!("the counter of {line:?}"))?;
            }
        }
        Ok(sum)
    }

    /// Empties our chains at every node: all links work, no packet is touched.
    pub(super) async fn open_all_links(&self) -> Result<()> {
        let flush = format!("-F {CHAIN}\n");
        for node in 0..self.size() {
            self.filter(node, "filter", &flush).await?;
            self.filter(node, "mangle", &flush).await?;
        }
        Ok(())
    }
}
