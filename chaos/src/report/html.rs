//! The page: verdict first, then how it went, then the evidence.

use std::fmt::Write as _;

use super::chart::{self, COLOURS, client_name};
use super::style::STYLE;
use super::text::{duration, escaped, grouped, long_duration, moment, wall_time};
use super::{FaultResult, InvariantState, RecoveryRow, Report, Spread, Verdict};
use crate::checker::Violation;
use crate::judge::{BUDGETS, Invariant, Statistic};
use crate::scenario::FAILPOINTS;

/// Faults that are listed one by one, at most.
const FAULTS_MAX: usize = 500;

/// The whole page.
pub fn html(report: &Report) -> String {
    let title = escaped(&format!("{}: {}", report.run.scenario, report.verdict.text()));
    let sections = [
        verdict(report),
        tiles(report),
        timeline(report),
        recovery(report),
        invariants(report),
        violations(report),
        workloads(report),
        faults(report),
        failpoints(report),
        replay(report),
    ];
    let body = sections.concat();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>{title}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )
}

fn tone(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Pass => "good",
        Verdict::InvariantBroken => "bad",
        Verdict::BudgetMissed | Verdict::Inconclusive | Verdict::HarnessError => "warn",
    }
}

fn verdict(report: &Report) -> String {
    let run = &report.run;
    let mut facts = vec![
        format!("{} nodes in {} zones", run.nodes, run.zones),
        if run.shards == 0 { String::new() } else { format!("{} shards", run.shards) },
        format!("{} driver", run.driver),
        format!("seed {}", run.seed),
        long_duration(run.duration_ns),
        wall_time(run.started_at_unix_ms),
        format!("anchorhold {}", run.version),
    ];
    if !run.mutants.is_empty() {
        facts.push(format!("with a bug put in on purpose: {}", run.mutants.join(", ")));
    }
    facts.retain(|fact| !fact.is_empty());
    let mut html = format!(
        "<div class=\"card verdict {}\"><div class=\"badge\">{}</div><div><h1>{}</h1><p class=\"soft\">{}</p></div></div>",
        tone(report.verdict),
        report.verdict.text(),
        escaped(&run.scenario),
        escaped(&facts.join(" · "))
    );
    let list = |items: &[String]| {
        let items: String =
            items.iter().map(|item| format!("<li>{}</li>", escaped(item))).collect();
        format!("<ul>{items}</ul>")
    };
    if !report.reasons.is_empty() {
        // Writing to a string cannot fail.
        let _ = write!(html, "<div class=\"card\"><b>Why</b>{}</div>", list(&report.reasons));
    }
    if !report.notes.is_empty() {
        let _ = write!(html, "<div class=\"card soft\"><b>Notes</b>{}</div>", list(&report.notes));
    }
    html
}

fn tiles(report: &Report) -> String {
    let totals = &report.totals;
    let broken: u64 = report.invariants.iter().map(|one| one.broken).sum();
    let lost: u64 = [Invariant::NothingLost, Invariant::ReplicasComplete]
        .iter()
        .filter_map(|wanted| report.invariants.iter().find(|one| one.invariant == *wanted))
        .map(|one| one.broken)
        .sum();
    let worst = |name: &str| {
        let values = report.faults.iter().flat_map(|fault| &fault.measures);
        let of = values.filter(|(measure, _)| measure == name).map(|(_, value)| *value);
        of.max_by(f64::total_cmp).map_or("–".to_owned(), duration)
    };
    let tiles = [
        (grouped(totals.acknowledged), "operations acknowledged"),
        (grouped(lost), "acknowledged writes lost"),
        (grouped(broken), "violations"),
        (grouped(totals.faults), "faults that took hold"),
        (worst("client_gap_ms"), "longest wait of a client"),
        (worst("unaffected_shard_gap_ms"), "longest wait at an unhit shard"),
        (
            format!("{} of {}", grouped(totals.resolved), grouped(totals.unknown)),
            "unanswered writes found out",
        ),
    ];
    let changes = [totals.splits, totals.merges, totals.moves];
    let changed = (changes.map(grouped).join(" / "), "shards split / merged / moved");
    let changed = Some(changed).filter(|_| changes.iter().any(|count| 0 < *count));
    let tiles = tiles.iter().chain(&changed).map(|(figure, text)| {
        format!("<div class=\"tile\"><b>{figure}</b><span>{text}</span></div>")
    });
    format!("<div class=\"tiles\">{}</div>", tiles.collect::<String>())
}

