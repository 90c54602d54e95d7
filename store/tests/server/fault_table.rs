//! `docs/store-faults.md` names tests that exist.

use std::fs;
use std::path::Path;

#[test]
fn every_row_of_the_table_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let text = fs::read_to_string(root.join("docs/store-faults.md")).unwrap();
    let rows: Vec<&str> =
        text.lines().filter(|line| line.starts_with("| ") && line.contains("::")).collect();
    assert!(rows.len() >= 20, "rows are missing: {rows:#?}");
    for row in rows {
        let tests: Vec<&str> =
            row.split('`').skip(1).step_by(2).filter(|code| code.contains("::")).collect();
        assert!(!tests.is_empty(), "{row}");
        for test in tests {
            let (place, name) = test.rsplit_once("::").unwrap();
            let (whose, file) = place.split_once("::").unwrap();
            let file = file.replace("::", "/");
            let path = match whose {
                "server" => root.join(format!("store/tests/server/{file}.rs")),
                "tests" => root.join(format!("tests/tests/{file}.rs")),
                member => root.join(format!("{member}/src/{file}.rs")),
            };
            let source = fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{test}: {}: {error}", path.display()));
            assert!(source.contains(&format!("fn {name}(")), "{test} is no test: {row}");
        }
    }
}
