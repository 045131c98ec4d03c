#!/bin/sh
# Copies what the dependencies follow from (manifests and lock) into a folder, with empty crates in the place of ours:
# `cargo build` there compiles every dependency and nothing else. The Dockerfile makes of it the layer that stays while only
# sources change.
# usage: deploy/skeleton.sh SOURCE TARGET
set -eu
source=${1:?the folder of the sources} target=${2:?the folder to make}
cd "$source"
mkdir -p "$target"
cp Cargo.toml Cargo.lock "$target/"
for manifest in Cargo.toml */Cargo.toml; do
    crate=$(dirname "$manifest")
    mkdir -p "$target/$crate/src"
    [ "$crate" = . ] || cp "$manifest" "$target/$manifest"
    if [ -f "$crate/src/lib.rs" ]; then : >"$target/$crate/src/lib.rs"; fi
    if [ -f "$crate/src/main.rs" ]; then echo 'fn main() {}' >"$target/$crate/src/main.rs"; fi
    # Benchmarks are declared by name, and cargo wants their files.
    for bench in "$crate"/benches/*.rs; do
        [ -f "$bench" ] || continue
        mkdir -p "$target/$crate/benches"
        echo 'fn main() {}' >"$target/$bench"
    done
done