fn timeline(report: &Report) -> String {
    let zones = chart::zones(report);
    let key = |class: &str, text: &str| {
        format!("<span><i style=\"background:var(--{class})\"></i>{}</span>", escaped(text))
    };
    let mut keys = vec![
        key("a", "writes; median time"),
        key("f", "reads"),
        key("b", "99th percentile; replicas missing"),
        key("bad", "failed; shards without a leader"),
        key("band", "fault"),
    ];
    for (index, zone) in zones.iter().enumerate() {
        keys.push(key(COLOURS[index % COLOURS.len()], &format!("leaders in {zone}")));
    }
    format!(
        "<h2>Timeline</h2><div class=\"card\"><div class=\"key\">{}</div>{}</div>",
        keys.concat(),
        chart::timeline(report)
    )
}

fn text_of(name: &str) -> &str {
    BUDGETS.iter().find(|budget| budget.name == name).map_or(name, |budget| budget.text)
}

fn bound(report: &Report, name: &str, statistic: Statistic) -> Option<f64> {
    let of = |budget: &&super::BudgetResult| budget.name == name && budget.statistic == statistic;
    report.budgets.iter().find(of).map(|budget| budget.bound)
}

/// Three cells: median, 99th percentile, maximum; those above their budget stand out.
fn spread_cells(report: &Report, name: &str, spread: Option<&Spread>) -> String {
    let Some(spread) = spread else {
        return "<td class=\"n soft\" colspan=\"3\">not measured</td>".to_owned();
    };
    let cell = |statistic| {
        let value = spread.statistic(statistic);
        let is_over = bound(report, name, statistic).is_some_and(|bound| bound < value);
        let class = if is_over { "n over" } else { "n" };
        format!("<td class=\"{class}\">{}</td>", duration(value))
    };
    Statistic::ALL.map(cell).concat()
}

fn recovery(report: &Report) -> String {
    let mut rows = String::new();
    for row in &report.recovery {
        rows += &recovery_rows(report, row);
    }
    let whole = |name: &str, of: fn(&super::WorkloadSummary) -> Spread| {
        let worst = report.workloads.iter().map(|workload| (workload, of(workload)));
        worst
            .filter(|(_, spread)| 0 < spread.count)
            .map(|(workload, spread)| {
                format!(
                    "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td>{}</tr>",
                    escaped(&workload.name),
                    text_of(name),
                    grouped(spread.count as u64),
                    spread_cells(report, name, Some(&spread))
                )
            })
            .collect::<String>()
    };
    let _ = write!(rows, "{}{}", whole("write_ms", |w| w.writes), whole("read_ms", |w| w.reads));
    let budgets: String = report
        .budgets
        .iter()
        .map(|budget| {
            let (class, text) = match budget.is_met() {
                Some(true) => ("good", "met"),
                Some(false) => ("bad", "missed"),
                None => ("warn", "not measured"),
            };
            let value = budget.value.map_or("–".to_owned(), duration);
            format!(
                "<tr><td><span class=\"pill {class}\">{text}</span></td><td>{}</td><td>{}</td><td class=\"n\">{value}</td><td class=\"n\">{}</td></tr>",
                escaped(text_of(&budget.name)),
                statistic_text(budget.statistic),
                duration(budget.bound)
            )
        })
        .collect();
    let budgets = if budgets.is_empty() {
        String::new()
    } else {
        format!(
            "<div class=\"card scroll\"><table><tr><th>budget</th><th>measure</th><th>of all rounds</th><th class=\"n\">found</th><th class=\"n\">at most</th></tr>{budgets}</table></div>"
        )
    };
    format!(
        "<h2>Recovery</h2>{budgets}<div class=\"card scroll\"><table><tr><th>fault or workload</th><th>measure</th><th class=\"n\">count</th><th class=\"n\">median</th><th class=\"n\">p99</th><th class=\"n\">max</th></tr>{rows}</table><p class=\"soft\">A gap is the longest time between two acknowledged writes, from 200 ms before a fault until 10 s after its heal, the next fault or the end. For a shard only time counts in which a client waited for it. Leaders and replicas are sampled about once a second.</p></div>"
    )
}

fn statistic_text(statistic: Statistic) -> &'static str {
    match statistic {
        Statistic::P50 => "median",
        Statistic::P99 => "99th percentile",
        Statistic::Max => "maximum",
    }
}

fn recovery_rows(report: &Report, row: &RecoveryRow) -> String {
    let measured = row.measures.iter().filter(|(_, spread)| spread.is_some());
    let rows = measured.enumerate().map(|(index, (name, spread))| {
        let kind =
            if index == 0 { format!("<b>{}</b>", escaped(&row.fault)) } else { String::new() };
        let count = spread.map_or(0, |spread| spread.count);
        format!(
            "<tr><td>{kind}</td><td>{}</td><td class=\"n\">{count}</td>{}</tr>",
            escaped(text_of(name)),
            spread_cells(report, name, spread.as_ref())
        )
    });
    rows.collect()
}

