//! The tests that know only the CRI: those whose body calls `e2e_cri`, or what does that for each handler. Pure.

const MARKS: [&str; 2] = ["    e2e_cri(", "    each_cri("];

/// The tests of one file of the end-to-end tests, as the test program calls them.
pub(super) fn tests(module: &str, text: &str) -> Vec<String> {
    // The first part is what stands above the first test.
    let bodies = text.split("\n#[test]\n").skip(1);
    bodies
        .filter(|body| MARKS.iter().any(|mark| body.contains(mark)))
        .filter_map(|body| {
            let name = body.lines().find_map(|line| line.strip_prefix("fn ")?.split_once('(')).map(|(name, _)| name);
            name.map(|name| format!("{module}::{name}"))
        })
        .collect()
}

#[cfg(test)]
mod marked_tests {
    use super::*;

    #[test]
    fn are_those_that_call_it() {
        let text = "use e2e_cri;\n\nfn helper() {\n    e2e_cri(1);\n}\n\n#[test]\nfn one() {\n    e2e_cri(async |node| {\n    });\n}\n\n\
                    // proves: A\n#[test]\nfn two() {\n    e2e(async |node| {\n    });\n}\n\n#[test]\nfn three() {\n    each_cri(run);\n}\n";
        assert_eq!(tests("file", text), ["file::one", "file::three"]);
    }
}
