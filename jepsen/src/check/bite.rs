//! Whether a run proves anything: enough was done, and what was asked for struck.

use std::collections::BTreeMap;

use super::{
    Rules,
    verdict::{Findings, many, seconds},
};
use crate::{
    event::{Injection, Phase, Verdict},
    history::History,
};

pub(super) fn judge(history: &History, rules: &Rules) -> Verdict {
    let mut findings = Findings::of("run");
    let ok = many(history.events.iter().filter(|event| event.phase == Phase::Ok).count());
    let first = history.events.first().map_or(0, |event| event.time);
    let length = history.events.last().map_or(0, |event| event.time) - first;
    findings.count("operations", many(history.events.iter().filter(|event| event.phase == Phase::Invoke).count()));
    findings.count("ok", ok);
    findings.count("fail", many(history.events.iter().filter(|event| event.phase == Phase::Fail).count()));
    findings.count("info", many(history.events.iter().filter(|event| event.phase == Phase::Info).count()));
    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
    let rate = ok as f64 / (length.max(1) as f64 / 1e6);
    if ok == 0 {
        findings.void("no operation ended well".to_owned());
    } else if rate < rules.floor {
        findings.void(format!(
            "{rate:.1} operations a second ended well over {}, which is under the floor of {:.1}",
            seconds(length),
            rules.floor
        ));
    }
    let mut struck: BTreeMap<&str, u64> = BTreeMap::new();
    for fault in &history.faults {
        *struck.entry(&fault.nemesis).or_default() += u64::from(fault.injection == Injection::Installed);
        findings.count(&format!("faults {:?}", fault.injection).to_lowercase(), 1);
    }
    for nemesis in &rules.asked {
        if struck.get(nemesis.as_str()).copied().unwrap_or(0) == 0 {
            let tried = history.faults.iter().filter(|fault| fault.nemesis == *nemesis).count();
            findings.void(format!("nemesis {nemesis} never struck: of {tried} faults none was installed"));
        }
    }
    findings.verdict(true)
}