fn state_pill(state: InvariantState) -> &'static str {
    match state {
        InvariantState::Kept => "<span class=\"pill good\">kept</span>",
        InvariantState::Broken => "<span class=\"pill bad\">broken</span>",
        InvariantState::Undecided => "<span class=\"pill warn\">undecided</span>",
        InvariantState::Untested => "<span class=\"soft\">not tested</span>",
    }
}

fn invariants(report: &Report) -> String {
    let mut rows = String::new();
    for one in
        report.invariants.iter().filter(|one| one.asked || one.state != InvariantState::Untested)
    {
        let broken = if one.broken == 0 { "–".to_owned() } else { grouped(one.broken) };
        let _ = write!(
            rows,
            "<tr><td>{}</td><td><code>{}</code><br><span class=\"soft\">{}</span></td><td class=\"n\">{}</td><td class=\"n\">{broken}</td></tr>",
            state_pill(one.state),
            one.invariant.name(),
            escaped(one.invariant.text()),
            grouped(one.checked)
        );
    }
    format!(
        "<h2>Invariants</h2><div class=\"card scroll\"><table><tr><th></th><th>what must hold</th><th class=\"n\">tests</th><th class=\"n\">violations</th></tr>{rows}</table></div>{}",
        matrix(report)
    )
}

/// Invariants down, kinds of fault across.
fn matrix(report: &Report) -> String {
    if report.matrix.is_empty() {
        return String::new();
    }
    let mut html =
        String::from("<div class=\"card scroll\"><table><tr><th>invariant \\ fault</th>");
    for row in &report.matrix {
        let _ = write!(html, "<th class=\"turn\">{}<br>×{}</th>", escaped(&row.fault), row.count);
    }
    html.push_str("</tr>");
    for one in report.invariants.iter().filter(|one| one.state != InvariantState::Untested) {
        let _ = write!(html, "<tr><td><code>{}</code></td>", one.invariant.name());
        for row in &report.matrix {
            let broken = row.broken.iter().find(|(invariant, _)| *invariant == one.invariant);
            let cell = match broken {
                Some((_, count)) => format!("<span class=\"pill bad\">{count}</span>"),
                None if one.state == InvariantState::Undecided => {
                    "<span class=\"pill warn\">?</span>".to_owned()
                }
                None => "<span class=\"pill good\">✓</span>".to_owned(),
            };
            let _ = write!(html, "<td class=\"cell\">{cell}</td>");
        }
        html.push_str("</tr>");
    }
    html.push_str("<tr><td class=\"soft\">writes acknowledged around it</td>");
    for row in &report.matrix {
        let _ = write!(html, "<td class=\"cell soft\">{}</td>", grouped(row.acknowledged_writes));
    }
    html.push_str("</tr></table></div>");
    html
}

fn violations(report: &Report) -> String {
    if report.violations.is_empty() {
        return String::new();
    }
    let cards: String = report.violations.iter().map(violation).collect();
    format!("<h2>Evidence</h2>{cards}")
}

fn violation(violation: &Violation) -> String {
    let mut html = format!(
        "<div class=\"card\"><p><span class=\"pill bad\">{}</span> <b>{}</b> <span class=\"soft\">({})</span></p>",
        violation.invariant.name(),
        escaped(&violation.text),
        escaped(&violation.workload)
    );
    if !violation.evidence.is_empty() {
        html += &chart::operations(&violation.evidence);
        html.push_str("<details><summary>Operations</summary><div class=\"scroll\"><table><tr><th>who</th><th class=\"n\">asked</th><th class=\"n\">answered</th><th>what</th></tr>");
        for one in &violation.evidence {
            let _ = write!(
                html,
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
                one.client.map_or("read back".to_owned(), client_name),
                moment(one.start_ns),
                moment(one.end_ns),
                escaped(&one.text)
            );
        }
        html.push_str("</table></div></details>");
    }
    html.push_str("</div>");
    html
}

