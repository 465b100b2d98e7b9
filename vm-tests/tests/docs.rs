//! The list of drop reasons in the documentation is the list in the code.

use margay_core::DropReason;
use std::fmt::Write as _;
use std::path::Path;

#[test]
fn the_documented_drop_reasons_are_those_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/drop-reasons.md");
    let page = page();
    if std::env::var_os("MARGAY_WRITE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("docs/ can be written");
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found, page,
        "docs/drop-reasons.md is not what the code says; run: MARGAY_WRITE_DOCS=1 cargo test -p vm-tests --test docs"
    );
}

fn page() -> String {
    let mut page = String::from(
        "# Drop reasons\n\n\
         Every way in which a packet can be dropped. The name is the one in `margay drops`, in the metrics and in the\n\
         logs. This page is generated from the code: see [testing.md](testing.md).\n\n\
         | name | when |\n|---|---|\n",
    );
    for reason in DropReason::ALL {
        writeln!(page, "| `{}` | {} |", reason.as_str(), reason.describe())
            .expect("a string takes everything");
    }
    page.push_str("\n## Reality\n\nThis list is complete by construction: a packet cannot be dropped without one of these names.\n");
    page
}
