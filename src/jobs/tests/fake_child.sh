#!/bin/sh
# Stands for the binary in tests of jobs: calls what the test has put into behaviour.sh of the jobs' folder, by the
# subcommand's name. $job is the job's folder.
set -eu
job=$(dirname "$2")
. "$job/../behaviour.sh"
"$(echo "$1" | tr - _)" "$@"