fn workloads(report: &Report) -> String {
    let mut rows = String::new();
    for one in &report.workloads {
        let totals = &one.totals;
        let cells = [
            totals.acknowledged,
            totals.acknowledged_writes,
            totals.failed,
            totals.unknown,
            totals.resolved,
        ];
        let cells: String =
            cells.iter().map(|cell| format!("<td class=\"n\">{}</td>", grouped(*cell))).collect();
        let whole =
            if one.is_whole { "" } else { " <span class=\"pill warn\">record cut off</span>" };
        let _ = write!(rows, "<tr><td>{}{whole}</td>{cells}</tr>", escaped(&one.name));
    }
    format!(
        "<h2>Workloads</h2><div class=\"card scroll\"><table><tr><th>workload</th><th class=\"n\">acknowledged</th><th class=\"n\">writes among them</th><th class=\"n\">failed</th><th class=\"n\">unanswered</th><th class=\"n\">found out</th></tr>{rows}</table></div>"
    )
}

fn faults(report: &Report) -> String {
    let mut rows = String::new();
    for fault in report.faults.iter().take(FAULTS_MAX) {
        rows += &fault_row(fault);
    }
    let left = report.faults.len().saturating_sub(FAULTS_MAX);
    let more = if left == 0 {
        String::new()
    } else {
        format!("<p class=\"soft\">{left} more stand in report.json.</p>")
    };
    let count = report.faults.len();
    format!(
        "<h2>Faults</h2><div class=\"card\"><details{}><summary>{count} faults, one by one</summary><div class=\"scroll\"><table><tr><th class=\"n\">at</th><th>fault</th><th>took</th><th class=\"n\">lasted</th><th class=\"n\">no write</th><th class=\"n\">a client</th><th class=\"n\">a shard</th><th class=\"n\">an unhit shard</th></tr>{rows}</table>{more}</div></details></div>",
        if count <= 30 { " open" } else { "" }
    )
}

fn fault_row(fault: &FaultResult) -> String {
    let measure = |name: &str| {
        let found = fault.measures.iter().find(|(measure, _)| measure == name);
        found.map_or("–".to_owned(), |(_, value)| duration(*value))
    };
    let took = match fault.took {
        Some(true) => "<span class=\"pill good\">yes</span>",
        Some(false) => "<span class=\"pill bad\">no</span>",
        None => "<span class=\"soft\">not looked at</span>",
    };
    let lasted = fault.healed_ns.map_or("to the end".to_owned(), |healed| {
        duration(healed.saturating_sub(fault.applied_ns.unwrap_or(fault.asked_ns)) as f64 / 1e6)
    });
    let cells = ["write_gap_ms", "client_gap_ms", "shard_gap_ms", "unaffected_shard_gap_ms"]
        .map(|name| format!("<td class=\"n\">{}</td>", measure(name)))
        .concat();
    format!(
        "<tr><td class=\"n\">{}</td><td><b>{}</b> {}<br><span class=\"soft\">{}</span></td><td>{took}</td><td class=\"n\">{lasted}</td>{cells}</tr>",
        moment(fault.asked_ns),
        escaped(&fault.fault),
        escaped(&fault.target),
        escaped(&fault.detail)
    )
}

fn failpoints(report: &Report) -> String {
    if report.failpoints.is_empty() {
        return String::new();
    }
    let text = |name: &str| {
        let known = FAILPOINTS.iter().find(|(known, _)| *known == name);
        known.map_or("", |(_, text)| text)
    };
    let row = |(name, hits): &(String, u64)| {
        let hits = match hits {
            0 => "<span class=\"pill warn\">never</span>".to_owned(),
            hits => grouped(*hits),
        };
        format!(
            "<tr><td><code>{}</code></td><td class=\"soft\">{}</td><td class=\"n\">{hits}</td></tr>",
            escaped(name),
            escaped(text(name))
        )
    };
    let rows: String = report.failpoints.iter().map(row).collect();
    let reached = report.failpoints.iter().filter(|(_, hits)| 0 < *hits).count();
    format!(
        "<h2>Failpoints</h2><div class=\"card\"><details><summary>{reached} of {} were reached</summary><div class=\"scroll\"><table><tr><th>place in the code</th><th></th><th class=\"n\">reached</th></tr>{rows}</table></div></details></div>",
        report.failpoints.len()
    )
}

fn replay(report: &Report) -> String {
    let details = |name: &str, text: &str| {
        if text.is_empty() {
            return String::new();
        }
        format!("<details><summary>{name}</summary><pre>{}</pre></details>", escaped(text))
    };
    format!(
        "<h2>Again</h2><div class=\"card\"><p>Run it again with the same faults and the same stream of operations:</p><pre>{}</pre><p>Judge this record again, perhaps with a newer version: <code>anchorhold chaos check</code> and the run's directory.</p>{}{}</div>",
        escaped(&report.run.replay),
        details("The scenario as it was run", &report.texts.scenario),
        details("The topology", &report.texts.topology)
    )
}
