//! The guide names every metric of a worker, as it is served.

use penstock_worker::serve::Metrics;
use penstock_worker::status::Status;

#[test]
fn the_guide_names_every_metric_of_a_worker_and_no_other() {
    let guide = include_str!("../../docs/guide-operations.md");
    let served = Metrics::default().encode(&Status::new("uid".into(), "r00000000".into(), 0));
    let mut names: Vec<String> = served
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
        .collect();
    let mut explained: Vec<&str> =
        guide.lines().filter(|line| line.starts_with("| `")).flat_map(|line| line.split('`')).collect();
    explained.retain(|word| word.starts_with("penstock_worker_"));
    names.sort_unstable();
    explained.sort_unstable();
    assert_eq!(explained, names, "docs/guide-operations.md, and what a worker serves");
}
