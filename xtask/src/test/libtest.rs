//! Reads what libtest prints: how many tests passed, failed and were ignored, and which ones failed.
//!
//! Pure: lines in, [`Counts`] out. It knows `test NAME ... FAILED` and the `test result:` line that closes each test
//! program; everything else on a test program's standard output is none of its business.

/// How the reason of an `#[ignore]` begins that marks no test but the child process of one.
const PART: &str = "a part of other tests";

/// What the test programs seen so far have reported.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counts {
    pub passed: u32,
    pub failed: u32,
    /// Marked `#[ignore]`, without those that are no tests by themselves ([`PART`]).
    pub ignored: u32,
    pub failed_names: Vec<String>,
    /// Test programs that began, and those that came to a result.
    begun: u32,
    ended: u32,
    /// Seen since the last result line.
    parts: u32,
}

impl Counts {
    /// Takes in one line of a test program's standard output.
    pub fn read_line(&mut self, line: &str) {
        let line = line.trim_end();
        if let Some(name) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failed_names.push(name.to_owned());
        }
        if let Some(tests) = line.strip_prefix("running ")
            && (tests.ends_with(" tests") || tests.ends_with(" test"))
        {
            self.begun += 1;
        }
        if line.starts_with("test ") && line.contains(&format!(" ... ignored, {PART}")) {
            self.parts += 1;
        }
        let Some(result) = line.strip_prefix("test result: ") else {
            return;
        };
        // "ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s"
        let Some((_, figures)) = result.split_once(". ") else {
            return;
        };
        self.ended += 1;
        for figure in figures.split("; ") {
            let Some((number, what)) = figure.split_once(' ') else {
                continue;
            };
            let Ok(number) = number.parse::<u32>() else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number.saturating_sub(std::mem::take(&mut self.parts)),
                _ => {}
            }
        }
    }

    /// Every test program came to its result, and every failure has a name.
    pub fn are_whole(&self) -> bool {
        self.begun == self.ended && self.failed as usize == self.failed_names.len()
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    fn read(text: &str) -> Counts {
        let mut counts = Counts::default();
        text.lines().for_each(|line| counts.read_line(line));
        counts
    }

    #[test]
    fn the_results_of_several_test_programs_add_up() {
        let counts = read(
            "running 2 tests\ntest a ... ok\ntest b ... ok\n\n\
             test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             running 3 tests\ntest c::d ... FAILED\n\
             test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 4 filtered out; finished in 1.25s\n",
        );
        assert_eq!((counts.passed, counts.failed, counts.ignored), (3, 2, 1));
        assert_eq!(counts.failed_names, ["c::d"]);
    }

    #[test]
    fn the_child_process_of_a_test_is_not_a_skip() {
        let counts = read(
            "test child ... ignored, a part of other tests, which start it\ntest slow ... ignored, takes a day\n\
             test result: ok. 1 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!((counts.passed, counts.ignored), (1, 1));
    }

    #[test]
    fn a_test_program_that_dies_leaves_the_counts_in_part() {
        let whole = "running 1 test\ntest a ... FAILED\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert!(read(whole).are_whole());
        assert!(!read(&format!("{whole}running 12 tests\ntest b ... ok\n")).are_whole());
        assert!(!read(&whole.replace("test a ... FAILED\n", "")).are_whole());
    }

    #[test]
    fn a_tests_own_output_is_not_mistaken_for_a_result() {
        let counts =
            read("test result of the probe: 3 passed\n9 passed; 9 failed\ntest x ... ok\n");
        assert_eq!(counts, Counts::default());
    }
}
