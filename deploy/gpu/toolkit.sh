#!/usr/bin/env bash
# Puts a CUDA 13.0 toolkit, made of pip packages, into a folder, for building with `--features cuda` on a machine that has
# neither a GPU nor a toolkit, and prints the environment to build with.
# usage: eval "$(deploy/gpu/toolkit.sh [FOLDER])"      FOLDER: .cuda by default
# Needs Python 3 with pip, gcc, and cargo. A second call finds what is there.
set -euo pipefail
root=$(realpath -m "${1:-.cuda}")
mkdir -p "$root/bin" "$root/lib64/stubs"
for program in python3 gcc cargo; do
    command -v "$program" >/dev/null || { echo "toolkit.sh: $program is missing; install it first" >&2; exit 1; }
done

if [[ ! -e $root/complete ]]; then
    python3 -m pip install --quiet --upgrade --no-deps --target "$root/pip" \
        nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-cccl==13.0.85 \
        nvidia-cuda-runtime==13.0.96 nvidia-cuda-nvrtc==13.0.88 nvidia-cublas==13.1.0.3 nvidia-curand==10.4.0.35 >&2
fi
packages=$root/pip/nvidia/cu13
chmod +x "$packages"/bin/* "$packages"/nvvm/bin/*

# The layout of an installed toolkit.
for file in "$packages"/bin/*; do ln -sfn "$file" "$root/bin/${file##*/}"; done
ln -sfn "$packages/include" "$root/include"
ln -sfn "$packages/nvvm" "$root/nvvm"
ln -sfn lib64 "$root/lib"
for file in "$packages"/lib/*.so.* "$packages"/lib/*.a; do
    [[ -e $file ]] || continue
    name=${file##*/}
    ln -sfn "$file" "$root/lib64/$name"
    # The linker asks for names without a version.
    [[ $name == *.so.* ]] && ln -sfn "$file" "$root/lib64/${name%%.so.*}.so"
done

# libcuda belongs to the driver and comes with no package: the linker gets a library with the same names and nothing in it.
cargo fetch --locked >&2
list=$root/lib64/stubs/names
for bindings in "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/cudarc-*/src/driver/sys/mod.rs; do
    grep -oE '\bcu[A-Z][A-Za-z0-9_]*' "$bindings"
done | sort -u >"$list"
[[ -s $list ]] || { echo "toolkit.sh: cudarc's sources are not there; cargo fetch should have brought them" >&2; exit 1; }
sed 's/.*/int &(void) { return 100; }/' "$list" >"$root/lib64/stubs/cuda.c"
gcc -w -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$root/lib64/stubs/libcuda.so" "$root/lib64/stubs/cuda.c"
"$root/bin/nvcc" --version | tail -n 2 >&2
touch "$root/complete"

cat <<END
export CUDA_HOME='$root' CUDA_PATH='$root' CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-90}"
export PATH='$root/bin':"\$PATH" LIBRARY_PATH='$root/lib64:$root/lib64/stubs'
END
