#!/usr/bin/env bash
# Packs programs, checks and weights for a machine that nothing can be fetched from, in files of at most PIECE MiB.
# usage: deploy/gpu/pack.sh OUT BIN MODELS [CUDA_LIBS]
#   OUT         the folder to make; there: unpack.sh, SHA256SUMS, pieces
#   BIN         what build.sh made
#   MODELS      the models folder (`expandr models pull` fills it)
#   CUDA_LIBS   a folder with libcublas, libcublasLt, libcurand, libcudart (toolkit.sh: .cuda/lib64), where the machine has none
#   PIECE (60)  MiB a file
# There: sh OUT/unpack.sh FOLDER, then FOLDER/deploy/gpu/check.sh
set -euo pipefail
out=${1:?the folder to make} bin=${2:?the programs} models=${3:?the models folder} libraries=${4:-}
[[ ! -e $out ]] || { echo "pack.sh: $out exists already; remove it or choose another folder" >&2; exit 1; }
bin=$(realpath "$bin") models=$(realpath "$models") repository=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
staging=$(mktemp -d)
trap 'rm -rf "$staging"' EXIT
mkdir -p "$out" "$staging/deploy" "$staging/lib"
cp -r "$repository/deploy/gpu" "$staging/deploy/"
cp -rL "$bin" "$staging/bin"
strip "$staging"/bin/*
ln -s "$models" "$staging/models"
if [[ -n $libraries ]]; then
    for name in libcublas.so.13 libcublasLt.so.13 libcurand.so.10 libcudart.so.13 libnvrtc.so.13 libnvrtc-builtins.so; do
        for file in "$libraries/$name"*; do [[ -e $file ]] && cp -L "$file" "$staging/lib/"; done
    done
fi
# Weights don't shrink, so that speed goes before size.
tar -C "$staging" -chf - --exclude='.*' bin deploy lib models | gzip -1 | split -b "${PIECE:-60}M" -d -a 4 - "$out/piece."
cat >"$out/unpack.sh" <<'END'
#!/bin/sh
# usage: unpack.sh FOLDER: checks the pieces that lie beside this file and unpacks them.
set -eu
folder=${1:?the folder to unpack into}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")"
sha256sum --quiet -c SHA256SUMS
cat piece.* | gzip -dc | tar -C "$folder" -xf -
echo "$folder"
END
(cd "$out" && sha256sum piece.* unpack.sh >SHA256SUMS)
du -sh "$out"
