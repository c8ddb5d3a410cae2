//! What a request must be like before anything is done for it: every refusal names the field and the limit.

use std::collections::{BTreeMap, HashSet};

use quorate_api::limits;
use quorate_api::v1;
use quorate_index::{Metric, Settings};
use quorate_state::control::CollectionRecord;
use serde::de::IgnoredAny;

use super::machine::metric_of;
use crate::error::{Error, ErrorReason};

/// The greatest breadth of a graph search that a client may ask for.
const EF_MAX: u64 = 10_000;

const _: () = assert!(EF_MAX <= quorate_index::MAX_EF as u64);
const _: () = assert!(limits::SEARCH_K < quorate_index::MAX_K);
const _: () = assert!(limits::DIMENSION == quorate_index::MAX_DIMENSION);

/// Checks a new collection against the limits and the cluster's number of shards; says over how many it is spread.
pub(super) fn collection(request: &v1::CreateCollectionRequest, cluster_shards: usize) -> Result<u32, Error> {
    limits::check_name("name", &request.name)?;
    limits::check_range("dimension", request.dimension.into(), 1, limits::DIMENSION as u64)?;
    if v1::Metric::try_from(request.metric).is_err() {
        return Err(Error::invalid("metric", "the metric is none that this version knows"));
    }
    let shards = request.shards.max(1);
    limits::check_range("shards", shards.into(), 1, cluster_shards.max(1) as u64)?;
    Ok(shards)
}

/// Checks the points of an upsert.
pub(super) fn points(record: &CollectionRecord, points: &[v1::PointInput]) -> Result<(), Error> {
    ids(points.iter().map(|point| point.id.as_str()), "points")?;
    let settings = settings(record);
    for point in points {
        vector(&settings, &point.vector).map_err(|error| error.with("point", &point.id))?;
        payload(&point.payload).map_err(|error| error.with("point", &point.id))?;
    }
    Ok(())
}

/// Checks the ids of a batch: each within its limits, none twice, and neither none nor too many.
pub(super) fn ids<'a>(ids: impl ExactSizeIterator<Item = &'a str>, field: &str) -> Result<(), Error> {
    if ids.len() == 0 {
        return Err(Error::invalid(field, format!("`{field}` is empty: give at least one")));
    }
    limits::check_size(field, ids.len(), limits::BATCH_POINTS)?;
    let mut seen = HashSet::with_capacity(ids.len());
    for id in ids {
        limits::check_point_id("id", id)?;
        if !seen.insert(id) {
            // Parts of a batch travel at the same time, so two writes of one point in it would have no order.
            return Err(
                Error::invalid("id", format!("point {id:?} stands twice in one batch: send it once")).with("point", id)
            );
        }
    }
    Ok(())
}

/// Checks what a search asks for.
pub(super) fn search(record: &CollectionRecord, request: &v1::SearchRequest) -> Result<(), Error> {
    limits::check_range("k", request.k.into(), 1, limits::SEARCH_K as u64)?;
    limits::check_range("ef", request.ef.into(), 0, EF_MAX)?;
    vector(&settings(record), &request.vector)
}

fn settings(record: &CollectionRecord) -> Settings {
    Settings::new(record.dimension as usize, metric_of(record.metric))
}

fn vector(settings: &Settings, vector: &[f32]) -> Result<(), Error> {
    use quorate_index::Error as Refusal;
    settings.check_vector(vector).map_err(|refusal| {
        let message = refusal.to_string();
        match refusal {
            Refusal::Dimension { expected, actual } => {
                Error::new(ErrorReason::WrongDimension, message).with("expected", expected).with("actual", actual)
            }
            Refusal::NotFinite { component, .. } => {
                Error::new(ErrorReason::NotFinite, message).with("component", component)
            }
            _ => Error::invalid("vector", message),
        }
    })
}

/// A payload is a JSON object, or nothing.
fn payload(payload: &[u8]) -> Result<(), Error> {
    limits::check_size("payload", payload.len(), limits::POINT_PAYLOAD_BYTES)?;
    if payload.is_empty() {
        return Ok(());
    }
    match serde_json::from_slice::<BTreeMap<String, IgnoredAny>>(payload) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::invalid("payload", format!("a payload is a JSON object or empty: {error}"))),
    }
}

/// The metric in the words of the state; unspecified is cosine.
pub(super) fn metric(metric: v1::Metric) -> quorate_state::Metric {
    match metric {
        v1::Metric::Unspecified | v1::Metric::Cosine => quorate_state::Metric::Cosine,
        v1::Metric::InnerProduct => quorate_state::Metric::InnerProduct,
        v1::Metric::L2 => quorate_state::Metric::L2,
    }
}

