//! `docs/attacks.md` and the tests agree: every row names tests that exist, every test of an attack stands in a row.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The rows that are answered so far, in the words of `docs/attacks.md`; more may stand there.
const ROWS: &[&str] = &[
    "D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D9", "D10", "D11", "D12", "D13", "T1", "T2",
    "T3", "T4", "T5", "T6", "T7", "T8", "T9", "T10", "S1", "S2", "S3", "S4", "S5", "C1", "C2",
    "C3", "C5", "C6", "C7", "K1", "K2", "K3", "P1", "P2", "P3", "P4", "P5", "P6", "M1", "M2", "M3",
    "R1", "R2", "R3", "R4", "B1", "H1", "H2", "H3", "H4", "H5", "H6", "H7",
];

/// Variants that each row has at least.
const VARIANTS: usize = 2;

#[derive(Debug)]
struct Row {
    name: String,
    tests: Vec<String>,
    without_gate: Vec<String>,
    variants: Vec<String>,
}

fn rows() -> Result<Vec<Row>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/attacks.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect()
    };
    let is_row = |line: &&str| {
        line.starts_with("| ")
            && line.chars().nth(2).is_some_and(|first| first.is_ascii_uppercase())
    };
    text.lines()
        .filter(is_row)
        .map(|line| match cells(line).as_slice() {
            [name, _, tests, without_gate, variants] => Ok(Row {
                name: name.clone(),
                tests: names(tests),
                without_gate: names(without_gate),
                variants: variants.split("; ").map(str::to_owned).collect(),
            }),
            _ => anyhow::bail!("not five columns: {line}"),
        })
        .collect()
}

/// What stands between backticks.
fn names(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Every test of this directory, as `file::function`.
fn tests() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests"))? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue;
        }
        let file = path.file_stem().context("no name")?.to_string_lossy().into_owned();
        let text = fs::read_to_string(&path)?;
        let behind_marks = text.split("#[test]").skip(1);
        found.extend(behind_marks.filter_map(|rest| {
            let name = rest.split_once("fn ")?.1.split_once('(')?.0;
            Some(format!("{file}::{name}"))
        }));
    }
    Ok(found)
}

#[test]
fn every_row_names_tests_that_exist_and_two_variants() -> Result<()> {
    let (rows, tests) = (rows()?, tests()?);
    let names: Vec<&str> = rows.iter().map(|row| row.name.as_str()).collect();
    for wanted in ROWS {
        ensure!(names.contains(wanted), "docs/attacks.md has no row {wanted}");
    }
    for (index, name) in names.iter().enumerate() {
        ensure!(!names[..index].contains(name), "docs/attacks.md has {name} twice");
    }
    for row in &rows {
        ensure!(!row.tests.is_empty() && !row.without_gate.is_empty(), "{row:?} names no test");
        for test in row.tests.iter().chain(&row.without_gate) {
            ensure!(tests.contains(test), "{} names {test}, which is no test", row.name);
        }
        for test in &row.without_gate {
            ensure!(test.contains("::without_a_gate_"), "{}: {test} has a gate", row.name);
        }
        let variants: BTreeSet<&String> =
            row.variants.iter().filter(|text| text.len() > 2).collect();
        ensure!(variants.len() >= VARIANTS, "{} has the variants {variants:?} only", row.name);
    }
    Ok(())
}

#[test]
fn every_test_of_an_attack_stands_in_a_row() -> Result<()> {
    let rows = rows()?;
    let named: BTreeSet<&String> =
        rows.iter().flat_map(|row| row.tests.iter().chain(&row.without_gate)).collect();
    let file = |test: &str| test.split("::").next().unwrap_or_default().to_owned();
    // Files whose rows are not in the table yet are somebody's next change.
    let files: BTreeSet<String> = named.iter().map(|test| file(test)).collect();
    let is_of_table =
        |test: &&String| test.starts_with("attacks_") && files.contains(&file(test.as_str()));
    for test in tests()?.iter().filter(is_of_table) {
        ensure!(named.contains(test), "docs/attacks.md does not say which attack {test} tries");
    }
    Ok(())
}
