//! `expandr report`: one report of several training runs.

use std::path::PathBuf;

use clap::Args;

/// Flags of `expandr report`.
#[derive(Args, Debug)]
pub(super) struct ReportArgs {
    /// Run folders of `expandr train` that differ in their seeds: two or more, each with a report.json.
    #[arg(required = true, num_args = 2.., value_name = "RUN")]
    runs: Vec<PathBuf>,

    /// Folder for report.md and report.json; without it the Markdown is printed.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let report = expandr_training::report::pool(&args.runs)?;
    let Some(folder) = &args.out else {
        print!("{}", report.page());
        return Ok(());
    };
    fs_err::create_dir_all(folder)?;
    report.write(&folder.join("report.json"), &folder.join("report.md"))?;
    println!("report.md and report.json are in {}", folder.display());
    Ok(())
}