/// The metric in the words of the API.
pub(super) fn metric_name(metric: quorate_state::Metric) -> v1::Metric {
    match metric_of(metric) {
        Metric::Cosine => v1::Metric::Cosine,
        Metric::InnerProduct => v1::Metric::InnerProduct,
        Metric::L2 => v1::Metric::L2,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use quorate_state::control::CollectionState;
    use quorate_state::{CollectionId, ShardId};

    use super::*;

    fn record() -> CollectionRecord {
        CollectionRecord {
            id: CollectionId(1),
            name: "notes".into(),
            generation: 5,
            dimension: 2,
            metric: quorate_state::Metric::Cosine,
            state: CollectionState::Ready,
            shards: vec![ShardId(1)],
            pending: vec![],
        }
    }

    fn point(id: &str, vector: &[f32], payload: &'static [u8]) -> v1::PointInput {
        v1::PointInput {
            id: id.into(),
            vector: vector.to_vec(),
            payload: Bytes::from_static(payload),
            expected_version: None,
        }
    }

    fn refusal(bad: v1::PointInput) -> Error {
        points(&record(), &[point("good", &[1.0, 0.0], b""), bad]).expect_err("must be refused")
    }

    #[test]
    fn good_points_pass() {
        let good = [point("a", &[1.0, 0.0], b""), point("b", &[0.0, 2.0], br#"{"text": {"deep": [1, null]}}"#)];
        assert_eq!(points(&record(), &good), Ok(()));
    }

    #[test]
    fn each_bad_point_has_its_own_reason() {
        let wrong = refusal(point("x", &[1.0, 0.0, 0.0], b""));
        assert_eq!(wrong.reason, ErrorReason::WrongDimension);
        assert_eq!((wrong.metadata["expected"].as_str(), wrong.metadata["actual"].as_str()), ("2", "3"));
        assert_eq!(wrong.metadata["point"], "x");
        assert_eq!(refusal(point("x", &[f32::NAN, 0.0], b"")).reason, ErrorReason::NotFinite);
        assert_eq!(refusal(point("x", &[0.0, f32::INFINITY], b"")).reason, ErrorReason::NotFinite);
        assert_eq!(refusal(point("x", &[0.0, 0.0], b"")).metadata["field"], "vector");
        assert_eq!(refusal(point("", &[1.0, 0.0], b"")).reason, ErrorReason::InvalidArgument);
        assert_eq!(refusal(point(&"x".repeat(257), &[1.0, 0.0], b"")).reason, ErrorReason::TooLarge);
        assert_eq!(refusal(point("good", &[1.0, 0.0], b"")).metadata["point"], "good");
    }

    #[test]
    fn a_payload_is_a_small_json_object_or_nothing() {
        for bad in [b"[1]".as_slice(), b"{", b"null", b"\"text\"", b"{} x", b"\xff"] {
            let error = payload(bad).expect_err("must be refused");
            assert_eq!((error.reason, error.metadata["field"].as_str()), (ErrorReason::InvalidArgument, "payload"));
        }
        let large = payload(&vec![b' '; limits::POINT_PAYLOAD_BYTES + 1]).expect_err("must be refused");
        assert_eq!(large.reason, ErrorReason::TooLarge);
        assert_eq!(large.metadata["limit"], limits::POINT_PAYLOAD_BYTES.to_string());
    }

    #[test]
    fn batches_are_bounded() {
        let many: Vec<String> = (0..=limits::BATCH_POINTS).map(|n| n.to_string()).collect();
        let names = || many.iter().map(String::as_str);
        assert_eq!(ids(names(), "ids").expect_err("too many").reason, ErrorReason::TooLarge);
        assert_eq!(ids(names().take(limits::BATCH_POINTS), "ids"), Ok(()));
        assert_eq!(ids(names().take(0), "ids").expect_err("none").metadata["field"], "ids");
    }

    #[test]
    fn a_search_needs_a_sensible_k_ef_and_vector() {
        let good = v1::SearchRequest { vector: vec![1.0, 0.0], k: 10, ..Default::default() };
        assert_eq!(search(&record(), &good), Ok(()));
        let refused = |change: fn(&mut v1::SearchRequest)| {
            let mut request = good.clone();
            change(&mut request);
            search(&record(), &request).expect_err("must be refused")
        };
        assert_eq!(refused(|r| r.k = 0).metadata["field"], "k");
        assert_eq!(refused(|r| r.k = 1_001).metadata["field"], "k");
        assert_eq!(refused(|r| r.ef = 10_001).metadata["field"], "ef");
        assert_eq!(refused(|r| r.vector = vec![1.0]).reason, ErrorReason::WrongDimension);
    }

    #[test]
    fn a_collection_fits_the_cluster() {
        let good = v1::CreateCollectionRequest { name: "notes".into(), dimension: 384, ..Default::default() };
        assert_eq!(collection(&good, 8), Ok(1));
        let refused = |change: fn(&mut v1::CreateCollectionRequest)| {
            let mut request = good.clone();
            change(&mut request);
            collection(&request, 8).expect_err("must be refused").metadata["field"].clone()
        };
        assert_eq!(refused(|r| r.shards = 9), "shards");
        assert_eq!(refused(|r| r.dimension = 0), "dimension");
        assert_eq!(refused(|r| r.dimension = 4_097), "dimension");
        assert_eq!(refused(|r| r.metric = 99), "metric");
        assert_eq!(refused(|r| r.name = String::new()), "name");
    }
}
